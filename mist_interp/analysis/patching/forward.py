"""How is one batch of cells run?

`PatchedRuns` answers for a list of (pair, cell) at one site: every row of the batch is a copy of its pair's query in
which another cell is exchanged. Two ways give the same numbers:

    from the patched layer on   the states that enter it are taken from the unpatched run, so the cameras and the blocks
                                below do not run again; the parallel variants
    the whole network           every row from its pixels on; the only way for base OpenVLA and diffusion heads, whose
                                query runs the language model several times

At resid_pre, resid_post, hook_embed and mlp_out the exchanged values are themselves what enters a block, so nothing is
hooked at all. Where a query takes several runs of the language model, a diffusion head gets the source's values of the
same denoising step, and base OpenVLA is patched while it reads its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mist_interp.analysis.patching.cells import Cells
from mist_interp.analysis.patching.runs import MeanActivations, Run, rows
from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site
from mist_interp.tracing.hooked import HookedVLA
from mist_interp.tracing.rest import STREAMS, RestOfForward

Source = Run | MeanActivations


class PatchedRuns:
    """Runs of some pairs, with cells exchanged.

    Attributes:
        unpatched: actions of the runs that are patched, one per pair.
        other: actions of the runs that the values come from; None for mean activations.
    """

    def __init__(
        self,
        vla: HookedVLA,
        base: Run,
        source: Source,
        sites: Sequence[Site],
        cells: Cells,
        pairs: Sequence[int],
        reuse: bool = True,
    ):
        """Run both sides once and keep what will be exchanged.

        Args:
            vla: the policy; edits that are live on it stay live in every run.
            base: the runs that are patched, one query per pair.
            source: where the values come from: as many queries, or mean activations.
            sites: one name, some layers.
            cells: of the whole sweep.
            pairs: numbers of these queries in the whole sweep.
            reuse: start at the patched layer where the variant allows it.
        """
        self._vla, self._base, self._cells, self._pairs = vla, base, cells, list(pairs)
        parallel = vla.cfg.variant in ("l1", "discrete") and sites[0].hook.axis == "sequence"
        self._reuse = reuse and parallel
        self._lengths = vla.layout(base.inputs).lengths
        self._rest: dict[Site, RestOfForward] = {}
        self._kept: dict[Site, torch.Tensor] = {}
        if self._reuse:
            needed = {name for site in sites for name in self._needed(site)}
            with vla.hooks(*base.hooks):
                self.unpatched, cache = vla.run_with_cache(base.inputs, names=list(needed))
            self._kept = {site: cache[site].values for site in cache}
        else:
            self.unpatched = vla.run_with_hooks(base.inputs, base.hooks)
        self._source, self.other = source_values(vla, source, sites)

    def __call__(self, site: Site, cells: Sequence[tuple[int, int]]) -> ActionChunk:
        """Actions of one batch: row k with `cells[k]` = (pair of the sweep, cell) exchanged."""
        local = [self._pairs.index(pair) for pair, _ in cells]
        return self._from_layer(site, cells, local) if self._reuse else self._whole(site, cells, local)

    # -- from the patched layer on ----------------------------------------------------------------------------------

    def _from_layer(self, site: Site, cells: Sequence[tuple[int, int]], local: list[int]) -> ActionChunk:
        (source,) = self._source[site]
        prompts = prompts_of(self._base.inputs, local)
        if site.hook.pattern in STREAMS:
            states = self._cells.insert(self._unpatched(site, local), source, cells, self._where(source, local))
            return self._after(site)(states, prompts)
        if self._adds_last(site):
            # The block's own sum: what enters the next one is resid_mid + mlp_out.
            added = self._cells.insert(self._unpatched(site, local), source, cells, self._where(source, local))
            middle, end = (
                Site(str(site).replace("hook_mlp_out", name)) for name in ("hook_resid_mid", "hook_resid_post")
            )
            return self._after(end)(self._unpatched(middle, local) + added, prompts)
        before = Site(f"blocks.{site.layer}.hook_resid_pre")
        hook = (site, self._exchange(site, cells, local))
        return self._after(before)(self._unpatched(before, local), prompts, [hook])

    def _unpatched(self, site: Site, local: list[int]) -> torch.Tensor:
        """One row per cell, without the padding that only other queries of the group need."""
        return self._kept[site][local, : max(self._lengths[pair] for pair in local)]

    def _needed(self, site: Site) -> list[Site]:
        if site.hook.pattern in STREAMS:
            return [site]
        if self._adds_last(site):
            return [site, Site(str(site).replace("hook_mlp_out", "hook_resid_mid"))]
        if site.layer is None:
            raise ValueError(f"{site} comes after all blocks; patch at resid_post of the last one")
        return [Site(f"blocks.{site.layer}.hook_resid_pre")]

    def _adds_last(self, site: Site) -> bool:
        # A live edit of the block's output would be left out by this short cut.
        return site.hook.short == "mlp_out" and not self._vla.edits()

    def _after(self, site: Site) -> RestOfForward:
        if site not in self._rest:
            self._rest[site] = RestOfForward(self._vla, site)
        return self._rest[site]

    # -- the whole network ------------------------------------------------------------------------------------------

    def _whole(self, site: Site, cells: Sequence[tuple[int, int]], local: list[int]) -> ActionChunk:
        inputs = rows(self._base.inputs, local)
        hook = (site, self._exchange(site, cells, local))
        return self._vla.run_with_hooks(inputs, [*self._base.hooks, hook])

    def _exchange(self, site: Site, cells: Sequence[tuple[int, int]], local: list[int]) -> Any:
        runs = iter(self._source[site])
        causal = self._vla.cfg.variant == "base"

        def exchange(values: torch.Tensor, site: Site) -> torch.Tensor | None:
            source = next(runs, None)
            if source is None or (causal and source.shape[1] != self._source[site][0].shape[1]):
                return None  # base OpenVLA reads one of its own tokens
            return self._cells.insert(values, source, cells, self._where(source, local))

        return exchange

    @staticmethod
    def _where(source: torch.Tensor, local: list[int]) -> list[int]:
        """A mean is one row for all pairs."""
        return [0] * len(local) if len(source) == 1 else local


def source_values(
    vla: HookedVLA, source: Source, sites: Sequence[Site]
) -> tuple[dict[Site, list[torch.Tensor]], ActionChunk | None]:
    """What will be put in: per site the values of every run of the language model; and the source's own answer."""
    if isinstance(source, MeanActivations):
        return _means(vla, source, sites), None
    return _record(vla, source, sites)


def _record(vla: HookedVLA, run: Run, sites: Sequence[Site]) -> tuple[dict[Site, list[torch.Tensor]], ActionChunk]:
    """Values of every run of the language model within the queries, and the answer."""
    if vla.cfg.variant in ("l1", "discrete"):
        with vla.hooks(*run.hooks):
            chunk, cache = vla.run_with_cache(run.inputs, names=list(sites))
        return {site: [cache[site].values] for site in sites}, chunk
    seen: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}

    def keep(values: torch.Tensor, site: Site) -> None:
        seen[site].append(values.detach().clone())

    chunk = vla.run_with_hooks(run.inputs, [*run.hooks, *((site, keep) for site in sites)])
    return seen, chunk


def _means(vla: HookedVLA, source: MeanActivations, sites: Sequence[Site], at_once: int = 8) -> Any:
    if vla.cfg.variant not in ("l1", "discrete"):
        raise ValueError(f"mean activations of a {vla.cfg.variant} policy would mix several runs of the language model")
    sums: dict[Site, torch.Tensor] = {}
    for start in range(0, len(source.inputs), at_once):
        _, cache = vla.run_with_cache(source.inputs[start : start + at_once], names=list(sites))
        if len(set(cache.layout.lengths)) > 1:
            raise ValueError("a mean activation needs prompts of one length: the tokens stand at other places")
        for site in sites:
            sums[site] = sums.get(site, 0) + cache[site].values.double().sum(0, keepdim=True)
    return {site: [total / len(source.inputs)] for site, total in sums.items()}


def prompts_of(inputs: PolicyInputs, index: list[int]) -> PolicyInputs:
    """Rows of a batch whose pictures nobody will look at: one for all, without copies."""
    count = len(index)
    return PolicyInputs(
        inputs.input_ids[index],
        inputs.attention_mask[index],
        inputs.pixel_values[:1].expand(count, *inputs.pixel_values.shape[1:]),
        None if inputs.proprio is None else inputs.proprio[index],
        None if inputs.noise is None else inputs.noise[index],
    )
