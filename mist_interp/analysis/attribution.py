"""Which parts of the network wrote an action number into the final residual stream, directly?

The final residual stream x at the read positions is a sum: embeddings + what every attention (its heads) and every MLP
(its neurons) added. With a direction u there (`mist_interp.analysis.head`), each part c has a share, and

    action                  =  sum_c  u . c          +  bias  +  linearization error
    action - baseline       =  sum_c  u . (c - c0)            +  linearization error

always, because what the linear view misses is a row of its own. u is one of

    frozen  gradient at the input, scales of all norms and gates held; without a baseline the error is rounding alone
    live    true gradient at the input: what removing a small part does, to first order
    path    true gradient, averaged over the straight line from the baseline's x to the input's: the error vanishes as
            `points` grows (integrated gradients over the head; Sundararajan et al. 2017)

Where it misleads: only the direct way to the action head counts. A part that acts through later layers has no share
for that, and what a later layer copies is the later layer's. Without a baseline, a share also counts what a part writes
for every scene alike: compare with a baseline (another scene, or the mean) before calling a part important, and check
by ablation or patching. Shares of a chunk step come from the seven tokens that the head joins, not from "its" token.

Source: Elhage et al. 2021 (direct logit attribution), for a head that is not linear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.analysis.head import (
    ActionTarget,
    action_unit,
    action_weights,
    read_states,
    refuse_diffusion,
    slope,
    source_of,
    speaks_tokens,
    target_value,
    top_bins,
    wide,
)
from mist_interp.analysis.result import Result, labelled
from mist_interp.core.actions import ActionChunk
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site, SiteKey
from mist_interp.tracing.hooked import HookedVLA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Unit = Literal["component", "head", "neuron"]
Linearization = Literal["frozen", "live", "path"]
States = dict[Site, Tensor]

SITES: dict[str, tuple[str, ...]] = {
    "component": ("hook_embed", "attn_out", "mlp_out"),
    "head": ("hook_embed", "z", "mlp_out"),
    "neuron": ("hook_embed", "attn_out", "mlp.post"),
}
# Rows that are no part of the network: what the parts do not sum to, what the head adds, what the linear view misses.
EXTRA = ("rest", "bias", "linearization error")


@dataclass(frozen=True, eq=False)
class ActionAttribution(Result):
    """Shares of parts, axes (sample, row); the rows sum to the action, or to its difference to the baseline.

    Rows: "embed", "attn 3", "mlp 3", heads "L3H1", neurons "L3N40"; and "rest" (what the final residual stream holds
    beyond its parts: rounding, live edits of the stream), "bias" (only without a baseline) and "linearization error".
    """

    @property
    def total(self) -> Result:
        """Sum of all rows per sample: the action, or its difference to the baseline."""
        return replace_plain(self, self.values.sum("row"), "Sum of all rows")

    @property
    def error(self) -> Result:
        """What the linear view misses, per sample."""
        return replace_plain(self, self.values.sel(row="linearization error", drop=True), "Linearization error")

    def parts(self) -> Result:
        """The rows that are parts of the network."""
        rows = [row for row in self.axes["row"] if row not in EXTRA]
        return replace_plain(self, self.values.sel(row=rows), self.what)

    def grid(self) -> Result:
        """Heads as (sample, layer, head), neurons as (sample, layer, neuron), else (sample, part, layer).

        Raises:
            ValueError: not all rows are there any more.
        """
        rows = self.axes["row"]
        kind = next((name for name, mark in (("head", "H"), ("neuron", "N")) if any(_place(r, mark) for r in rows)), "")
        if kind:
            places = [place for row in rows if (place := _place(row, kind[0].upper()))]
            chosen = [f"L{layer}{kind[0].upper()}{index}" for layer, index in places]
            by_layer, by_index = (sorted(set(numbers)) for numbers in zip(*places, strict=True))
            axes: dict[str, list[Any]] = {"layer": by_layer, kind: by_index}
        else:
            layers = sorted({int(row.split()[1]) for row in rows if row.startswith(("attn ", "mlp "))})
            chosen = [f"{part} {layer}" for part in ("attn", "mlp") for layer in layers]
            axes = {"part": ["attn", "mlp"], "layer": layers}
        lead = [axis for axis in self.values.dims if axis != "row"]
        numbers = self.values.transpose(*lead, "row").sel(row=chosen).values
        sizes = [len(labels) for labels in axes.values()]
        kept = {str(axis): self.axes[str(axis)] for axis in lead}
        return replace_plain(self, labelled(numbers.reshape(*numbers.shape[:-1], *sizes), **kept, **axes), self.what)

    def plot(self, k: int = 20, title: str = "", **options: Any) -> Figure:
        """Bars: the k parts with the largest mean magnitude, and every row that is no part.

        Of several samples, the bar is the mean and the line spans one standard deviation to both sides. With options
        it is drawn like any result.
        """
        if options or "row" not in self.values.dims:
            return super().plot(title=title, **options)
        import matplotlib as mpl
        from matplotlib.figure import Figure

        from mist_interp.analysis.figures import STYLE

        samples = self.values if "sample" in self.values.dims else self.values.expand_dims("sample")
        size = abs(samples).mean("sample").to_series().sort_values(ascending=False)
        largest = set([row for row in size.index if row not in EXTRA][:k])
        rows = [row for row in self.axes["row"] if row in largest or row in EXTRA]
        shown = samples.sel(row=rows)
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(6.4, 0.9 + 0.2 * len(rows)))
            axes = figure.add_subplot()
            spread = shown.std("sample") if samples.sizes["sample"] > 1 else None
            colors = ["0.6" if row in EXTRA else "C0" for row in rows]
            axes.barh(range(len(rows)), shown.mean("sample"), xerr=spread, color=colors, error_kw={"lw": 0.8})
            axes.axvline(0, color="0.5", lw=0.8)
            axes.set_yticks(range(len(rows)), rows)
            axes.invert_yaxis()
            axes.set_xlabel(self.unit)
            figure.suptitle(title or self.what, fontsize=9, x=0.01, ha="left")
        return figure


def direct_action_attribution(
    vla: HookedVLA,
    inputs: PolicyInputs,
    target: ActionTarget = "t0.dz",
    unit: Unit = "component",
    baseline: PolicyInputs | Literal["mean"] | None = None,
    linearization: Linearization | None = None,
    points: int = 32,
) -> ActionAttribution:
    """Shares of the network's parts in one action number; see the module's text, also for where it misleads.

    Args:
        vla: the policy.
        inputs: queries.
        target: "t0.dz", "dz" (mean over the chunk) or numbers with weights.
        unit: "component": embeddings, attention and MLP of every layer; "head": heads instead of attention; "neuron":
            neurons instead of MLPs.
        baseline: what to compare with: other queries (as many, or one for all); "mean", the mean of all parts over
            `inputs`; None, nothing.
        linearization: "frozen" (default without a baseline), "live" or "path" (default with one).
        points: of the path.

    Returns:
        Shares in the unit of the demonstrations; of policies that speak in tokens, in logits: of the bin that the
        policy chose for `inputs`, above the mean of all bins.

    Raises:
        UnknownName: no such target, unit or linearization.
        ValueError: a diffusion head; "live" or "path" without a baseline; numbers of queries that do not fit.
    """
    refuse_diffusion(vla, "the share of a part in an action")
    how = linearization or ("frozen" if baseline is None else "path")
    _check(unit, how, baseline, points)
    action_weights(vla, target)
    last = vla.site(("resid_post", -1))
    names: list[SiteKey] = [*SITES[unit], last]
    action, states = read_states(vla, inputs, names)
    other = _baseline(vla, baseline, names, states)
    bins = _chosen_bins(vla, states[last])
    # What the network itself said, so that rounding in the head's own type is not hidden either.
    value = _said(vla, target, action, states[last], bins)
    if other is None:
        direction = slope(vla, states[last], target, frozen=True, bins=bins)
        bias = target_value(vla, torch.zeros_like(states[last]), target, states[last], bins)
        difference = states
    else:
        direction = _direction(vla, states[last], other[last], target, how, points, bins)
        value = value - target_value(vla, other[last], target, bins=bins)
        difference = {site: wide(found) - wide(other[site]) for site, found in states.items()}
    shares = {name: share for site in names[:-1] for name, share in _rows(vla, site, difference, direction)}
    shares["rest"] = (direction * wide(difference[last])).sum((1, 2)) - sum(shares.values())
    if other is None:
        shares["bias"] = bias
    shares["linearization error"] = value - sum(shares.values())
    text = target if isinstance(target, str) else dict(target)
    versus = "" if other is None else (" against the mean query" if baseline == "mean" else " against the baseline")
    return ActionAttribution(
        labelled(torch.stack(list(shares.values()), dim=1), sample=range(len(inputs)), row=list(shares)),
        action_unit(vla),
        f"Direct share of each part in {text}{versus} ({how} head)",
        source_of(vla, target=text, unit=unit, linearization=how, points=points if how == "path" else None),
    )


def replace_plain(result: Result, values: Any, what: str) -> Result:
    """A plain result with other numbers and the same origin."""
    return Result(values, result.unit, what, result.source)


def _check(unit: str, how: str, baseline: Any, points: int) -> None:
    if unit not in SITES:
        raise UnknownName("unit of attribution", unit, SITES)
    if how not in ("frozen", "live", "path"):
        raise UnknownName("linearization", how, ["frozen", "live", "path"])
    if baseline is None and how != "frozen":
        raise ValueError(
            f"{how!r} needs a baseline: the head starts with a norm, so the true gradient is blind to the state as a "
            "whole, and shares without a baseline would sum to nothing"
        )
    if isinstance(baseline, str) and baseline != "mean":
        raise UnknownName("baseline", baseline, ["mean", "other inputs", "None"])
    if points < 1:
        raise ValueError(f"a path needs at least one point, not {points}")


def _baseline(vla: HookedVLA, baseline: Any, names: list[SiteKey], states: States) -> States | None:
    if baseline is None:
        return None
    count = len(next(iter(states.values())))
    if baseline == "mean":
        if count < 2:
            raise ValueError("the mean of one query is the query itself; give several, or another baseline")
        return {site: wide(found).mean(0, keepdim=True).expand_as(found) for site, found in states.items()}
    if len(baseline) not in (1, count):
        raise ValueError(f"{len(baseline)} baseline queries for {count} queries: give as many, or one for all")
    _, found = read_states(vla, baseline, names)
    return {site: values.expand(count, *values.shape[1:]) for site, values in found.items()}


def _chosen_bins(vla: HookedVLA, states: Tensor) -> Tensor | None:
    """The bins that the policy chose, which stay the measure on the whole way from a baseline."""
    if not speaks_tokens(vla):
        return None
    return top_bins(vla, vla.policy.language_model.model.norm(states))


def _said(vla: HookedVLA, target: ActionTarget, action: ActionChunk, states: Tensor, bins: Tensor | None) -> Tensor:
    if speaks_tokens(vla):
        return target_value(vla, states, target, bins=bins)
    return (action.values * action_weights(vla, target).to(action.values)).sum((1, 2))


def _direction(
    vla: HookedVLA, end: Tensor, start: Tensor, target: ActionTarget, how: str, points: int, bins: Tensor | None
) -> Float[Tensor, "batch slot d_model"]:
    if how != "path":
        return slope(vla, end, target, how == "frozen", bins)
    end, start = wide(end), wide(start)
    # Middles of equal pieces of the way.
    shares = [(k + 0.5) / points for k in range(points)]
    slopes = (slope(vla, start + share * (end - start), target, bins=bins) for share in shares)
    return sum(slopes, torch.zeros_like(end)) / points


def _rows(vla: HookedVLA, name: Any, states: States, direction: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Shares of all parts at the sites of one name, as (label, (batch,))."""
    used = direction.abs().sum((0, 2)) > 0  # the other tokens do not reach this number
    u = direction[:, used]
    for site in vla.sites(name):
        values = wide(states[site][:, used]).to(u)
        layer, short = site.layer, site.hook.short
        if short in ("z", "mlp.post"):
            into = _project(vla, site, u)
            letter = "H" if short == "z" else "N"
            share = (values * into.reshape(values.shape)).sum((1, 3) if short == "z" else 1)
            yield from ((f"L{layer}{letter}{k}", share[:, k]) for k in range(share.shape[1]))
        else:
            kind = {"embed": "embed", "attn_out": f"attn {layer}", "mlp_out": f"mlp {layer}"}[short]
            yield kind, (values * u).sum((1, 2))


def _project(vla: HookedVLA, site: Site, u: Tensor) -> Tensor:
    """The direction as the part's own output weights see it: (batch, slot, what goes into them)."""
    block = vla.policy.language_model.model.layers[site.layer]
    weights = block.self_attn.o_proj if site.hook.short == "z" else block.mlp.down_proj
    return u @ weights.weight.to(u)


def _place(row: str, mark: str) -> tuple[int, int] | None:
    """Layer and index of a row like "L3H1"."""
    layer, _, index = row[1:].partition(mark)
    return (int(layer), int(index)) if row.startswith("L") and layer.isdigit() and index.isdigit() else None
