"""Which part of the network carries the difference between two scenes, prompts or robot states?

Activation patching: run the policy on a clean and a corrupt input, and repeat one of the two runs with some activations
taken from the other. What the action then does is caused by these activations.

    effect(cell) = metric(run with the cell exchanged) - metric(the same run)
    share(cell)  = effect / (metric(the other run) - metric(this run))

`direction="denoise"` patches clean values into the corrupt run: which places are *enough* to bring the behaviour back.
`direction="noise"` patches corrupt values into the clean run: which places are *needed* for it. The two agree only
where places do not stand in for each other.

Every cell of a grid is a run of its own. Here a batch holds many of them, and a run starts at the patched layer.

Source: Vig et al. 2020, Meng et al. 2022 (ROME); Heimersheim and Nanda 2024 on how to read the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from mist_interp.analysis.head import live_edits
from mist_interp.analysis.metrics import Labels, Metric, action_delta, checked
from mist_interp.analysis.patching.cells import Cells, Split, head_axis, plan_cells
from mist_interp.analysis.patching.folder import SweepFolder
from mist_interp.analysis.patching.forward import PatchedRuns, Source
from mist_interp.analysis.patching.grid import PatchGrid
from mist_interp.analysis.patching.runs import MeanActivations, Run, as_run, rows
from mist_interp.analysis.result import labelled
from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site, SiteKey
from mist_interp.core.selectors import Selector
from mist_interp.tracing.hooked import HookedVLA

Direction = Literal["denoise", "noise"]
# Pairs whose activations are held in memory at the same time.
PAIRS_AT_ONCE = 8


def patch(
    vla: HookedVLA,
    clean: PolicyInputs | Run,
    corrupt: PolicyInputs | Run | MeanActivations,
    site: SiteKey = "resid_pre",
    over: str | Sequence[str] = ("layer", "segment"),
    metric: Metric | None = None,
    *,
    direction: Direction = "denoise",
    segments: Sequence[str] | None = None,
    tokens: Selector = "all",
    heads: Sequence[int] | None = None,
    block: int = 1,
    batch_size: int | None = None,
    reuse: bool = True,
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PatchGrid:
    """Exchange every cell of a grid between two runs and see how the action changes.

    Where it misleads: an exchanged activation may be one that no input gives (a bowl in two places), to which the
    network reacts in its own way; places that stand in for each other show no effect when they are exchanged one by
    one; with prompts of different lengths the tokens behind the prompt stand at other positions, which their states
    know; and an effect on the action is no statement about what the activation says.

    Args:
        vla: the policy; edits that are live on it are live in every run.
        clean: one query per pair.
        corrupt: as many queries; or one of the other kinds of runs (`mist_interp.analysis.patching.runs`).
        site: a name, for all layers; `("resid_pre", [0, 4, 8])` for some; `("z", 3)` for one. Possible is what the
            blocks of the language model hold per token (hook_embed, resid_*, attn_out, mlp_out, q, k, v, z, result,
            mlp.*, ln1.*, ln2.*), ln_final.* with `reuse=False`, and the image patches at projector.hook_out; not
            attention (pattern, attn_scores), the vision towers, proprio.*, logits and the action head.
        over: axes of the grid, or one, among layer, segment, token, camera + row + col, head
            (`mist_interp.analysis.patching.cells`).
        metric: what is read off the action; default: every dimension, mean over the chunk.
        direction: "denoise" patches clean values into the corrupt run, "noise" corrupt ones into the clean run.
        segments: selectors that make the axis "segment"; default: the parts of the sequence.
        tokens: what the axis "token" splits, or, where no axis splits tokens, which of them are exchanged.
        heads: those on the axis "head"; default: all.
        block: patches per cell along row and col.
        batch_size: cells per forward; default: 8 on a CPU, whose caches hold no more, else 32.
        reuse: start at the patched layer instead of at the pixels, where the variant allows it; the numbers are the
            same.
        out: folder that keeps every finished forward; the same call goes on where it was cut. Edits that are live must
            then be data (`add`, `ablate`, ...), because two functions cannot be told apart.
        progress: called with (cells done, cells in all) after every forward.

    Returns:
        Effects with the axes (pair if there are several, *over, *axes of the metric), and with `.share`.

    Raises:
        UnknownName: an axis, site, token, head or dimension that does not exist.
        TypeError: a metric that is no `Metric`.
        ValueError: a site that holds no tokens; runs that cannot be exchanged: different batch sizes, or prompts of
            different lengths at the tokens asked for (the message says which can be); a live function with `out`.
        OtherSweep: `out` holds a sweep with other settings.
    """
    metric = action_delta() if metric is None else checked(metric)
    split = Split.of(over, segments, tokens, heads, block)
    base, source = sides(clean, corrupt, direction)
    _check_noise(vla, base, source)
    sites = sites_of(vla, site, split)
    cells = cells_of(vla, base, source, sites[0], split)
    settings = settings_of(vla, base, source, sites, split, cells, metric, direction)
    folder = None if out is None else _folder(vla, out, settings)
    if batch_size is None:
        batch_size = 8 if vla.policy.device.type == "cpu" else 32
    with torch.no_grad():
        sweep = _Sweep(vla, base, source, sites, cells, metric, batch_size, reuse, folder, progress)
        effects, full, labels = sweep.run()
    what = f"change of the action ({metric.name}) when the cell's activation is the {_origin(corrupt, direction)}"
    return make_grid(effects, full, sites, cells, split, labels, metric, what, settings)


@dataclass
class _Sweep:
    vla: HookedVLA
    base: Run
    source: Source
    sites: Sequence[Site]
    cells: Cells
    metric: Metric
    batch_size: int
    reuse: bool
    folder: SweepFolder | None
    progress: Callable[[int, int], None] | None

    def run(self) -> tuple[np.ndarray, np.ndarray, Labels]:
        """Effects (site, pair, cell, ...), full differences (pair, ...), and the labels of the metric's axes."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; a forward holds one cell or more")
        pairs = range(len(self.base.inputs))
        done: dict[tuple[str, int, int], Any] = self.folder.finished() if self.folder else {}
        before: list[np.ndarray] = []
        after: list[np.ndarray] = []
        labels: Labels = {}
        for start in range(0, len(pairs), at_once := min(PAIRS_AT_ONCE, self.batch_size)):
            group = pairs[start : start + at_once]
            runs = PatchedRuns(
                self.vla, _some(self.base, group), _some(self.source, group), self.sites, self.cells, group, self.reuse
            )
            labels = self.metric.labels(runs.unpatched)
            before.append(self._read(runs.unpatched))
            after.append(np.full_like(before[-1], np.nan) if runs.other is None else self._read(runs.other))
            if self.folder:
                self.folder.same_policy(group, before[-1].tolist())
            self._fill(runs, group, done)
        unpatched = np.concatenate(before)
        values = np.array([[[done[str(s), p, c] for c in range(len(self.cells))] for p in pairs] for s in self.sites])
        values = values.reshape(len(self.sites), len(pairs), len(self.cells), *unpatched.shape[1:])
        return values - unpatched[None, :, None], np.concatenate(after) - unpatched, labels

    def _fill(self, runs: PatchedRuns, group: Sequence[int], done: dict[tuple[str, int, int], Any]) -> None:
        total = len(self.sites) * len(self.base.inputs) * len(self.cells)
        for site in self.sites:
            todo = [(p, c) for p in group for c in range(len(self.cells)) if (str(site), p, c) not in done]
            for start in range(0, len(todo), self.batch_size):
                batch = todo[start : start + self.batch_size]
                values = self._read(runs(site, batch)).tolist()
                if self.folder:
                    self.folder.store(str(site), batch, values)
                done |= {(str(site), pair, cell): value for (pair, cell), value in zip(batch, values, strict=True)}
                if self.progress:
                    self.progress(len(done), total)

    def _read(self, chunk: ActionChunk) -> np.ndarray:
        values = self.metric(chunk)
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{self.metric.name} is not finite in one of the runs")
        return values.detach().cpu().numpy()


def sides(
    clean: PolicyInputs | Run, corrupt: PolicyInputs | Run | MeanActivations, direction: str
) -> tuple[Run, Source]:
    """The run that is patched, and where the values come from."""
    if direction not in ("denoise", "noise"):
        raise ValueError(f'direction is {direction!r}; "denoise" patches the corrupt run, "noise" the clean one')
    if isinstance(corrupt, MeanActivations):
        if direction == "denoise":
            raise ValueError('mean activations are no run that could be patched: use direction="noise"')
        return as_run(clean), corrupt
    first, second = as_run(clean), as_run(corrupt)
    if len(first.inputs) != len(second.inputs):
        raise ValueError(f"{len(first.inputs)} clean and {len(second.inputs)} corrupt queries: give them pair by pair")
    return (second, first) if direction == "denoise" else (first, second)


def sites_of(vla: HookedVLA, site: SiteKey, split: Split) -> tuple[Site, ...]:
    """The layers that the grid goes through, in order."""
    sites = vla.catalogue.expand(site)
    if len({found.hook.pattern for found in sites}) > 1:
        raise ValueError(f"{site!r} names several kinds of activations; a grid is about one")
    if "layer" in split.over and sites[0].layer is None:
        raise ValueError(f"{sites[0]} has no layers: leave 'layer' out of over={split.over}")
    if "layer" not in split.over and len(sites) > 1:
        raise ValueError(f"{site!r} has {len(sites)} layers: add 'layer' to over={split.over}, or name one layer")
    return sites


def cells_of(vla: HookedVLA, base: Run, source: Source, site: Site, split: Split) -> Cells:
    """Cells of the grid, with the positions of every pair."""
    given = source.inputs
    if isinstance(source, MeanActivations):
        given = rows(source.inputs, [0] * len(base.inputs))
    cfg = vla.cfg
    count = cfg.n_kv_heads if "kv_head" in site.hook.shape else cfg.n_heads
    return plan_cells(split, site, vla.layout(base.inputs), vla.layout(given), count if head_axis(site) else None)


def settings_of(
    vla: HookedVLA,
    base: Run,
    source: Source,
    sites: Sequence[Site],
    split: Split,
    cells: Cells,
    metric: Metric,
    direction: str,
) -> dict[str, Any]:
    """Everything that decides the numbers, for the result and for resuming."""
    cfg = vla.cfg
    return {
        "policy": cfg.model_id,
        "attention": cfg.attention,
        "dtype": str(next(vla.policy.parameters()).dtype).removeprefix("torch."),
        "unnorm_key": cfg.unnorm_key,
        "sites": [str(site) for site in sites],
        "over": list(split.over),
        "places": {axis: [str(label) for label in labels] for axis, labels in cells.labels.items()},
        "tokens": split.tokens if isinstance(split.tokens, str) else list(split.tokens),
        "metric": f"{metric.name} in {metric.unit}",
        "direction": direction,
        "pairs": len(base.inputs),
        "patched": base.digest(),
        "values from": source.digest(),
        "live edits": live_edits(vla),
    }


def make_grid(
    effects: np.ndarray,
    full: np.ndarray,
    sites: Sequence[Site],
    cells: Cells,
    split: Split,
    labels: Labels,
    metric: Metric,
    what: str,
    settings: dict[str, Any],
) -> PatchGrid:
    """Effects (site, pair, cell, ...) with the axes that were asked for."""
    pairs: Labels = {"pair": list(range(effects.shape[1]))}
    axes: Labels = {"layer": [site.layer for site in sites], **pairs, **cells.labels, **labels}
    array = labelled(effects.reshape([len(names) for names in axes.values()]), **axes)
    difference = labelled(full, **pairs, **labels)
    if effects.shape[1] == 1:
        array, difference = (found.isel(pair=0, drop=True) for found in (array, difference))
    if "layer" not in split.over:
        array = array.isel(layer=0, drop=True)
    order = [name for name in ("pair", *split.over, *labels) if name in array.dims]
    ordered: xr.DataArray = array.transpose(*order)
    return PatchGrid(ordered, metric.unit, what, settings, difference, metric.floor)


def _folder(vla: HookedVLA, out: str | Path, settings: dict[str, Any]) -> SweepFolder:
    functions = [str(edit) for edit in vla.edits() if not edit.is_data]
    if functions:
        raise ValueError(
            f"out= keeps a sweep to go on with, but {functions[0]} is a function: whether it is the same one at the "
            "next start cannot be known. Give an edit that is data (add, scale, ablate, ...), or no out="
        )
    return SweepFolder(out, settings)


def _origin(corrupt: Any, direction: str) -> str:
    if isinstance(corrupt, MeanActivations):
        return "mean over many inputs"
    return "clean run's" if direction == "denoise" else "corrupt run's"


def _some(run: Any, group: Sequence[int]) -> Any:
    if isinstance(run, MeanActivations):
        return run
    return Run(rows(run.inputs, group), run.change, run.what)


def _check_noise(vla: HookedVLA, base: Run, source: Source) -> None:
    if vla.cfg.variant == "diffusion" and (base.inputs.noise is None or source.inputs.noise is None):
        raise ValueError("a diffusion policy starts from chance: give both queries the same inputs.noise")
