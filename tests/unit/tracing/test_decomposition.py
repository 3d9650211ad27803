"""Do the terms of the residual stream sum to it, on random policies and on mini?"""

import pytest
import torch

from mist_interp.core.errors import UnknownName
from mist_interp.tracing import HookedVLA
from mist_interp.tracing.checks import noise_inputs

NAMES = ["embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "result", "mlp.post"]


@pytest.fixture
def cache(vla, inputs):
    return vla.run_with_cache(inputs, names=NAMES)[1]


def close(one, other):
    torch.testing.assert_close(one, other, atol=2e-5 * float(other.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("variant", ["l1", "discrete", "diffusion", "base"])
def test_the_rows_sum_to_the_stream(make_vla, variant):
    vla = make_vla(variant, **({"diffusion_steps": 2} if variant == "diffusion" else {}))
    inputs = noise_inputs(vla)
    for step in (0, -1):
        _, cache = vla.run_with_cache(inputs, names=NAMES, step=step)
        for layer, target in ((None, ("resid_post", -1)), (2, ("resid_pre", 2)), (-1, ("resid_pre", 3))):
            close(cache.decompose_resid(layer).total(), cache[target].values)
            assert torch.equal(cache.accumulated_resid(layer).values[-1], cache[target].values)
            full = cache.get_full_resid_decomposition(layer)
            torch.testing.assert_close(full.total(), cache[target].values, atol=1e-5, rtol=1e-6)
            assert float(full["rest"].abs().max()) < 1e-4 * float(cache[target].values.abs().max())


def test_the_rows_sum_to_the_stream_on_mini():
    vla = HookedVLA.from_pretrained("mini")
    inputs = noise_inputs(vla)[0]
    _, cache = vla.run_with_cache(inputs, names=["resid_post", "embed", "attn_out", "mlp_out", "result"])
    close(cache.decompose_resid().total(), cache["resid_post", -1].values)
    close(cache.get_full_resid_decomposition().total(), cache["resid_post", -1].values)
    heads, labels = cache.stack_head_results()
    assert heads.shape[0] == len(labels) == vla.cfg.n_layers * vla.cfg.n_heads


def test_labels_and_shapes(cache):
    values, labels = cache.decompose_resid()
    assert labels == ("embed", *(f"{i}_{part}_out" for i in range(4) for part in ("attn", "mlp")))
    assert values.shape == (9, *cache["embed"].shape)
    assert cache.decompose_resid(mode="mlp").labels == ("embed", "0_mlp_out", "1_mlp_out", "2_mlp_out", "3_mlp_out")
    assert cache.accumulated_resid().labels == ("0_pre", "1_pre", "2_pre", "3_pre", "final_post")
    assert cache.accumulated_resid(1, incl_mid=True).labels == ("0_pre", "0_mid", "1_pre")
    assert torch.equal(cache.accumulated_resid(incl_mid=True)["2_mid"], cache["resid_mid", 2].values)
    full = cache.get_full_resid_decomposition(1)
    assert full.labels == ("L0H0", "L0H1", "L0H2", "L0H3", "0_mlp_out", "embed", "rest") and len(full) == 7
    assert cache.decompose_resid(0).labels == ("embed",)


def test_tokens(cache, vla, inputs):
    at_read = cache.decompose_resid(tokens="action_read")
    assert at_read.values.shape == (9, 2, 56, 64)
    assert torch.equal(at_read["1_mlp_out"], cache["mlp_out", 1].at("action_read"))
    _, small = vla.run_with_cache(inputs, names=NAMES, tokens="action_read")
    assert torch.equal(small.decompose_resid().values, at_read.values)
    assert torch.equal(
        small.decompose_resid(tokens="action_read.dz").values, cache.decompose_resid(tokens="action_read.dz").values
    )


def test_heads_and_neurons_sum_to_their_layer(cache, vla):
    heads = cache.stack_head_results(1)
    close(heads.total(), cache["attn_out", 0].values)
    neurons = cache.stack_neuron_results(vla, 2)
    assert len(neurons) == vla.cfg.d_mlp and neurons.labels[17] == "L2N17"
    close(neurons.total(), cache["mlp_out", 2].values)
    few = cache.stack_neuron_results(vla, -2, [17, 3], tokens="proprio")
    assert few.labels == ("L2N17", "L2N3") and torch.equal(few.values[0], neurons["L2N17"][:, 33:34])


def test_an_edit_of_the_stream_is_the_rest(vla, inputs):
    push = torch.ones(64)
    with vla.hooks((("resid_post", 1), lambda x, site: x + push)):
        _, cache = vla.run_with_cache(inputs, names=NAMES)
    stack = cache.decompose_resid(rest=True)
    close(stack["rest"], push.expand_as(stack["rest"]))
    close(stack.total(), cache["resid_post", -1].values)
    close(cache.get_full_resid_decomposition()["rest"], push.expand_as(stack["rest"]))
    assert not torch.allclose(cache.decompose_resid().total(), cache["resid_post", -1].values, atol=0.1)
    close(cache.decompose_resid(mode="attn", rest=True).total(), cache["resid_post", -1].values)
    close(cache.stack_head_results(rest=True).total(), cache["resid_post", -1].values)


def test_what_was_not_captured_is_named(vla, inputs, cache):
    _, few = vla.run_with_cache(inputs, names=["resid_post", "attn_out"])
    for call, missing in (
        (few.decompose_resid, "'embed'"),
        (few.get_full_resid_decomposition, "'result'"),
        (lambda: few.stack_neuron_results(vla, 0), "'mlp.post'"),
    ):
        with pytest.raises(UnknownName, match=missing):
            call()
    with pytest.raises(UnknownName, match="layer 7"):
        cache.decompose_resid(7)
    with pytest.raises(UnknownName, match="'attn'"):
        cache.decompose_resid(mode="atn")
    with pytest.raises(UnknownName, match="'3_mlp_out'"):
        cache.decompose_resid()["3_mlp_ut"]
    with pytest.raises(ValueError, match="no heads"):
        cache.stack_head_results(0)
    with pytest.raises(ValueError, match="names no neuron"):
        cache.stack_neuron_results(vla, 0, [])


def test_prompts_of_different_length_need_one_sample(cache):
    with pytest.raises(ValueError, match="take one sample"):
        cache.decompose_resid(tokens="text")
    assert cache[1].decompose_resid(tokens="text").values.shape[1] == 1


def test_a_forward_that_stopped_early(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names="embed", stop_at_layer=2)
    with pytest.raises(UnknownName, match="attn_out"):
        cache.decompose_resid(2)
    names = [("attn_out", [0, 1]), ("mlp_out", [0, 1]), ("resid_post", 1), "embed"]
    _, cache = vla.run_with_cache(inputs, names=names, stop_at_layer=2)
    close(cache.decompose_resid(2).total(), cache["resid_post", 1].values)


def test_two_norms_of_a_stack(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=[*NAMES, "ln_final.*"])
    norm, output = vla.module("ln_final"), cache["ln_final.normalized"].values
    frozen = cache.get_full_resid_decomposition().frozen_norm(norm, cache["ln_final.scale"])
    close(frozen.total(), output)
    streams = cache.accumulated_resid().renorm(norm)
    assert torch.equal(streams["final_post"], output) and not streams.values.requires_grad
    sizes = (streams["2_pre"] / norm.weight).pow(2).mean(-1)
    torch.testing.assert_close(sizes, torch.ones_like(sizes), atol=1e-4, rtol=1e-4)
