"""Does a cache keep what was asked, nothing else, and survive slicing, selecting and the disk?"""

import gc
import weakref

import pytest
import torch

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import Site
from mist_interp.tracing import ActivationCache
from mist_interp.tracing.checks import noise_inputs


@pytest.fixture
def cache(vla, inputs):
    return vla.run_with_cache(inputs, names="*")[1]


def test_keys(cache, vla):
    assert torch.equal(cache["resid_post", -1], cache["blocks.3.hook_resid_post"])
    assert torch.equal(cache["hook_embed"], cache["resid_pre", 0])
    assert cache[Site("hook_embed")].site == Site("hook_embed")
    assert tuple(cache) == tuple(cache.keys()) == vla.sites("*") and len(cache) == len(vla.sites())
    assert [a.site for _, a in cache.items()] == cache.keys()
    assert ("resid_post", -1) in cache and "hook_embed" in cache and "nonsense" not in cache
    assert cache.stack("resid_post").shape == (4, *cache["resid_post", 0].shape)


def test_what_was_not_captured_is_an_error_and_never_empty(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=[("resid_post", [1, 2]), "embed"])
    assert [str(s) for s in cache] == ["hook_embed", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    for key in (("resid_post", 0), "blocks.0.hook_mlp_out", "mlp_out"):
        with pytest.raises(UnknownName, match="captured site"):
            cache[key]
    with pytest.raises(UnknownName, match="unknown site"):
        cache["resid_pots", 0]
    with pytest.raises(ValueError, match="names 2 captured sites"):
        cache["resid_post"]
    assert cache["embed"].shape == cache["resid_post", 1].shape


def test_a_name_with_one_captured_layer_needs_no_layer(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=("resid_post", 2))
    assert cache["resid_post"].site.layer == 2


def test_the_default_keeps_streams_and_no_insides(vla, inputs):
    _, cache = vla.run_with_cache(inputs)
    kept = {site.hook.short for site in cache}
    assert {"embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "projector.out"} <= kept
    assert not kept & {"q", "k", "v", "z", "pattern", "mlp.pre", "mlp.post"}


def test_nbytes_is_the_sum_of_the_tensors(cache):
    assert cache.nbytes == sum(a.numel() * a.element_size() for _, a in cache.items())
    for _, act in cache.items():
        assert act.values.untyped_storage().nbytes() == act.numel() * act.element_size(), "a view keeps more alive"


def test_tokens_at_capture_equal_tokens_selected_later(vla, inputs, cache):
    names = ["resid_post", "hook_embed", "z", "pattern"]
    for tokens in ("action_read", "proprio", ["bos", "wrist"], "action_read.dz", "text"):
        _, small = vla.run_with_cache(inputs, names=names, tokens=tokens)
        later = vla.run_with_cache(inputs, names=names)[1].select(tokens)
        for site, act in small.items():
            assert torch.equal(act, later[site]), (site, tokens)
        assert small.nbytes < cache.nbytes
    assert small["resid_post", 0].shape[1] == max(n - 1 for n in cache.layout.prompt_lengths)


def test_patches_can_be_selected_everywhere(vla, inputs):
    names = ["projector.out", "embed", ("dino.resid_post", -1)]
    _, cache = vla.run_with_cache(inputs, names=names, tokens="wrist[1, :]")
    assert torch.equal(cache["projector.out"], cache["embed"])
    assert cache["dino.resid_post", -1].shape[1] == 4


def test_a_site_without_such_tokens_is_refused_if_named_and_left_out_if_not(vla, inputs):
    with pytest.raises(UnknownName, match="'action_read'"):
        vla.run_with_cache(inputs, names=["resid_post", "projector.out"], tokens="action_read")
    _, cache = vla.run_with_cache(inputs, tokens="action_read")
    assert {site.hook.axis for site in cache} == {"sequence"}


def test_selecting_is_repeatable_and_checked(cache, vla, inputs):
    read = vla.run_with_cache(inputs, names="resid_post")[1].select("action_read")
    assert torch.equal(read.select("action_read.dz")["resid_post", 1], cache["resid_post", 1].action["dz"])
    with pytest.raises(ValueError, match="only the tokens 'action_read'"):
        read.select("vision")


def test_slices_of_the_batch_drop_their_padding(cache, vla, inputs):
    for sample in (0, 1):
        alone = vla.run_with_cache(inputs[sample], names="*")[1]
        cut = cache[sample]
        assert cut.batch_size == 1
        for site, act in cut.items():
            assert act.shape == alone[site].shape, site
            torch.testing.assert_close(act.values, alone[site].values, atol=2e-5, rtol=1e-4)
    assert cache[0:2]["embed"].shape == cache["embed"].shape
    with pytest.raises(IndexError):
        cache[2]


@pytest.mark.parametrize(("variant", "step"), [("l1", 0), ("base", 0), ("base", 3)])
@pytest.mark.parametrize("tokens", [None, "action_read"])
def test_a_sample_of_a_pattern_leaves_the_padding_of_the_batch(make_vla, variant, step, tokens):
    vla = make_vla(variant)
    inputs = noise_inputs(vla)
    tokens = "all" if step and tokens else tokens
    names = ["pattern", "attn_scores"]
    _, cache = vla.run_with_cache(inputs, names=names, tokens=tokens, step=step)
    for b in (0, 1):
        _, alone = vla.run_with_cache(inputs[b], names=names, tokens=tokens, step=step)
        cut = cache[b]
        assert cut["pattern", 0].shape == alone["pattern", 0].shape
        torch.testing.assert_close(cut["pattern", 2].values, alone["pattern", 2].values, atol=1e-5, rtol=1e-4)
        assert torch.equal(cut[0]["pattern", 2], cut["pattern", 2])


def test_slices_after_tokens_were_chosen(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names="resid_post", tokens="text")
    short = cache[1]["resid_post", 0]
    assert short.shape[1] == cache.layout.prompt_lengths[1] - 1
    assert torch.equal(short, vla.run_with_cache(inputs)[1][1]["resid_post", 0].at("text"))


def test_to_changes_type_and_leaves_the_old_cache(cache):
    half = cache.to(dtype=torch.float16)
    assert half["embed"].dtype == torch.float16 and cache["embed"].dtype == torch.float32
    assert half.nbytes * 2 == cache.nbytes
    assert cache.to(torch.float64)["embed"].dtype == torch.float64
    assert cache.to("cpu")["embed"].device.type == "cpu"


def test_storage_type_and_device_at_capture(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names="embed", dtype=torch.bfloat16, device="cpu")
    assert cache["embed"].dtype == torch.bfloat16


def test_values_are_detached_copies(make_vla, inputs):
    from mist_interp.models import random_policy
    from mist_interp.tracing import HookedVLA

    vla = HookedVLA(random_policy(seed=3))  # parameters that require gradients
    _, cache = vla.run_with_cache(inputs)
    assert not any(act.requires_grad for _, act in cache.items())
    before = cache["resid_pre", 1].clone()
    cache["resid_post", 0].values.zero_()
    assert torch.equal(cache["resid_pre", 1], before)


def test_it_never_holds_the_model(inputs):
    from mist_interp.models import random_policy
    from mist_interp.tracing import HookedVLA

    policy = random_policy(seed=4)
    _, cache = HookedVLA(policy).run_with_cache(inputs)
    gone = weakref.ref(policy)
    del policy
    gc.collect()
    assert gone() is None
    assert cache["embed"].shape[0] == 2


@pytest.mark.parametrize("tokens", [None, "wrist", ["agentview", "proprio"]])
def test_save_and_load(vla, inputs, tmp_path, tokens):
    names = "*" if tokens is None else ["resid_post", "pattern"]
    _, cache = vla.run_with_cache(inputs, names=names, tokens=tokens)
    path = tmp_path / "deep" / "cache.safetensors"
    cache.save(path)
    assert [p.name for p in path.parent.iterdir()] == ["cache.safetensors"]
    loaded = ActivationCache.load(path)
    assert loaded.keys() == cache.keys() and loaded.layout == cache.layout and loaded.model_id == cache.model_id
    for site, act in cache.items():
        assert torch.equal(act, loaded[site]) and loaded[site].labels() == act.labels(), site
    assert torch.equal(loaded["resid_post", -1], cache["resid_post", -1])
    if tokens is None:
        assert torch.equal(loaded["dino.resid_post", 0].wrist[1, 1], cache["dino.resid_post", 0].wrist[1, 1])


def test_another_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no saved activation cache"):
        ActivationCache.load(tmp_path / "other.safetensors")
