"""Are the circuits those that the network computes with, and do their scores have the right zero?"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.analysis.head import head_direction
from mist_interp.analysis.weights.action import action_directions, ov_toward_action
from mist_interp.analysis.weights.circuits import (
    composition,
    ov_between,
    ov_circuit,
    qk_between,
    qk_circuit,
    written_vectors,
)
from mist_interp.analysis.weights.factored import Factored
from mist_interp.core.errors import UnknownName
from mist_interp.models import random_policy
from mist_interp.tracing import HookedVLA
from mist_interp.tracing.checks import noise_inputs

torch.set_num_threads(1)


@cache
def make(variant: str = "l1", seed: int = 0, **sizes) -> HookedVLA:
    policy = random_policy(seed, variant=variant, layers=2, diffusion_steps=2, **sizes).requires_grad_(False)
    policy.set_attn_implementation("eager")
    return HookedVLA(policy)


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return make()


@pytest.fixture(scope="module")
def inputs(vla):
    return noise_inputs(vla)


def matrices(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 10_000), n=st.integers(1, 9), rank=st.integers(1, 6), m=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_factors_behave_like_their_product(seed: int, n: int, rank: int, m: int) -> None:
    one = Factored(matrices(seed, 2, n, rank), matrices(seed + 1, 2, rank, m))
    other = Factored(matrices(seed + 2, 2, m, 3), matrices(seed + 3, 2, 3, 4))
    assert one.shape == (2, n, m) == tuple(one.matrix.shape)
    torch.testing.assert_close(one.norm, one.matrix.norm(dim=(-2, -1)))
    torch.testing.assert_close((one @ other).matrix, one.matrix @ other.matrix)
    torch.testing.assert_close(one.T.matrix, one.matrix.mT)
    torch.testing.assert_close(one[1].matrix, one.matrix[1])
    u, s, vh = one.svd
    torch.testing.assert_close(u * s[:, None] @ vh, one.matrix)
    largest = torch.linalg.svdvals(one.matrix)[:, : s.shape[-1]]
    torch.testing.assert_close(s[:, : largest.shape[-1]], largest)
    assert bool((s.diff(dim=-1) <= 1e-9).all())
    left, right = one.compact()[0], other.compact()[1]
    torch.testing.assert_close((left @ right).norm(dim=(-2, -1)), (one @ other).norm)
    plain = matrices(seed + 4, 5, n)
    torch.testing.assert_close((plain @ one.left[0] @ one.right[0]), Factored(plain @ one.left[0], one.right[0]).matrix)
    assert isinstance(one @ matrices(0, m, 2), Factored)


def test_factors_must_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Factored(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(IndexError, match="one matrix"):
        Factored(torch.zeros(3, 2), torch.zeros(2, 3))[0]


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_circuits_are_what_the_network_computes(kv_heads: int) -> None:
    vla = grouped(kv_heads)
    inputs = noise_inputs(vla)[:1]
    _, cache = vla.run_with_cache(inputs, names=[(n, 1) for n in ("resid_pre", "q", "k", "z", "pattern", "attn_out")])
    stream = cache["resid_pre", 1].values[0]
    plain = stream * torch.rsqrt(stream.pow(2).mean(-1, keepdim=True) + 1e-6)
    # Scores at their own distances.
    q, k = (cache[name, 1].values[0] for name in ("q", "k"))
    for head, query, key in ((0, 4, 4), (1, 7, 2), (3, 0, 20)):
        expected = q[query, head] @ k[key, head * kv_heads // 4] / vla.cfg.d_head**0.5
        circuit = qk_circuit(vla, 1, distance=key - query)[head].matrix
        torch.testing.assert_close(plain[query] @ circuit @ plain[key], expected, atol=1e-4, rtol=1e-4)
    # What all keys together write, weighted by attention.
    written = torch.einsum(
        "hqk,khd->qd", cache["pattern", 1].values[0], (plain @ ov_circuit(vla, 1).matrix).movedim(0, 1)
    )
    torch.testing.assert_close(written, cache["attn_out", 1].values[0], atol=1e-4, rtol=1e-4)


@cache
def grouped(kv_heads: int) -> HookedVLA:
    """The small policy, its key and value heads shared by several query heads."""
    policy = make().policy
    if kv_heads == 4:
        return make()
    import copy

    from transformers import LlamaForCausalLM

    policy = copy.deepcopy(policy)
    policy.config.llm.num_key_value_heads = kv_heads
    torch.manual_seed(0)
    policy.language_model = LlamaForCausalLM(policy.config.llm).eval().requires_grad_(False)
    return HookedVLA(policy)


def test_a_wrong_layer_says_what_there_is(vla) -> None:
    with pytest.raises(UnknownName, match="possible: '0', '1'"):
        ov_circuit(vla, 2)
    torch.testing.assert_close(ov_circuit(vla, -1).left, ov_circuit(vla, 1).left)


# -- composition ------------------------------------------------------------------------------------------------------


def test_composition_is_the_norm_of_the_products(vla) -> None:
    found = composition(vla, draws=4)
    ov, qk = ov_circuit(vla, 0)[1].matrix, qk_circuit(vla, 1)[2].matrix
    later = ov_circuit(vla, 1)[2].matrix
    products = {"V": (ov @ later, later), "K": (ov @ qk.T, qk), "Q": (ov @ qk, qk)}
    for kind, (product, second) in products.items():
        expected = product.norm() / (ov.norm() * second.norm())
        assert float(found.scores.sel(kind=kind, **{"from": "L0H1", "to": "L1H2"}).values) == pytest.approx(
            float(expected)
        )
    with np.errstate(all="ignore"):
        backwards = found.scores.sel(**{"from": "L1H2", "to": "L0H1"}).values
    assert np.isnan(backwards).all()
    assert len(found.ranking()) == 3 * 16


def test_random_circuits_lie_at_their_baseline() -> None:
    vla = make(seed=5)
    found = composition(vla, draws=30)
    frame = found.ranking()
    expected = 1 / vla.cfg.d_model**0.5
    assert frame["baseline"].mean() == pytest.approx(expected, rel=0.05)
    assert abs(frame["sigmas"]).mean() < 2


def test_a_planted_composition_stands_out() -> None:
    import copy

    policy = copy.deepcopy(make().policy)
    blocks = policy.language_model.model.layers
    # Head 3 of block 1 takes its values from exactly where head 0 of block 0 writes.
    written = blocks[0].self_attn.o_proj.weight[:, :16]
    blocks[1].self_attn.v_proj.weight.data[48:64] = written.T / blocks[1].input_layernorm.weight
    frame = composition(HookedVLA(policy), ["V"], draws=10).ranking()
    assert frame.loc[0, "from"] == "L0H0" and frame.loc[0, "to"] == "L1H3" and frame.loc[0, "sigmas"] > 10


def test_wrong_requests_for_composition(vla) -> None:
    with pytest.raises(UnknownName, match="'Q', 'K', 'V'"):
        composition(vla, ["O"])
    with pytest.raises(ValueError, match="at least two"):
        composition(vla, draws=1)


# -- given activations ------------------------------------------------------------------------------------------------


def test_what_segments_write_sums_to_what_attention_adds(vla, inputs) -> None:
    keys = [name for name in vla.layout(inputs).segments if name not in ("all", "vision", "action_read")]
    vectors, _ = written_vectors(vla, inputs, ["action_read", "wrist"], keys)
    _, cache = vla.run_with_cache(inputs, names="attn_out")
    for layer in (0, 1):
        out = cache["attn_out", layer]
        for place, query in enumerate(("action_read", "wrist")):
            total = vectors[:, layer].sum((1, 3))[:, place]
            torch.testing.assert_close(total, out.at(query).mean(1), atol=1e-4, rtol=1e-4)


def test_scores_between_segments_are_means_of_scores(vla, inputs) -> None:
    result = qk_between(vla, inputs, ["text"], ["wrist"])
    _, cache = vla.run_with_cache(inputs[1], names=[("q", 1), ("k", 1)])
    q, k = cache["q", 1].at("text")[0], cache["k", 1].at("wrist")[0]
    expected = torch.einsum("qhd,khd->hqk", q, k).mean((1, 2)) / vla.cfg.d_head**0.5
    np.testing.assert_allclose(result.sel(sample=1, layer=1, to="wrist").values.isel({"from": 0}), expected, atol=1e-5)


def test_what_is_written_is_relative_to_the_stream(vla, inputs) -> None:
    result = ov_between(vla, inputs, ["action_read"], ["wrist", "text"], layers=[1], batch=1)
    assert result.values.shape == (2, 1, 4, 1, 2) and bool((result.values > 0).all())
    blind = {"wrist": torch.zeros(())}
    with vla.hooks((("v", 1), lambda v, site: v * blind["wrist"], "wrist")):
        cut = ov_between(vla, inputs, ["action_read"], ["wrist", "text"], layers=[1])
    assert (cut.sel(to="wrist").values == 0).all()
    # What the text writes is the same; only the stream that it is compared with is another.
    ratio = (cut.sel(to="text").values / result.sel(to="text").values).values.reshape(2, 4)
    np.testing.assert_allclose(ratio, ratio[:, :1].repeat(4, axis=1), rtol=1e-4)
    vectors, stream = written_vectors(vla, inputs, ["action_read"], ["text"], layers=[1])
    expected = vectors.norm(dim=-1)[:, 0, :, 0, 0] / stream.norm(dim=-1)[:, 0]
    np.testing.assert_allclose(result.sel(layer=1, to="text").values.isel({"from": 0}), expected, atol=1e-5)
    _, cache = vla.run_with_cache(inputs, names=("resid_mid", 1))
    torch.testing.assert_close(stream[:, 0, 0], cache["resid_mid", 1].at("action_read").mean(1))


# -- toward the action ------------------------------------------------------------------------------------------------


def test_slopes_of_components_add_up_to_the_slope_of_the_write(vla, inputs) -> None:
    found = ov_toward_action(vla, inputs)
    u, _, _ = ov_circuit(vla, 1).svd
    x = torch.randn(vla.cfg.d_model, generator=torch.Generator().manual_seed(1))
    mean = action_directions(vla, inputs).mean(0)
    expected = mean @ (x @ ov_circuit(vla, 1)[2].matrix)
    along = x @ u[2]
    given = (found.slope.sel(layer=1, head=2).values.values * along.numpy()[:, None]).sum(0)
    np.testing.assert_allclose(given, expected, atol=1e-4)
    shares = found.share.values
    assert found.even == 0.25 and bool(((shares > 0) & (shares < 1)).all())
    assert bool((found.agreement.values <= 1 + 1e-6).all())
    assert abs(float(shares.mean()) - found.even) < 0.1  # random circuits against random directions


def test_a_push_of_all_read_tokens_moves_the_action_as_the_direction_says(vla, inputs) -> None:
    directions = action_directions(vla, inputs)
    push = torch.randn(vla.cfg.d_model, generator=torch.Generator().manual_seed(2)) * 1e-3
    last = vla.site(("resid_post", -1))
    after = vla.run_with_hooks(inputs, [(last, lambda x, site: x + push, "action_read")]).values
    before = vla(inputs).values
    np.testing.assert_allclose((after - before).mean(1), directions @ push, rtol=0.05, atol=2e-6)
    own = head_direction(vla, inputs, "dz").sum(1)
    np.testing.assert_allclose(directions[:, 2], own, atol=1e-6)


def test_a_diffusion_head_has_no_direction() -> None:
    vla = make("diffusion")
    with pytest.raises(ValueError, match="diffusion"):
        ov_toward_action(vla, noise_inputs(vla))


@pytest.mark.parametrize("variant", ["discrete", "base"])
def test_policies_that_speak_in_tokens_have_directions_of_logits(variant: str) -> None:
    vla = make(variant)
    found = ov_toward_action(vla, noise_inputs(vla), layers=[1])
    assert "logit" in found.slope.unit and bool(np.isfinite(found.slope.values).all())
