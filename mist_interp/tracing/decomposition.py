"""Which parts does the residual stream consist of, once a forward is over?

Every block adds what its attention and its MLP say, so at any depth

    stream entering block n = embed + sum over i < n of (attn_out[i] + mlp_out[i])
    attn_out[i]             = sum over heads h of result[i, h]
    mlp_out[i]              = sum over neurons k of post[i, k] * column k of the output matrix

Each function here gives the terms of such a sum, one row per term, with a label per row. They sum to the stream up to
rounding as long as no edit changed the stream itself; what edits put in (and rounding) is the row `rest`, which every
function adds on request, so that the rows then sum exactly.

The rows are what was written, not what it was used for: two rows may cancel each other, and a later norm divides them
all by a scale that depends on their sum.

Source of the names: TransformerLens (`accumulated_resid`, `decompose_resid`, `stack_head_results`, ...).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float

from mist_interp.core.errors import UnknownName
from mist_interp.core.selectors import Selector

if TYPE_CHECKING:
    from mist_interp.tracing.cache import ActivationCache

Mode = Literal["all", "attn", "mlp"]


@dataclass(frozen=True, eq=False)
class ResidualStack:
    """Terms of the residual stream; unpacks to `values, labels`.

    Attributes:
        values: one row per term.
        labels: what each row is: "embed", "3_attn_out", "L3H1", "L3N17", "rest"; whole streams: "3_pre", "final_post".
    """

    values: Float[torch.Tensor, "row batch token d_model"]
    labels: tuple[str, ...]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.values, self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, label: str) -> Float[torch.Tensor, "batch token d_model"]:
        if label not in self.labels:
            raise UnknownName("row", label, self.labels)
        return self.values[self.labels.index(label)]

    def total(self) -> Float[torch.Tensor, "batch token d_model"]:
        """Sum of the rows."""
        return self.values.sum(0)

    def renorm(self, norm: torch.nn.Module) -> ResidualStack:
        """Every row through a norm of its own: what a later part would read if the row were the whole stream (lens).

        `norm` is `vla.module("ln_final")`, say. Rows of a sum do not sum any more.
        """
        with torch.no_grad():
            return ResidualStack(norm(self.values), self.labels)

    def frozen_norm(self, norm: torch.nn.Module, scale: torch.Tensor) -> ResidualStack:
        """Every row divided by the scale that the norm really had (attribution): the sum of the rows is its output.

        `scale` is `cache["ln_final.scale"]`, (batch, token, 1), for the same tokens. Where it misleads: the scale
        depends on all rows, so leaving one out changes what the others give.
        """
        weight = norm.get_parameter("weight").detach().float()
        values = self.values.float() / torch.as_tensor(scale) * weight
        return ResidualStack(values.to(self.values.dtype), self.labels)


def accumulated_resid(
    cache: ActivationCache, layer: int | None = None, incl_mid: bool = False, tokens: Selector | None = None
) -> ResidualStack:
    """The whole stream at every depth up to the one that enters block `layer` (None: that leaves the last block)."""
    depth = _depth(cache, layer)
    rows: dict[str, torch.Tensor] = {}
    for i in range(depth):
        rows[f"{i}_pre"] = _stream(cache, i, tokens)
        if incl_mid:
            rows[f"{i}_mid"] = _pick(cache, "resid_mid", i, tokens)
    rows["final_post" if depth == _layers(cache) else f"{depth}_pre"] = _stream(cache, depth, tokens)
    return _stack(rows)


def decompose_resid(
    cache: ActivationCache,
    layer: int | None = None,
    mode: Mode = "all",
    tokens: Selector | None = None,
    rest: bool = False,
) -> ResidualStack:
    """Embeddings and what every attention and MLP added before block `layer` (None: after the last block).

    `mode` leaves out the MLPs ("attn") or the attentions ("mlp"); they are then part of the rest.
    """
    if mode not in ("all", "attn", "mlp"):
        raise UnknownName("mode", mode, ["all", "attn", "mlp"])
    depth = _depth(cache, layer)
    rows = {"embed": _stream(cache, 0, tokens)}
    for i in range(depth):
        for name in ("attn_out", "mlp_out"):
            if mode in ("all", name.removesuffix("_out")):
                rows[f"{i}_{name}"] = _pick(cache, name, i, tokens)
    return _closed(cache, rows, depth, tokens) if rest else _stack(rows)


def stack_head_results(
    cache: ActivationCache, layer: int | None = None, tokens: Selector | None = None, rest: bool = False
) -> ResidualStack:
    """What every head before block `layer` added; needs `result` among the captured names."""
    depth = _depth(cache, layer)
    rows = _heads(cache, depth, tokens)
    if not rows:
        raise ValueError("before block 0 there are no heads")
    return _closed(cache, rows, depth, tokens) if rest else _stack(rows)


def stack_neuron_results(
    cache: ActivationCache,
    vla: Any,
    layer: int,
    neurons: Sequence[int] | None = None,
    tokens: Selector | None = None,
) -> ResidualStack:
    """What every neuron of the MLP of one block added; the output matrix comes from `vla`: a cache holds no weights.

    All neurons of a block take d_mlp times the memory of one activation, so name `neurons` or few `tokens`.
    """
    layers = _layers(cache)
    if not -layers <= layer < layers:
        raise UnknownName("layer", layer, [str(i) for i in range(layers)])
    layer %= layers
    post = _pick(cache, "mlp.post", layer, tokens)
    chosen = list(range(post.shape[-1]) if neurons is None else neurons)
    if not chosen:
        raise ValueError("neurons=[] names no neuron")
    out = vla.module(f"blocks.{layer}.mlp").down_proj.weight.detach().to(post)
    values = torch.einsum("btn,mn->nbtm", post[..., chosen], out[:, chosen])
    return ResidualStack(values, tuple(f"L{layer}N{k}" for k in chosen))


def full_resid_decomposition(
    cache: ActivationCache, layer: int | None = None, tokens: Selector | None = None
) -> ResidualStack:
    """Every head, every MLP, the embeddings, and the rest: the rows sum to the stream that enters block `layer`."""
    depth = _depth(cache, layer)
    rows = _heads(cache, depth, tokens)
    rows |= {f"{i}_mlp_out": _pick(cache, "mlp_out", i, tokens) for i in range(depth)}
    rows["embed"] = _stream(cache, 0, tokens)
    return _closed(cache, rows, depth, tokens)


def _heads(cache: ActivationCache, depth: int, tokens: Selector | None) -> dict[str, torch.Tensor]:
    rows = {}
    for i in range(depth):
        for head, values in enumerate(_pick(cache, "result", i, tokens).unbind(2)):
            rows[f"L{i}H{head}"] = values
    return rows


def _closed(
    cache: ActivationCache, rows: dict[str, torch.Tensor], depth: int, tokens: Selector | None
) -> ResidualStack:
    """The rows and their difference to the stream."""
    values = torch.stack(list(rows.values()))
    rest = _stream(cache, depth, tokens) - values.sum(0)
    return ResidualStack(torch.cat([values, rest[None]]), (*rows, "rest"))


def _stack(rows: dict[str, torch.Tensor]) -> ResidualStack:
    return ResidualStack(torch.stack(list(rows.values())), tuple(rows))


def _layers(cache: ActivationCache) -> int:
    return cache.catalogue.depths["llm"]


def _depth(cache: ActivationCache, layer: int | None) -> int:
    """Blocks that the stream has passed when it enters block `layer`."""
    layers = _layers(cache)
    if layer is None:
        return layers
    if not -layers <= layer <= layers:
        raise UnknownName("layer", layer, [str(i) for i in range(layers + 1)])
    return layer if layer >= 0 else layer + layers


def _stream(cache: ActivationCache, depth: int, tokens: Selector | None) -> torch.Tensor:
    """The stream that enters block `depth`, under whichever of its names was captured."""
    names = [("resid_pre", depth)] if depth < _layers(cache) else []
    names += [("resid_post", depth - 1)] if depth > 0 else [("embed", 0)]
    for short, layer in names:
        if (short if short == "embed" else (short, layer)) in cache:
            return _pick(cache, short, layer, tokens)
    return _pick(cache, *names[-1], tokens)  # says what is missing


def _pick(cache: ActivationCache, short: str, layer: int, tokens: Selector | None) -> torch.Tensor:
    key = short if short == "embed" else (short, layer)
    if key not in cache:
        raise UnknownName("captured site", key, map(str, cache))
    activation = cache[key]
    return activation.values if tokens is None else activation.at(tokens)
