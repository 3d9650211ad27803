"""What would a patching grid look like, to first order, without running its cells?

Attribution patching: the effect of exchanging an activation is about its change times the gradient of the metric there,

    effect(cell)  ~  sum over the cell's numbers of (a_source - a_unpatched) * d metric / d a   (at the unpatched run)

so one forward with one backward per number of the metric gives every cell of every layer. `agreement` compares such a
grid with the exact one.

Source: Nanda 2023 (attribution patching); Syed, Rager and Conmy 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mist_interp.analysis.metrics import Metric, action_delta, checked
from mist_interp.analysis.patching.cells import Cells, Split
from mist_interp.analysis.patching.forward import source_values
from mist_interp.analysis.patching.grid import PatchGrid
from mist_interp.analysis.patching.runs import MeanActivations, Run
from mist_interp.analysis.patching.sweep import Direction, cells_of, make_grid, settings_of, sides, sites_of
from mist_interp.analysis.result import Result, labelled
from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site, SiteKey
from mist_interp.core.selectors import Selector
from mist_interp.tracing.hooked import HookedVLA


def attribution_patch(
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
) -> PatchGrid:
    """The grid of `patch` with the same arguments, to first order: its cells are not run.

    Where it misleads: the gradient is that of the unpatched run. Where the change is large (a whole segment of an early
    layer) or the network saturates (the norms, an attention that has settled on one token, a clipped gripper), it can
    be far off and of the wrong sign. Ask `agreement` on a part of the grid before trusting the rest. Effects of cells
    add up here by construction; in the network they do not.

    Raises:
        ValueError: a policy whose actions are tokens (their choice has no gradient), a diffusion head, or runs that
            cannot be exchanged (see `patch`).
    """
    if vla.cfg.variant != "l1":
        why = "a diffusion head runs many times per query" if vla.cfg.variant == "diffusion" else "a token is chosen"
        raise ValueError(f"no gradient reaches through a {vla.cfg.variant} policy's action: {why}")
    metric = action_delta() if metric is None else checked(metric)
    split = Split.of(over, segments, tokens, heads, block)
    base, source = sides(clean, corrupt, direction)
    sites = sites_of(vla, site, split)
    cells = cells_of(vla, base, source, sites[0], split)
    with torch.no_grad():
        changed, other = source_values(vla, source, sites)
    values, gradients, chunk = _gradients(vla, base, sites, metric)
    effects = torch.stack([_first_order(cells, changed[s][0], values[s], gradients[s]) for s in sites])
    with torch.no_grad():
        unpatched = metric(chunk).cpu().numpy()
        full = np.full_like(unpatched, np.nan) if other is None else metric(other).cpu().numpy() - unpatched
    settings = settings_of(vla, base, source, sites, split, cells, metric, direction) | {"approximation": "first order"}
    what = f"change of the action ({metric.name}) when the cell's activation is exchanged, to first order"
    return make_grid(effects.cpu().numpy(), full, sites, cells, split, metric.labels(chunk), metric, what, settings)


def agreement(exact: Result, approximate: Result) -> Result:
    """How well an approximate grid follows the exact one, per layer and over all.

    Args:
        exact: what `patch` gave.
        approximate: what `attribution_patch` gave for the same grid.

    Returns:
        Axes (layer, measure): Pearson's and Spearman's correlation over the cells of the layer; the slope of the exact
        effects on the approximate ones (1: right size); the largest error as a share of the largest exact effect. The
        last layer is "all". Without an axis "layer", only "all". NaN where all cells of a layer are alike.

    A high correlation over "all" may only say that both know which layers matter: read it layer by layer.

    Raises:
        ValueError: the two do not have the same axes and labels.
    """
    if exact.axes != approximate.axes:
        differing = [
            name for name in {**exact.axes, **approximate.axes} if exact.axes.get(name) != approximate.axes.get(name)
        ]
        raise ValueError(f"these are two different grids: they do not share the axes {', '.join(differing)}")
    groups: dict[Any, tuple[np.ndarray, np.ndarray]] = {}
    for layer in exact.axes.get("layer", []):
        pair = [grid.sel(layer=layer).values.values.ravel() for grid in (exact, approximate)]
        groups[str(layer)] = (pair[0], pair[1])
    groups["all"] = (exact.values.values.ravel(), approximate.values.values.ravel())
    table = [_compare(*pair) for pair in groups.values()]
    names = ["pearson", "spearman", "slope", "largest error"]
    what = "agreement of the approximate with the exact effects of the cells"
    return Result(labelled(np.array(table), layer=list(groups), measure=names), "", what, dict(exact.source))


def _gradients(
    vla: HookedVLA, base: Run, sites: Sequence[Site], metric: Metric
) -> tuple[dict[Site, torch.Tensor], dict[Site, torch.Tensor], ActionChunk]:
    """Values at the sites, and the gradient of every number of the metric there: (number, pair, token, ...)."""
    seen: dict[Site, torch.Tensor] = {}
    probes: dict[Site, torch.Tensor] = {}

    def probe(values: torch.Tensor, site: Site) -> torch.Tensor:
        seen[site] = values.detach().clone()
        probes[site] = torch.zeros_like(values).requires_grad_()
        return values + probes[site]

    with torch.enable_grad():
        chunk = vla.run_with_hooks(base.inputs, [*base.hooks, *((site, probe) for site in sites)])
        numbers = metric(chunk).reshape(len(chunk), -1)
        if not numbers.requires_grad:
            raise ValueError(f"the metric {metric.name!r} has no gradient")
        wanted = [probes[site] for site in sites]
        # Queries of a batch do not see each other, so the gradient of the sum holds every query's own.
        columns = [torch.autograd.grad(column.sum(), wanted, retain_graph=True) for column in numbers.unbind(1)]
    gradients = {site: torch.stack([column[k] for column in columns]) for k, site in enumerate(sites)}
    return seen, gradients, chunk


def _first_order(cells: Cells, source: torch.Tensor, values: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """(pair, cell, number): change times gradient, summed over each cell."""
    pairs, parts = len(values), len(cells.into)
    pair: list[int] = []
    part: list[int] = []
    into: list[int] = []
    taken: list[int] = []
    for p in range(parts):
        for b in range(pairs):
            places = cells.into[p][b]
            pair += [b] * len(places)
            part += [p] * len(places)
            into += places
            taken += cells.source[p][b]
    at, cell, where, other = torch.tensor([pair, part, into, taken], device=values.device)
    origin = torch.zeros_like(at) if len(source) == 1 else at
    change = source[origin, other].to(values) - values[at, where]
    slopes = gradients[:, at, where]
    if cells.heads is None:
        products = (change * slopes).flatten(2).double().sum(2)[..., None]
    else:
        products = (change * slopes).double().sum(-1)[:, :, list(cells.heads)]
    found = products.new_zeros(len(gradients), pairs * parts, products.shape[-1])
    found.index_add_(1, at * parts + cell, products)
    return found.reshape(len(gradients), pairs, -1).permute(1, 2, 0)


def _compare(exact: np.ndarray, approximate: np.ndarray) -> list[float]:
    from scipy.stats import pearsonr, spearmanr

    if len(exact) < 2 or np.ptp(exact) == 0 or np.ptp(approximate) == 0:
        return [np.nan] * 4
    slope = float(exact @ approximate / (approximate @ approximate))
    error = float(np.abs(exact - approximate).max() / np.abs(exact).max())
    return [float(pearsonr(exact, approximate)[0]), float(spearmanr(exact, approximate)[0]), slope, error]
