"""Does the action depend on some heads looking at some tokens?

Attention knockout: the scores of some keys are set to minus infinity before the softmax of some queries, so that their
weight is zero and the softmax shares it out among the keys that are left; everything downstream is computed anew. This
is `mist_interp.tracing.knockout` with keys that differ per sample, such as the patches of an object. The change of the
action is compared with knocking out as many other patches, or other heads.

The scores are cut, and not the weights: of a row whose weight lies on the cut keys (a sink) up to rounding, weights
renormalised would be zero divided by zero, or rounding blown up.

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
from torch import Tensor, nn

from mist_interp.analysis.attention.mass import require_eager
from mist_interp.analysis.head import source_of
from mist_interp.analysis.result import Result, labelled
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site
from mist_interp.core.selectors import Selector
from mist_interp.tracing.edits import Edit
from mist_interp.tracing.hooked import HookedVLA

Head = tuple[int, int]  # layer, head


def blinded(
    heads: Sequence[int] | None,
    queries: Bool[Tensor, "batch query"],
    keys: Bool[Tensor, "batch key"],
    decoded: bool = False,
) -> Callable[[Tensor, Site], Tensor]:
    """Function for a hook on "attn_scores": some queries of some heads no longer see some keys, which may differ.

    Args:
        heads: of the layer that it is hooked to; None for all.
        queries: which queries, per sample.
        keys: what they no longer see, per sample.
        decoded: whether the action tokens that base OpenVLA reads one by one, after its prompt, are queries too.

    Raises:
        ValueError: when it runs and a query has no key left to see.
    """

    def cut(scores: Tensor, site: Site) -> Tensor:
        asked = queries
        if scores.shape[2] != queries.shape[1]:  # base OpenVLA reads one of its own action tokens
            asked = torch.full((len(queries), scores.shape[2]), decoded)
        # Keys are those of the prompt, then the action tokens that were read.
        barred = nn.functional.pad(keys, (0, scores.shape[-1] - keys.shape[1]))
        of_head = torch.ones(scores.shape[1], dtype=torch.bool)
        if heads is not None:
            of_head[:] = False
            of_head[list(heads)] = True
        gone = asked[:, None, :, None] & barred[:, None, None, :] & of_head[None, :, None, None]
        gone = gone.to(scores.device)
        visible = scores > torch.finfo(scores.dtype).min / 2
        if bool((visible.any(-1) & ~(visible & ~gone).any(-1)).any()):
            raise ValueError(f"knocking out all that a query of {site} sees leaves it nothing to look at")
        return scores.masked_fill(gone, -torch.inf)

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
        queries: from where they no longer see it: a selector or a mask. Under "action_read" and "all" this goes for the
            action tokens that base OpenVLA reads one by one, too; they have no place in a mask.

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
    queries_mask, keys_mask = masks
    decoded = isinstance(queries, str) and queries in ("all", "action_read")
    if heads is None:
        cut = blinded(None, queries_mask, keys_mask, decoded)
        return [Edit(site, cut) for site in vla.sites("attn_scores")]
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        if not (0 <= layer < cfg.n_layers and 0 <= head < cfg.n_heads):
            raise ValueError(f"no head {(layer, head)}: {cfg.n_layers} layers of {cfg.n_heads} heads, counted from 0")
        by_layer.setdefault(layer, []).append(head)
    return [
        Edit(vla.site(("attn_scores", layer)), blinded(some, queries_mask, keys_mask, decoded))
        for layer, some in by_layer.items()
    ]


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
        source_of(vla, blinded=[str(edit.site) for edit in edits]),
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
