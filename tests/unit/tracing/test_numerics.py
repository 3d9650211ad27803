"""Is every named activation what its sentence says, and does tracing leave the numbers alone?"""

import pytest
import torch
from torch.nn.functional import silu

from mist_interp.tracing.checks import noise_inputs
from mist_interp.tracing.locations import locate

VARIANTS = ["l1", "discrete", "diffusion", "base"]


@pytest.fixture(params=[(v, a) for v in VARIANTS for a in ("eager", "sdpa")], ids="-".join)
def any_vla(request, make_vla):
    variant, attention = request.param
    return make_vla(variant, attention, **({"diffusion_steps": 2} if variant == "diffusion" else {}))


def test_reading_changes_nothing(any_vla):
    inputs = noise_inputs(any_vla)
    plain = any_vla.policy(inputs)
    read, cache = any_vla.run_with_cache(inputs, names="*")
    assert torch.equal(plain.normalized, read.normalized) and torch.equal(plain.values, read.values)
    assert len(cache) == len(any_vla.sites())
    assert torch.equal(any_vla(inputs).values, plain.values)


def test_an_edit_that_does_nothing_is_bit_identical_at_every_site(any_vla):
    inputs = noise_inputs(any_vla)
    plain = any_vla(inputs)
    one_by_one = (
        [site for site in any_vla.sites() if site.layer in (None, 1)] if any_vla.cfg.attention == "eager" else []
    )
    for sites in ["*", *one_by_one]:
        edited = any_vla.run_with_hooks(inputs, [(sites, lambda x, site: x.clone())])
        assert torch.equal(plain.values, edited.values), sites
    for idle in (lambda x, site: None, lambda x, site: x):
        assert torch.equal(plain.values, any_vla.run_with_hooks(inputs, [("*", idle)]).values)


def test_an_edit_reaches_the_action_from_every_site(vla, inputs):
    plain = vla(inputs)
    generator = torch.Generator().manual_seed(0)
    for site in vla.sites():
        edited = vla.run_with_hooks(inputs, [(site, lambda x, _: torch.randn(x.shape, generator=generator).abs())])
        assert not torch.equal(plain.values, edited.values), site
        assert bool(edited.values.isfinite().all())


def test_sites_are_the_tensors_of_the_modules(vla, inputs):
    """Against plain torch hooks on the published module names."""
    seen = {}

    def remember(name):
        def hook(module, args, kwargs, output):
            seen[name, "in"] = args[0] if args else kwargs.get("hidden_states")
            seen[name, "out"] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [m.register_forward_hook(remember(n), with_kwargs=True) for n, m in vla.policy.named_modules()]
    vla.policy(inputs)
    for handle in handles:
        handle.remove()
    _, cache = vla.run_with_cache(inputs, names="*")
    for i in range(4):
        block = f"language_model.model.layers.{i}"
        assert torch.equal(cache["resid_pre", i], seen[block, "in"])
        assert torch.equal(cache["resid_post", i], seen[block, "out"])
        assert torch.equal(cache["attn_out", i], seen[f"{block}.self_attn", "out"])
        assert torch.equal(cache["resid_mid", i], seen[f"{block}.post_attention_layernorm", "in"])
        assert torch.equal(cache["mlp_out", i], seen[f"{block}.mlp", "out"])
        assert torch.equal(cache["mlp.pre", i], seen[f"{block}.mlp.gate_proj", "out"])
        assert torch.equal(cache["mlp.post", i], seen[f"{block}.mlp.down_proj", "in"])
        assert torch.equal(cache["z", i].values.flatten(2), seen[f"{block}.self_attn.o_proj", "in"])
    assert torch.equal(cache["embed"], seen["language_model.model.layers.0", "in"])
    assert torch.equal(cache["ln_final.normalized"], seen["language_model.model.norm", "out"])
    assert torch.equal(cache["projector.out"], seen["projector", "out"])
    assert torch.equal(cache["proprio.in"], seen["proprio_projector", "in"])
    assert torch.equal(cache["proprio.out"], seen["proprio_projector", "out"])
    assert torch.equal(cache["action_head.in"], seen["action_head.model", "in"])
    assert torch.equal(cache["action_head.post", 1], seen["action_head.model.mlp_resnet_blocks.1", "out"])
    assert torch.equal(cache["action_head.out"], seen["action_head", "out"])
    for short, tower in (("dino.resid_post", "featurizer"), ("siglip.resid_post", "fused_featurizer")):
        block = seen[
            f"vision_backbone.{tower}.blocks.0", "out"
        ]  # (batch * camera, token, d), cameras of a sample together
        assert torch.equal(cache[short, 0].values.unflatten(1, (2, -1)).flatten(0, 1), block)


def test_the_residual_stream_adds_up(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names="*")
    for i in range(4):
        torch.testing.assert_close(cache["resid_mid", i], cache["resid_pre", i] + cache["attn_out", i])
        torch.testing.assert_close(cache["resid_post", i], cache["resid_mid", i] + cache["mlp_out", i])
    for i in range(3):
        assert torch.equal(cache["resid_post", i], cache["resid_pre", i + 1])


def test_attention_adds_up(vla, inputs):
    """softmax(q k) is the pattern, pattern v is z, z times the output matrix is what attention adds."""
    _, cache = vla.run_with_cache(inputs, names="*")
    padding = ~cache.layout.attention_mask
    for i in range(4):
        q, k, v, z = (cache[name, i].values.transpose(1, 2) for name in ("q", "k", "v", "z"))
        pattern = cache["pattern", i].values
        scores = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(padding[:, None, None], float("-inf"))
        torch.testing.assert_close(pattern, scores.softmax(-1), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
        torch.testing.assert_close(z, pattern @ v, atol=1e-5, rtol=1e-4)
        layer = vla.policy.language_model.model.layers[i]
        torch.testing.assert_close(cache["attn_out", i].values, layer.self_attn.o_proj(cache["z", i].values.flatten(2)))


def test_neurons_add_up(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names="*")
    for i in range(4):
        neurons = silu(cache["mlp.pre", i].values) * cache["mlp.pre_linear", i].values
        torch.testing.assert_close(cache["mlp.post", i].values, neurons)
        torch.testing.assert_close(
            cache["mlp_out", i].values, vla.policy.language_model.model.layers[i].mlp.down_proj(neurons)
        )


def test_projected_patches_stand_in_the_sequence(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=["projector.out", "proprio.out", "embed"])
    assert torch.equal(cache["projector.out"], cache["embed"].at("vision"))
    assert torch.equal(cache["projector.out"].wrist[2, 1], cache["embed"].wrist[2, 1])
    assert torch.equal(cache["proprio.out"].proprio, cache["embed"].proprio)


def test_q_and_k_are_after_rotation(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=["q", "k"])
    placeholders = cache["q", 0].at("action_slot")  # all the same before rotation, since their embeddings are all empty
    assert not torch.allclose(placeholders[:, 0], placeholders[:, 1]) or not bool(placeholders.any())
    norms = cache["k", 1].values.norm(dim=-1)
    assert bool((norms > 0).all())


def test_an_edit_of_the_middle_stays_in_the_stream(vla, inputs):
    """The block adds its middle again after the MLP; an edit that only fed the MLP would be lost there."""
    new = torch.randn(2, vla.layout(inputs).length, vla.cfg.d_model, generator=torch.Generator().manual_seed(0))
    with vla.hooks((("resid_mid", 1), lambda x, site: new)):
        _, cache = vla.run_with_cache(inputs, names=["resid_mid", "mlp_out", "resid_post"])
    assert torch.equal(cache["resid_mid", 1], new)
    torch.testing.assert_close(cache["resid_post", 1], new + cache["mlp_out", 1])


@pytest.mark.parametrize("short", ["q", "k", "v", "pattern", "z", "attn_out", "mlp.pre", "mlp.post", "resid_pre"])
def test_an_edit_is_what_the_cache_then_shows(vla, inputs, short):
    shape = vla.run_with_cache(inputs, names=(short, 2))[1][short].shape
    new = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    with vla.hooks(((short, 2), lambda x, site: new)):
        _, cache = vla.run_with_cache(inputs, names="*")
    assert torch.equal(cache[short, 2], new)
    if short == "z":
        layer = vla.policy.language_model.model.layers[2]
        torch.testing.assert_close(cache["attn_out", 2].values, layer.self_attn.o_proj(new.flatten(2)))
    if short in ("v", "pattern"):
        v, pattern = cache["v", 2].values.transpose(1, 2), cache["pattern", 2].values
        torch.testing.assert_close(cache["z", 2].values.transpose(1, 2), pattern @ v, atol=1e-5, rtol=1e-4)


def test_vision_edits_reach_the_right_camera(vla, inputs):
    def blank(x, site):
        return torch.zeros_like(x)

    _, before = vla.run_with_cache(inputs, names="projector.out")
    for site in (("dino.resid_post", -1), ("siglip.resid_post", -1)):
        with vla.hooks((site, blank, "wrist")):
            _, after = vla.run_with_cache(inputs, names="projector.out")
        a, b = before["projector.out"], after["projector.out"]
        assert torch.equal(a.agentview.values, b.agentview.values)
        assert bool((a.wrist.values != b.wrist.values).any(-1).all())


def test_every_site_has_a_place_in_the_tree(any_vla):
    modules = dict(any_vla.policy.named_modules())
    for site in any_vla.sites():
        assert locate(site, any_vla.policy).path in modules, site
