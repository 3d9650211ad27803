"""What does each attention head do to what it reads, and where does it look, by its weights alone?

For one head, with row vectors x of the residual stream and n(x) = x / rms(x), the norm's weight g folded in:

    OV = diag(g) W_V W_O                        n(x_key) @ OV is what one key adds to the residual stream at weight 1
    QK = diag(g) W_Q R W_K^T diag(g) / sqrt(d)  n(x_query) @ QK @ n(x_key)^T is the score before the softmax

R turns keys against queries by their distance (rotary embedding); at distance 0 it is the identity. Composition of an
earlier head a with a later head b, by Frobenius norms:

    V: |OV_a OV_b|   K: |OV_a QK_b^T|   Q: |OV_a QK_b|    each divided by the norms of its two factors

Where it misleads. Weights say what could happen. Whether the stream ever points where a circuit reads is not in them;
`qk_between` and `ov_between` say it for given inputs. Composition scores ignore the norms between two heads, the rotary
turn, MLPs, and that other heads write there too; in a space of a few hundred dimensions two random circuits of these
ranks have a score of 1/sqrt(d_model), not 0: read scores against `Composition.baseline`.

Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.analysis.attention.mass import Layers, averages, parts, require_eager
from mist_interp.analysis.head import source_of
from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.several import Several
from mist_interp.analysis.weights.factored import Factored
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.tracing.hooked import HookedVLA

Kind = Literal["Q", "K", "V"]
KINDS: tuple[Kind, ...] = ("Q", "K", "V")


def ov_circuit(vla: HookedVLA, layer: int) -> Factored:
    """OV of all heads of a layer: (head, d_model, d_model) in factors, float32.

    Raises:
        UnknownName: no such layer.
    """
    block, heads = _block(vla, layer), vla.cfg.n_heads
    scale = _weight(block.input_layernorm)
    values = _weight(block.self_attn.v_proj).unflatten(0, (vla.cfg.n_kv_heads, -1))
    values = values.repeat_interleave(heads // vla.cfg.n_kv_heads, dim=0)  # (head, d_head, d_model)
    out = _weight(block.self_attn.o_proj).unflatten(1, (heads, -1))  # (d_model, head, d_head)
    return Factored(scale[:, None] * values.mT, out.permute(1, 2, 0))


def qk_circuit(vla: HookedVLA, layer: int, distance: int = 0) -> Factored:
    """QK of all heads of a layer: (head, d_model, d_model) in factors, float32; queries on the left.

    Args:
        vla: a policy.
        layer: of the language model; negative counts from the end.
        distance: position of the key minus position of the query. The rotary embedding makes scores depend on it, so
            one matrix is exact at one distance only.

    Raises:
        UnknownName: no such layer.
    """
    block, cfg = _block(vla, layer), vla.cfg
    scale = _weight(block.input_layernorm)
    queries = _weight(block.self_attn.q_proj).unflatten(0, (cfg.n_heads, -1))
    keys = _weight(block.self_attn.k_proj).unflatten(0, (cfg.n_kv_heads, -1))
    keys = keys.repeat_interleave(cfg.n_heads // cfg.n_kv_heads, dim=0)
    turned = _turn(vla, distance) @ keys
    return Factored(scale[:, None] * queries.mT, turned * scale / cfg.d_head**0.5)


# -- composition ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Composition(Several):
    """How strongly later heads read what earlier heads write, by weights.

    Attributes:
        scores: axes (kind, from, to), labels "L0H1"; NaN where `to` is not in a later layer.
        baseline: the same after the later circuit was turned by a random rotation (same singular values, so same norm):
            the mean over draws.
        spread: their standard deviation.
        draws: random rotations.
    """

    main = "scores"

    scores: Result
    baseline: Result
    spread: Result
    draws: int

    def ranking(self) -> pd.DataFrame:
        """Pairs by how many standard deviations their score lies above the baseline, largest first."""
        frame = self.scores.to_frame().rename(columns={"value": "score"})
        frame["baseline"] = self.baseline.to_frame()["value"]
        frame["sigmas"] = (frame["score"] - frame["baseline"]) / self.spread.to_frame()["value"]
        frame = frame.dropna(subset=["score"])
        return frame.sort_values("sigmas", ascending=False, kind="stable").reset_index(drop=True)


def composition(vla: HookedVLA, kinds: Sequence[Kind] = KINDS, draws: int = 20, seed: int = 0) -> Composition:
    """Composition scores of all pairs of heads, beside those of randomly turned circuits.

    Args:
        vla: a policy.
        kinds: which input of the later head: its queries, keys or values.
        draws: random rotations for the baseline, at least two.
        seed: of the rotations.

    Raises:
        UnknownName: another kind.
        ValueError: fewer than two draws.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UnknownName("kind of composition", unknown[0], KINDS)
    if draws < 2:
        raise ValueError(f"{draws} draws have no spread; take at least two")
    cfg, generator = vla.cfg, torch.Generator().manual_seed(seed)
    layers, n = range(cfg.n_layers), cfg.n_layers * cfg.n_heads
    labels = [f"L{layer}H{head}" for layer in layers for head in range(cfg.n_heads)]
    ov = [ov_circuit(vla, layer) for layer in layers]
    qk = [qk_circuit(vla, layer) for layer in layers]
    frames = [torch.linalg.qr(torch.randn(cfg.d_model, cfg.d_head, generator=generator))[0] for _ in range(draws)]
    tables = torch.full((3, len(kinds), n, n), torch.nan, dtype=torch.float64)
    for k, kind in enumerate(kinds):
        later = {"V": ov, "Q": qk, "K": [circuit.T for circuit in qk]}[kind]
        for b in layers:
            read = later[b].compact()[1].cpu()  # (head, d_model, d_head)
            core = torch.linalg.qr(read)[1]
            turned = [frame @ core for frame in frames]
            for a in range(b):
                write = ov[a].compact()[0].cpu()
                norms = write.norm(dim=(-2, -1))[:, None] * read.norm(dim=(-2, -1))
                scores = _pair_norms(write, read) / norms
                chance = torch.stack([_pair_norms(write, other) / norms for other in turned])
                rows, cols = (slice(i * cfg.n_heads, (i + 1) * cfg.n_heads) for i in (a, b))
                for t, values in enumerate((scores, chance.mean(0), chance.std(0))):
                    tables[t, k, rows, cols] = values.double()
    axes: dict[str, Any] = {"kind": list(kinds), "from": labels, "to": labels}
    what = ("Composition score of an earlier head with a later one.", "The same, turned at random.", "Its deviation.")
    facts = source_of(vla, draws=draws, seed=seed)
    found = [Result(labelled(t, **axes), "share of norms", text, facts) for t, text in zip(tables, what, strict=True)]
    return Composition(found[0], found[1], found[2], draws)


def _pair_norms(write: Float[Tensor, "a r d"], read: Float[Tensor, "b d r"]) -> Float[Tensor, "a b"]:
    return (write[:, None] @ read[None]).norm(dim=(-2, -1))


# -- given activations ------------------------------------------------------------------------------------------------


def qk_between(
    vla: HookedVLA,
    inputs: PolicyInputs,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    layers: Layers = None,
    batch: int = 8,
) -> Result:
    """Mean score before the softmax from segment to segment, per head.

    Scores have no zero: a softmax does not change when a number is added to all scores of a query. Only differences
    along `to` mean something, and a mean hides the one key that wins.

    Returns:
        Axes (sample, layer, head, from, to).
    """
    rows, columns = _segments(vla, inputs, queries, keys)
    found = []
    for start in range(0, inputs.batch_size, batch):
        some = inputs[start : start + batch]
        layout, wanted = vla.layout(some), _wanted(vla, layers)
        _, cache = vla.run_with_cache(some, names=[("q", wanted), ("k", wanted)])
        q, k = (cache.stack(name).float() for name in ("q", "k"))  # (layer, batch, token, head, d_head)
        k = k.repeat_interleave(vla.cfg.n_heads // vla.cfg.n_kv_heads, dim=3)
        # The score is linear in both, so the mean of scores is the score of the means.
        q = torch.einsum("bft,lbthd->blhfd", averages(layout, rows, q), q)
        k = torch.einsum("bft,lbthd->blhfd", averages(layout, columns, k), k)
        found.append((q @ k.mT / vla.cfg.d_head**0.5).cpu())
    what = "Score before the softmax, mean over queries and keys of two segments."
    return _between(vla, torch.cat(found), "score", what, layers, rows, columns)


def ov_between(
    vla: HookedVLA,
    inputs: PolicyInputs,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    layers: Layers = None,
    batch: int = 8,
) -> Result:
    """How much the tokens of one segment write to those of another, per head: attention times what it moves.

    Returns:
        Norm of the mean vector that a query of `from` gets from all keys of `to`, relative to the norm of the mean
        residual stream of `from` once all heads have written (the placeholders enter the first block empty, so before
        there is nothing to compare with); axes (sample, layer, head, from, to). Vectors of different heads and segments
        may cancel; norms do not show it.

    Raises:
        ValueError: attention is not eager.
    """
    require_eager(vla)
    rows, columns = _segments(vla, inputs, queries, keys)
    found = []
    for start in range(0, inputs.batch_size, batch):
        some = inputs[start : start + batch]
        written, stream = written_vectors(vla, some, rows, columns, layers)
        found.append((written.norm(dim=-1) / stream.norm(dim=-1)[:, :, None, :, None]).cpu())
    what = (
        "Norm of what one segment writes to another through a head, relative to the stream after the block's attention."
    )
    return _between(vla, torch.cat(found), "share of the stream's norm", what, layers, rows, columns)


def written_vectors(
    vla: HookedVLA, inputs: PolicyInputs, queries: Sequence[str], keys: Sequence[str], layers: Layers = None
) -> tuple[Float[Tensor, "batch layer head from to d_model"], Float[Tensor, "batch layer from d_model"]]:
    """Mean vector that a query of each segment gets from all keys of each segment, per head; and the stream after.

    Over heads and over segments that share out the sequence, the vectors sum to the mean of `attn_out`.
    """
    layout, wanted = vla.layout(inputs), _wanted(vla, layers)
    _, cache = vla.run_with_cache(inputs, names=[(name, wanted) for name in ("resid_mid", "v", "pattern")])
    vectors, streams = [], []
    for layer in wanted:
        pattern = cache["pattern", layer].values.float()
        values = cache["v", layer].values.float().repeat_interleave(vla.cfg.n_heads // vla.cfg.n_kv_heads, dim=2)
        mean = averages(layout, queries, pattern)
        weights = mean[:, None] @ pattern  # (batch, head, from, key)
        split = weights[..., None, :] * torch.stack([layout.mask(key) for key in keys], 1).to(weights)[:, None, None]
        z = split @ values.transpose(1, 2)[:, :, None]  # (batch, head, from, to, d_head)
        out = _weight(_block(vla, layer).self_attn.o_proj).unflatten(1, (vla.cfg.n_heads, -1))
        vectors.append(torch.einsum("bhftd,mhd->bhftm", z, out))
        streams.append(mean @ cache["resid_mid", layer].values.float())
    return torch.stack(vectors, 1), torch.stack(streams, 1)


# -- reading weights --------------------------------------------------------------------------------------------------


def _block(vla: HookedVLA, layer: int) -> Any:
    depth = vla.cfg.n_layers
    if not -depth <= layer < depth:
        raise UnknownName("layer", layer, map(str, range(depth)))
    return vla.policy.language_model.model.layers[layer]


def _weight(module: Any) -> Tensor:
    return module.weight.detach().float()


def _turn(vla: HookedVLA, distance: int) -> Float[Tensor, "d_head d_head"]:
    """Rotation of keys by the rotary embedding of `distance` positions: the score of q and k is q @ turn @ k."""
    frequencies = vla.policy.language_model.model.rotary_emb.inv_freq.detach().float()
    cos, sin = (f(distance * frequencies).diag() for f in (torch.cos, torch.sin))
    return torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])


def _wanted(vla: HookedVLA, layers: Layers) -> list[int]:
    wanted = list(range(vla.cfg.n_layers)) if layers is None else list(layers)
    return [int(site.layer or 0) for site in vla.catalogue.expand(("resid_pre", wanted))]


def _segments(
    vla: HookedVLA, inputs: PolicyInputs, queries: Sequence[str] | None, keys: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    segments = parts(vla.layout(inputs))
    return list(queries or (*segments, "action_read")), list(keys or segments)


def _between(
    vla: HookedVLA, values: Tensor, unit: str, what: str, layers: Layers, rows: list[str], columns: list[str]
) -> Result:
    axes = {"sample": range(len(values)), "layer": _wanted(vla, layers), "head": range(vla.cfg.n_heads)}
    return Result(labelled(values, **axes, **{"from": rows, "to": columns}), unit, what, source_of(vla))
