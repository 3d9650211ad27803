"""Which workers does one forward need?

One for each edit, which follows every run of its module, and one for each stretch of the network whose order is known,
which reads captured sites one after the other (a worker per site would cost a switch per module and site).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Catalogue, Site
from mist_interp.core.selectors import Selector
from mist_interp.tracing.changes import Ledger
from mist_interp.tracing.edits import Edit
from mist_interp.tracing.engine import Tap, Worker
from mist_interp.tracing.locations import locator
from mist_interp.tracing.runs import runs_per_query

Keep = Callable[[Site, torch.Tensor], "torch.Tensor | None"]


def pick_sites(
    catalogue: Catalogue, names: Any, tokens: Selector | None, stop: Site | None, layout: TokenLayout
) -> tuple[Site, ...]:
    """Sites to capture, in the order of the network.

    Raises:
        UnknownName: a name, or a token of a named site, that does not exist.
        ValueError: a named site that comes after the stop.
    """
    if names is not None:
        sites = catalogue.expand(names)
        late = [site for site in sites if stop is not None and site.order >= stop.order]
        if late:
            raise ValueError(f"{late[0]} is not computed before {stop}, where this forward stops")
        return sites
    streams = [site for site in catalogue.sites if site.hook.stream and (stop is None or site.order < stop.order)]
    if tokens is None:
        return tuple(streams)
    # What the user did not name is left out where it has no such tokens: the head has no image patches.
    return tuple(site for site in streams if site.hook.axis == "sequence")


def edit_workers(edits: Sequence[Edit], policy: Any, inputs: Any, ledger: Ledger | None = None) -> list[Worker]:
    """One worker per edit, in the order in which edits at one place apply; what they change is noted in the ledger.

    Edits of one site apply as they are listed. Different sites may hang on one module (a stream, and the scale of the
    norm that reads it): there the network's order decides, because the later value is computed from the earlier one.
    """
    if not edits:
        return []
    edits = sorted(edits, key=lambda edit: edit.site.order)
    place = locator(policy)
    layout = policy.layout(inputs) if any(edit.needs_layout for edit in edits) else None
    run = None if runs_per_query(policy) > 1 else 0
    taps = [Tap(str(e.site), place(e.site), partial(e.apply, layout=layout, ledger=ledger)) for e in edits]
    return [Worker((tap,), run) for tap in taps]


def read_workers(sites: Sequence[Site], policy: Any, run: int, keep: Keep, whole: bool = False) -> list[Worker]:
    """One worker per stretch of the network; `sites` are in its order.

    `keep` gets the values in the registry's shape, or, if `whole`, the network's own tensor, which it may replace.
    """
    place = locator(policy)
    chains: dict[str, list[Tap]] = {}
    for site in sites:
        tap = Tap(str(site), place(site), partial(_keep, keep, site), whole)
        chains.setdefault(_stretch(site), []).append(tap)
    repeated = {"llm": run, "head": run}
    return [Worker(taps, repeated.get(stretch, 0)) for stretch, taps in chains.items()]


def _keep(keep: Keep, site: Site, values: torch.Tensor, run: int) -> torch.Tensor | None:
    return keep(site, values)


def _stretch(site: Site) -> str:
    """Sites of one stretch are always reached in the order of the registry; between stretches nothing is assumed."""
    if site.hook.stack is not None:
        return site.hook.stack
    stretches = {"hook_embed": "llm", "ln_final": "llm", "unembed": "llm", "action_head": "head"}
    return stretches.get(site.name.split(".")[0], site.name)
