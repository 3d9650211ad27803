"""Does the action depend on some heads looking at some tokens?

Attention knockout: the weights from some queries to some keys are set to zero and the rows renormalised, which is the
same as minus infinity before the softmax; everything downstream is computed anew. The change of the action is compared
with knocking out as many other patches, or other heads.

Where it misleads. No change may mean that another head carries the same thing (heads back each other up), and a change
may come from the attention that is pushed onto other tokens rather than from what is no longer read. In later blocks
the object's content has spread to other tokens, so blinding late heads to its patches blinds them to little.

Source: Geva et al. 2023, "Dissecting recall of factual associations".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from mist_interp.analysis.attention.mass import require_eager, source
from mist_interp.analysis.result import Result, labelled
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site
from mist_interp.core.selectors import Selector
from mist_interp.tracing.edits import Edit
from mist_interp.tracing.hooked import HookedVLA

Head = tuple[int, int]  # layer, head


def blinded(
    heads: Sequence[int] | None, queries: Bool[Tensor, "batch query"], keys: Bool[Tensor, "batch key"]
) -> Callable[[Tensor, Site], Tensor]:
    """Function for a hook on "pattern": some queries of some heads no longer see some keys, which differ per sample.

    Args:
        heads: of the layer that it is hooked to; None for all.
        queries: which queries, per sample.
        keys: what they no longer see, per sample.

    Raises:
        ValueError: when it runs and a query has no key left to see.
    """

    def cut(pattern: Tensor, site: Site) -> Tensor:
        gone = (queries[:, :, None] & keys[:, None, :]).to(pattern.device)[:, None]
        of_head = torch.ones(pattern.shape[1], dtype=torch.bool, device=pattern.device)
        if heads is not None:
            of_head[:] = False
            of_head[list(heads)] = True
        left = pattern.masked_fill(gone & of_head[:, None, None], 0)
        total = left.sum(-1, keepdim=True)
        if bool((total <= 0).any()):
            raise ValueError(f"knocking out all that a query of {site} sees leaves it nothing to look at")
        # Rows that lose nothing keep their exact values.
        return torch.where((gone & of_head[:, None, None]).any(-1, keepdim=True), left / total, pattern)

    return cut


def knockout_edits(
    vla: HookedVLA,
    inputs: PolicyInputs,
    heads: Iterable[Head] | None,
    keys: Selector | Bool[Tensor, "batch key"],
    queries: Selector | Bool[Tensor, "batch query"] = "action_read",
) -> list[Edit]:
    """Edits that blind heads to tokens, for `vla.hooks(*edits)`; they fit these inputs only.

    Args:
        vla: a policy with eager attention.
        inputs: the queries that will be run under the edits, in one batch.
        heads: pairs (layer, head); None for all heads of all layers.
        keys: what they no longer see: a selector, or one mask per sample (`patch_keys`).
        queries: from where they no longer see it: a selector or a mask.

    Raises:
        ValueError: attention is not eager, or a head or the size of a mask that cannot be.
    """
    require_eager(vla)
    layout, cfg = vla.layout(inputs), vla.cfg
    masks = []
    for given in (queries, keys):
        mask = given if isinstance(given, Tensor) else layout.mask(given)
        if mask.shape != (layout.batch_size, layout.length) or mask.dtype != torch.bool:
            expected = (layout.batch_size, layout.length)
            raise ValueError(f"a mask of tokens is boolean {expected}; given {mask.dtype} {tuple(mask.shape)}")
        masks.append(mask)
    if heads is None:
        return [Edit(site, blinded(None, *masks)) for site in vla.sites("pattern")]
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        if not (0 <= layer < cfg.n_layers and 0 <= head < cfg.n_heads):
            raise ValueError(f"no head {(layer, head)}: {cfg.n_layers} layers of {cfg.n_heads} heads, counted from 0")
        by_layer.setdefault(layer, []).append(head)
    return [Edit(vla.site(("pattern", layer)), blinded(some, *masks)) for layer, some in by_layer.items()]


def knockout_shift(
    vla: HookedVLA,
    inputs: PolicyInputs,
    heads: Iterable[Head] | None,
    keys: Selector | Bool[Tensor, "batch key"],
    queries: Selector | Bool[Tensor, "batch query"] = "action_read",
) -> Result:
    """How far the action moves when heads are blinded to tokens.

    Returns:
        Knocked-out minus untouched normalised action, axes (sample, step, dim). Divide by the spread of the action over
        scenes to say whether that is much.

    Raises:
        ValueError: as `knockout_edits`.
    """
    edits = knockout_edits(vla, inputs, heads, keys, queries)
    with torch.no_grad():
        before = vla(inputs)
        with vla.hooks(*edits):
            after = vla(inputs)
    axes = {"sample": range(len(before)), "step": [f"t{step}" for step in range(vla.cfg.chunk)], "dim": before.names}
    return Result(
        labelled(after.normalized - before.normalized, **axes),
        "normalised action",
        "Change of the action when some heads no longer see some tokens.",
        source(vla, edits=[str(edit.site) for edit in edits]),
    )


def patch_keys(vla: HookedVLA, inputs: PolicyInputs, shares: Result, at_least: float = 0.05) -> Bool[Tensor, "b k"]:
    """Mask of the tokens whose patches show an object by at least a share of their area.

    Args:
        vla: the policy.
        inputs: the samples of `shares`.
        shares: of one object, axes (sample, camera, row, col).
        at_least: share of the patch.

    Raises:
        ValueError: other axes, or another number of samples.
    """
    layout = vla.layout(inputs)
    if list(shares.axes) != ["sample", "camera", "row", "col"] or shares.values.sizes["sample"] != layout.batch_size:
        raise ValueError(f"shares of one object in {layout.batch_size} samples are needed; given {shares.axes.keys()}")
    shown = torch.from_numpy(np.asarray(shares.values.values >= at_least)).flatten(1)
    keys = torch.zeros(layout.batch_size, layout.length, dtype=torch.bool)
    return keys.scatter(1, layout.select("vision").index, shown)


def random_patches(
    keys: Bool[Tensor, "batch key"], allowed: Bool[Tensor, "batch key"], seed: int = 0
) -> Bool[Tensor, "batch key"]:
    """As many random tokens per sample as `keys` has, among the allowed ones that are not in `keys`.

    Raises:
        ValueError: a sample has too few of them.
    """
    generator = torch.Generator().manual_seed(seed)
    free = allowed & ~keys
    counts = keys.sum(1)
    if bool((free.sum(1) < counts).any()):
        raise ValueError("a sample has fewer other tokens than are knocked out")
    order = torch.rand(keys.shape, generator=generator).masked_fill(~free, 2.0).argsort(1)
    rank = order.argsort(1)
    return rank < counts[:, None]
