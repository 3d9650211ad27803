"""How does what workers read in one forward become a cache?

A `Capture` is the plan: which sites, which tokens, which run of the language model, where to keep the values. Its
workers hand it each tensor once, and it keeps a detached copy, because the network may go on writing into its own
memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mist_interp.core.axes import TokenAxis, axis_of
from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Catalogue, Site
from mist_interp.core.selectors import Selection, Selector, parts
from mist_interp.tracing.activation import take, token_dim
from mist_interp.tracing.cache import ActivationCache, Entry, floating_type
from mist_interp.tracing.plan import pick_sites
from mist_interp.tracing.runs import pick_run


@dataclass(frozen=True)
class Capture:
    """What to keep of one forward.

    Attributes:
        sites: what, in the order of the network.
        layout: the meaning of the sequence.
        catalogue: the names that the policy has.
        model_id: where its weights came from.
        run: which run of the language model within the query.
        tokens: which tokens; None for all.
        device: where to keep the values; None leaves them where they are.
        dtype: type to keep them in; None leaves it.
        kept: what has been kept so far.
    """

    sites: tuple[Site, ...]
    layout: TokenLayout
    catalogue: Catalogue
    model_id: str
    run: int
    tokens: Selector | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    kept: dict[Site, Entry] = field(default_factory=dict)
    _axes: dict[tuple[str, int], tuple[TokenAxis, Selection | None]] = field(default_factory=dict)

    @staticmethod
    def plan(
        policy: Any,
        inputs: Any,
        catalogue: Catalogue,
        names: Any,
        tokens: Selector | None,
        step: int | str | None,
        stop: Site | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> Capture:
        """Decide what to keep; the arguments are those of `HookedVLA.run_with_cache`."""
        layout, run = policy.layout(inputs), pick_run(policy, step, stopped=stop is not None)
        sites = pick_sites(catalogue, names, tokens, stop, layout)
        kept_tokens = tokens if tokens is None or isinstance(tokens, str) else parts(tokens)
        return Capture(sites, layout, catalogue, policy.model_id, run, kept_tokens, device, floating_type(dtype))

    def keep(self, site: Site, values: torch.Tensor) -> None:
        """Keep the wanted tokens of one site."""
        self.kept[site] = self.entry(site, values)

    def entry(self, site: Site, values: torch.Tensor) -> Entry:
        """Wanted tokens of the values of one site, in the registry's shape, and what they mean."""
        dim = token_dim(site)
        kind, length = site.hook.axis, values.shape[dim]
        found = self._axes.get((kind, length))
        if found is None:
            axis = axis_of(kind, self.layout, length, self.run)
            found = self._axes[kind, length] = axis, None if self.tokens is None else axis.select(self.tokens)
        axis, selection = found
        values = values.detach()
        values = values.clone() if selection is None else take(values, selection, dim)
        if self.device is not None or self.dtype is not None:
            values = values.to(device=self.device, dtype=self.dtype)
        return Entry(values.contiguous(), axis)

    def cache(self, kept: Mapping[Site, Entry] | None = None) -> ActivationCache:
        """The cache of what was kept, or of other entries for the same sites."""
        found = self.kept if kept is None else kept
        entries = {site: found[site] for site in self.sites}
        return ActivationCache(entries, self.layout, self.catalogue, self.tokens, self.run, self.model_id)
