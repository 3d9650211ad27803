"""Which tokens does each head look at?

    mass(a -> b) = mean over the queries of segment a of the attention weights on all keys of segment b

The weights of a query sum to 1 over all keys, so over segments that share out the sequence the masses of a row sum to
1. Everything here is summed up while the network runs, one layer at a time, so that no pattern is ever kept.

Where it misleads. Attention says where a head reads, not what it reads nor whether anything depends on it: a weight on
a token whose value is small, or whose value is the same everywhere, moves nothing (Kobayashi et al. 2020, "Attention is
not only a weight"; `mist_interp.analysis.weights.circuits` has what is written). After the first block a token is a
mixture of all others, so mass on a patch is not mass on what that patch shows. Heads park attention that they do not
need on a few tokens; `mist_interp.analysis.attention.sinks` takes those out. And the seven read positions of a chunk
step are joined by the action head, so the attention of the "dz" position is not the attention behind dz.

Source: segment masses after Vig and Belinkov 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.analysis.head import source_of
from mist_interp.analysis.result import Result, labelled
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Site
from mist_interp.core.selectors import Selector
from mist_interp.tracing.hooked import HookedVLA

Layers = Sequence[int] | None
# A pattern of one layer, (batch, head, query, key), and the meaning of its tokens, to something with the batch first.
Summary = Callable[[Tensor, TokenLayout], Tensor]
REST = "rest"


def segment_mass(
    vla: HookedVLA,
    inputs: PolicyInputs,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    layers: Layers = None,
    batch: int = 8,
) -> Result:
    """Attention from segment to segment, per head.

    It is a mean over queries: a segment of 64 patches in which one patch looks at the text shows 1/64.

    Args:
        vla: a policy with eager attention.
        inputs: queries.
        queries: selectors, one row each; default: all segments of the sequence, and `action_read`.
        keys: selectors that do not overlap, one column each; default: all segments but `action_read`. What they leave
            over becomes the column "rest", so that rows always sum to 1.
        layers: of the language model; default: all.
        batch: samples per forward.

    Returns:
        Shares, axes (sample, layer, head, from, to).

    Raises:
        ValueError: attention is not eager, or `keys` overlap.
        UnknownName: no such token.
    """
    layout = vla.layout(inputs[0])
    rows = list(queries or (*parts(layout), "action_read"))
    columns, covered = shared_columns(list(keys or parts(layout)), vla.layout(inputs))

    def summary(pattern: Tensor, layout: TokenLayout) -> Tensor:
        return averages(layout, rows, pattern)[:, None] @ pattern @ column_masks(layout, columns, pattern)[:, None]

    values = summarise(vla, inputs, lambda pattern, layout: with_rest(summary(pattern, layout), covered), layers, batch)
    to = [str(column) for column in columns] + ([] if covered else [REST])
    what = "Share of the attention of one segment's queries (mean) that goes to all keys of another segment."
    return result(vla, values, what, layers, rows, to=to)


def camera_attention(
    vla: HookedVLA,
    inputs: PolicyInputs,
    queries: str | Sequence[str] = "action_read",
    layers: Layers = None,
    sinks: Selector | None = None,
    batch: int = 8,
) -> Result:
    """Attention on every patch of every camera, per head.

    Args:
        vla: a policy with eager attention.
        inputs: queries.
        queries: selectors such as "action_read", "action_read.dz", "action_read.t3.gripper", "text:bowl"; one map each.
        layers: of the language model; default: all.
        sinks: keys to take out before rows are renormalised; see `sink_view` for what they had.
        batch: samples per forward.

    Returns:
        Shares of all attention of the queries (mean), axes (sample, layer, head, from, camera, row, col); the sum over
        both cameras is the mass on vision. Rows and columns are those of the upright picture that the policy sees
        (`mist_interp.analysis.attention.pictures`): row 0 is its top.

    Raises:
        ValueError: attention is not eager.
        UnknownName: no such token.
    """
    rows = [queries] if isinstance(queries, str) else list(queries)
    layout = vla.layout(inputs[0])
    shape = (layout.n_images, *layout.grid)

    def summary(pattern: Tensor, layout: TokenLayout) -> Tensor:
        left = pattern if sinks is None else without(pattern, layout, sinks)[0]
        mass = averages(layout, rows, pattern)[:, None] @ left
        places = layout.select("vision").index[0].to(pattern.device)  # the same in every sample
        return mass[..., places].unflatten(-1, shape)

    values = summarise(vla, inputs, summary, layers, batch)
    taken = "" if sinks is None else f", of what is left without {sinks!r}"
    what = f"Share of the attention of some queries (mean) that goes to one image patch{taken}."
    grid = {"camera": layout.cameras, "row": range(shape[1]), "col": range(shape[2])}
    return result(vla, values, what, layers, rows, **grid)


# -- on the way through the network -----------------------------------------------------------------------------------


def summarise(
    vla: HookedVLA, inputs: PolicyInputs, summary: Summary, layers: Layers = None, batch: int = 8
) -> Float[Tensor, "sample layer ..."]:
    """Apply a function to the attention pattern of every layer, while the network runs, and keep only what it gives.

    Live edits are in force, and the patterns are those after them. A network that runs several times within a query is
    read at its prefill (base OpenVLA) or at its last denoising step (diffusion head).

    Args:
        vla: a policy with eager attention.
        inputs: queries.
        summary: (batch, head, query, key) float32 and the layout of these samples -> (batch, ...).
        layers: of the language model; default: all.
        batch: samples per forward.

    Raises:
        ValueError: attention is not eager.
    """
    wanted = layer_numbers(vla, layers)
    found = []
    for start in range(0, inputs.batch_size, batch):
        some = inputs[start : start + batch]
        layout = vla.layout(some)
        kept: dict[int | None, Tensor] = {}

        def read(
            pattern: Tensor, site: Site, layout: TokenLayout = layout, kept: dict[int | None, Tensor] = kept
        ) -> None:
            if pattern.shape[2] == layout.length:  # not a later token of base OpenVLA
                kept[site.layer] = summary(pattern.detach().float(), layout).cpu()

        with torch.no_grad(), vla.hooks((("pattern", wanted), read)):
            vla(some)
        found.append(torch.stack([kept[layer] for layer in wanted], dim=1))
    return torch.cat(found)


def _read(pattern: Tensor, site: Site, summary: Summary, layout: TokenLayout, kept: dict[int | None, Tensor]) -> None:
    if pattern.shape[2] == layout.length:  # not a later token of base OpenVLA
        kept[site.layer] = summary(pattern.detach().float(), layout).cpu()


def require_eager(vla: HookedVLA) -> None:
    """Refuse a policy whose attention function never computes the weights.

    Raises:
        ValueError: with the way out.
    """
    if vla.cfg.attention != "eager":
        raise ValueError(
            f"attention weights exist only under eager attention; this policy runs {vla.cfg.attention!r}: load it with "
            "attn_implementation='eager', or call vla.policy.set_attn_implementation('eager')"
        )


def parts(layout: TokenLayout) -> tuple[str, ...]:
    """Segments that share out the sequence: every token is in exactly one."""
    return tuple(name for name in layout.segments if name not in ("all", "vision", "action_read"))


def averages(layout: TokenLayout, selectors: Sequence[Selector], like: Tensor) -> Float[Tensor, "batch selector token"]:
    """Weights that take the mean over the selected tokens of each sample."""
    masks = torch.stack([layout.mask(selector) for selector in selectors], dim=1).to(like)
    return masks / masks.sum(-1, keepdim=True)


def without(
    pattern: Float[Tensor, "batch head query key"], layout: TokenLayout, sinks: Selector
) -> tuple[Float[Tensor, "batch head query key"], Float[Tensor, "batch head query"]]:
    """The pattern without some keys, rows summing to 1 again, and what those keys had."""
    gone = layout.mask(sinks).to(pattern.device)[:, None, None]
    share = pattern.masked_fill(~gone, 0).sum(-1)
    left = pattern.masked_fill(gone, 0)
    return left / left.sum(-1, keepdim=True).clamp_min(torch.finfo(left.dtype).tiny), share


def result(
    vla: HookedVLA, values: Tensor, what: str, layers: Layers, queries: Sequence[str], **more: Sequence[Any]
) -> Result:
    """A result with the axes (sample, layer, head, from, ...)."""
    axes = {"sample": range(len(values)), "layer": layer_numbers(vla, layers), "head": range(vla.cfg.n_heads)}
    return Result(labelled(values, **axes, **{"from": queries}, **more), "share", what, source_of(vla))


def layer_numbers(vla: HookedVLA, layers: Layers) -> list[int]:
    require_eager(vla)
    wanted = list(range(vla.cfg.n_layers)) if layers is None else list(layers)
    return [int(site.layer or 0) for site in vla.catalogue.expand(("pattern", wanted))]


def shared_columns(keys: list[str], layout: TokenLayout) -> tuple[list[str], bool]:
    """The keys, checked, and whether they cover the sequence."""
    times = torch.stack([layout.mask(key) for key in keys]).sum(0)
    if int(times.max()) > 1:
        raise ValueError(f"the keys {keys} overlap: a token would count twice; segments that do not: {parts(layout)}")
    return keys, bool((times > 0).eq(layout.attention_mask).all())


def column_masks(layout: TokenLayout, keys: list[str], like: Tensor) -> Float[Tensor, "batch token key"]:
    return torch.stack([layout.mask(key) for key in keys], dim=-1).to(like)


def with_rest(mass: Tensor, covered: bool) -> Tensor:
    return mass if covered else torch.cat([mass, 1 - mass.sum(-1, keepdim=True)], dim=-1)
