"""What does each kind of intervention do to the values that it gets?

One function per kind, from the piece of a site that was selected (batch first; tokens second, queries third for
attention weights; then heads and width as the registry says) to its new values. Formulas, with x one token's values,
u = d / |d|:

    add                x + coef v
    scale              factor x
    zero               0
    replace            the given values (mean ablation and patching are replacements)
    resample           values of another sample, drawn with a seed
    project_out        x - sum_k (x . u_k) u_k      over an orthonormal basis u of the given directions
    clamp_projection   x + (clip(x . u, low, high) - x . u) u
    knockout           attention scores -infinity at the given keys, so that their weight is 0 and the rest sums to 1

Source of the last: Geva et al. 2023 (dissecting recall of factual associations in auto-regressive language models);
of the projections: Arditi et al. 2024 (directional ablation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Site
from mist_interp.core.selectors import Selection
from mist_interp.tracing.activation import token_dim
from mist_interp.tracing.interventions import Intervention


@dataclass(frozen=True)
class Place:
    """Where a piece was cut out.

    Attributes:
        site: of which activation.
        layout: the meaning of the multimodal sequence of this query.
        run: which run of the language model within the query.
        selection: which tokens were taken; None when all were.
    """

    site: Site
    layout: TokenLayout
    run: int
    selection: Selection | None


Operation = Callable[[Intervention, Tensor, Place], Tensor]


def add(edit: Intervention, x: Tensor, place: Place) -> Tensor:
    vector = _fitting(edit.tensors["vector"], x, edit, place)
    return x + (float(edit.options["coef"]) * vector.double()).to(x)


def scale(edit: Intervention, x: Tensor, place: Place) -> Tensor:
    return x * float(edit.options["factor"])


def zero(edit: Intervention, x: Tensor, place: Place) -> Tensor:
    return torch.zeros_like(x)


def replace(edit: Intervention, x: Tensor, place: Place) -> Tensor:
    values, counts = _stored(edit, place)
    if len(values) not in (1, len(x)) and values.ndim == x.ndim:
        raise ValueError(f"{edit} holds {len(values)} samples, this query has {len(x)}: give one, or as many")
    _check_counts(edit, counts, x, place)
    return _fitting(values, x, edit, place).to(x).expand_as(x)


def resample(edit: Intervention, x: Tensor, place: Place) -> Tensor:
    values, counts = _stored(edit, place)
    generator = torch.Generator().manual_seed(int(edit.options["seed"]))
    rows = torch.randint(len(values), (len(x),), generator=generator)
    _check_counts(edit, None if counts is None else counts[rows], x, place)
    return _fitting(values[rows.to(values.device)], x, edit, place).to(x).expand_as(x)


def project_out(edit: Intervention, x: Tensor, place: Place) -> Tensor:
    directions = edit.tensors["direction"].reshape(-1, edit.tensors["direction"].shape[-1])
    _check_width(directions, x, edit, place)
    basis = torch.linalg.qr(directions.double().T).Q.to(x.device, _wide(x))
    wide = x.to(basis.dtype)
    return (wide - (wide @ basis) @ basis.T).to(x)


def clamp_projection(edit: Intervention, x: Tensor, place: Place) -> Tensor:
    direction = edit.tensors["direction"]
    _check_width(direction, x, edit, place)
    unit = (direction.double() / direction.double().norm()).to(x.device, _wide(x))
    wide = x.to(unit.dtype)
    along = wide @ unit
    moved = along.clamp(edit.options["low"], edit.options["high"])
    # A token inside the range keeps its bits: its difference is exactly zero.
    return (wide + (moved - along)[..., None] * unit).to(x)


def knockout(edit: Intervention, x: Tensor, place: Place) -> Tensor:
    keys = place.layout.mask(edit.options["keys"]).to(x.device)
    # While base OpenVLA reads its own tokens, keys are those of the prefill and then the tokens that it has read.
    barred = torch.nn.functional.pad(keys, (0, x.shape[-1] - keys.shape[1]))[:, None, None, :]
    visible = x > torch.finfo(x.dtype).min / 2
    blind = (visible.any(-1) & ~(visible & ~barred).any(-1)).any(1)
    if place.selection is not None:
        blind = blind & place.selection.valid.to(x.device)
    if bool(blind.any()):
        sample, query = blind.nonzero()[0].tolist()
        raise ValueError(
            f"{edit} would leave a query of {place.site} without any key (sample {sample}, selected query {query}): "
            "attention without keys is not defined: leave it some, or ablate what the head writes, ('z', layer)"
        )
    return x.masked_fill(barred, -torch.inf)


KINDS: dict[str, Operation] = {
    "add": add,
    "scale": scale,
    "zero": zero,
    "replace": replace,
    "resample": resample,
    "project_out": project_out,
    "clamp_projection": clamp_projection,
    "knockout": knockout,
}


def pieces(
    site: Site, heads: tuple[int, ...] | None, neurons: tuple[int, ...] | None
) -> list[tuple[int, tuple[int, ...]]]:
    """Axes of a site's values along which only some entries are changed.

    Raises:
        ValueError: the site has no heads, or no neurons.
    """
    axes = site.hook.shape.strip("()").split(", ")
    found = []
    if heads is not None:
        at = [i for i, axis in enumerate(axes) if axis in ("head", "kv_head")]
        if not at:
            raise ValueError(f"{site} has no heads, its values are {site.hook.shape}; q, k, v, z, result, pattern have")
        found.append((at[0], heads))
    if neurons is not None:
        if axes[-1] != "d_mlp":
            raise ValueError(f"{site} has no neurons, its values are {site.hook.shape}; mlp.post and mlp.pre have")
        found.append((len(axes) - 1, neurons))
    return found


# -- fitting stored tensors to what is there ------------------------------------------------------------------------


def _stored(edit: Intervention, place: Place) -> tuple[Tensor, Tensor | None]:
    """Values for this site, and per sample how many tokens they hold where that differs."""
    name = f"values@{place.site}"
    values = edit.tensors[name] if name in edit.tensors else edit.tensors["values"]
    return values, edit.tensors.get(f"counts@{place.site}")


def _check_counts(edit: Intervention, counts: Tensor | None, x: Tensor, place: Place) -> None:
    ragged = place.selection is not None and place.selection.ragged
    if counts is None and not (ragged and f"values@{place.site}" in edit.tensors):
        return
    width = x.shape[token_dim(place.site)]
    here = torch.full((len(x),), width) if place.selection is None else place.selection.valid.sum(1)
    values, _ = _stored(edit, place)
    kept = torch.full((1,), values.shape[token_dim(place.site)]) if counts is None else counts.cpu()
    if not torch.equal(kept.expand_as(here), here.cpu()):
        raise ValueError(
            f"{edit} holds {kept.tolist()} tokens per sample for {place.site}, this query has {here.tolist()}: "
            "prompts of other lengths have no tokens in common; patch a selector that both have"
        )


def _check_width(tensor: Tensor, x: Tensor, edit: Intervention, place: Place) -> None:
    if tensor.shape[-1] != x.shape[-1]:
        wide = f"{place.site} is {x.shape[-1]} wide here, {edit} holds vectors of width {tensor.shape[-1]}"
        raise ValueError(f"{wide}: it was made with another model, or for other heads or neurons")


def _fitting(tensor: Tensor, x: Tensor, edit: Intervention, place: Place) -> Tensor:
    """`tensor` on the device of `x`, if its axes are the last ones of `x` (each of its size, or 1)."""
    _check_width(tensor, x, edit, place)
    pairs = zip(reversed(tensor.shape), reversed(x.shape), strict=False)
    if tensor.ndim > x.ndim or any(mine not in (1, theirs) for mine, theirs in pairs):
        raise ValueError(
            f"{edit} holds a tensor of shape {tuple(tensor.shape)}, the values that it changes at {place.site} have "
            f"{tuple(x.shape)}: give the last axes of that shape"
        )
    return tensor.to(x.device)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
