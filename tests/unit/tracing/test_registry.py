"""Is every row of the registry true: its module, its shape, its sentence, in every variant?"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mist_interp.core.axes import ReadAxis
from mist_interp.core.errors import UnknownName
from mist_interp.core.hooks import HOOKS
from mist_interp.core.names import Catalogue, Site
from mist_interp.tracing.checks import noise_inputs
from mist_interp.tracing.locations import locate
from mist_interp.tracing.shapes import evaluate

VARIANTS = {
    "l1": {},
    "discrete": {},
    "diffusion": {"diffusion_steps": 2},
    "base": {},
    "film": {"film": True},
    "one camera, no state": {"num_images": 1, "use_proprio": False},
}
shared = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(params=VARIANTS)
def every_vla(request, make_vla):
    name = request.param if request.param in ("discrete", "diffusion", "base") else "l1"
    return make_vla(name, "eager", **VARIANTS[request.param])


@shared
@given(data=st.data())
def test_name_to_module_to_name(every_vla, data):
    site = data.draw(st.sampled_from(every_vla.sites()))
    place = locate(site, every_vla.policy)
    assert every_vla.module(str(site)) is every_vla.policy.get_submodule(place.path)
    back = [s for s in every_vla.sites_at(place.path) if locate(s, every_vla.policy).port == place.port]
    # Entering block 0 has two names.
    alias = {"hook_embed", "blocks.0.hook_resid_pre"}
    assert site in back and ({str(s) for s in back} in ({str(site)}, alias))
    assert every_vla.site(str(site)) == every_vla.site(site.key) == site


def test_shapes_are_as_promised(every_vla):
    inputs = noise_inputs(every_vla)
    for step in (0, -1):
        _, cache = every_vla.run_with_cache(inputs, names="*", step=step)
        promised = every_vla.shapes(inputs, step=step)
        assert list(promised) == [str(site) for site in cache]
        for site, activation in cache.items():
            assert promised[str(site)] == tuple(activation.shape), (site, step)


def test_edits_that_do_nothing_at_all_sites_at_once_are_bit_identical(every_vla):
    """One site at a time in test_numerics.py; here with FiLM and with fewer tokens, too."""
    inputs = noise_inputs(every_vla)
    plain, seen = every_vla(inputs), set()

    def copy(x, site):
        seen.add(site)
        return x.clone()

    assert torch.equal(plain.values, every_vla.run_with_hooks(inputs, [("*", copy)]).values)
    assert seen == set(every_vla.sites())


def test_every_variant_has_or_refuses_every_name(every_vla):
    have = {site.hook.pattern for site in every_vla.sites()}
    for hook in HOOKS:
        if hook.pattern not in have:
            with pytest.raises(ValueError, match="is not available: "):
                every_vla.sites(hook.pattern)


@pytest.mark.parametrize("shape", ["(batch, a - b)", "(batch, f(a))", "(batch, -1)", "(batch, a[0])"])
def test_a_shape_holds_sums_and_products_only(shape):
    assert evaluate("(batch, 2 * (a + 1), b)", {"batch": 5, "a": 3, "b": 7}) == (5, 8, 7)
    with pytest.raises(ValueError, match="names, numbers"):
        evaluate(shape, {"batch": 1, "a": 1, "b": 1, "f": 1})


# -- what the names hold ----------------------------------------------------------------------------------------------


def test_scores_become_the_pattern(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=["q", "k", "attn_scores", "pattern"])
    padding = ~cache.layout.attention_mask
    for i in range(4):
        scores = cache["attn_scores", i].values
        torch.testing.assert_close(scores.softmax(-1), cache["pattern", i].values)
        q, k = cache["q", i].values.transpose(1, 2), cache["k", i].values.transpose(1, 2)
        raw = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        seen = ~padding[:, None, None].expand_as(raw)
        torch.testing.assert_close(scores[seen], raw[seen], atol=1e-5, rtol=1e-4)
        assert bool((scores[~seen] < -1e30).all()), "the mask is part of the scores"
    assert cache["attn_scores", 1].between("action_read.dz", "wrist").shape == (2, 4, 8, 16)


def test_head_results_sum_to_what_attention_adds(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=["result", "z", "attn_out"])
    for i in range(4):
        torch.testing.assert_close(cache["result", i].values.sum(2), cache["attn_out", i].values, atol=1e-5, rtol=1e-4)
        weight = vla.module(f"blocks.{i}.attn").o_proj.weight
        one = cache["z", i].values[:, :, 2] @ weight[:, 32:48].T
        torch.testing.assert_close(cache["result", i].values[:, :, 2], one)


def test_an_edit_of_one_head_result_is_that_head_replaced(vla, inputs):
    """Removing what head 2 says is the same at `result` and at `z`."""
    site, z = ("result", 1), ("z", 1)

    def mute(x, _):
        x = x.clone()
        x[:, :, 2] = 0
        return x

    with vla.hooks((site, mute)):
        by_result, cache = vla.run_with_cache(inputs, names=["result", "attn_out"])
    torch.testing.assert_close(by_result.values, vla.run_with_hooks(inputs, [(z, mute)]).values, atol=1e-5, rtol=1e-4)
    assert not bool(cache["result", 1].values[:, :, 2].any()), "the cache shows what the edit wrote"
    torch.testing.assert_close(cache["result", 1].values.sum(2), cache["attn_out", 1].values, atol=1e-5, rtol=1e-4)
    twice = vla.run_with_hooks(inputs, [(site, mute), (site, mute)])
    assert torch.equal(twice.values, by_result.values)


def test_scales_divide(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names="*")
    rows = [(("ln1.scale", i), ("ln1.normalized", i), ("resid_pre", i), f"blocks.{i}.ln1") for i in range(4)]
    rows += [(("ln2.scale", i), ("ln2.normalized", i), ("resid_mid", i), f"blocks.{i}.ln2") for i in range(4)]
    rows += [("ln_final.scale", "ln_final.normalized", ("resid_post", 3), "ln_final")]
    for scale, normalized, stream, norm in rows:
        expected = cache[stream].values / cache[scale].values * vla.module(norm).weight
        torch.testing.assert_close(cache[normalized].values, expected)


@pytest.mark.parametrize("short, reader", [("ln1", "q"), ("ln2", "mlp.pre"), ("ln_final", "action_head.in")])
def test_twice_the_scale_is_half_the_output(vla, inputs, short, reader):
    key = f"{short}.scale" if short == "ln_final" else (f"{short}.scale", 1)
    seen = f"{short}.normalized" if short == "ln_final" else (f"{short}.normalized", 1)
    _, before = vla.run_with_cache(inputs, names=[seen])
    with vla.hooks((key, lambda x, site: 2 * x)):
        _, after = vla.run_with_cache(inputs, names=[seen, key])
    torch.testing.assert_close(after[seen].values, before[seen].values / 2)
    with pytest.raises(ValueError, match="scale of 0") as error:
        vla.run_with_hooks(inputs, [(key, lambda x, site: 0 * x)])
    assert f"{short}.hook_scale" in error.value.__notes__[0]


def test_a_stream_that_was_edited_is_what_its_scale_is_computed_from(vla, inputs):
    """Two sites at one module: the order in which they are listed must not matter."""
    push, freeze = (("resid_mid", 1), lambda x, s: x * 3), (("ln2.scale", 1), lambda x, s: x * 2)
    one, other = vla.run_with_hooks(inputs, [push, freeze]), vla.run_with_hooks(inputs, [freeze, push])
    assert torch.equal(one.values, other.values)
    half, mute = (("z", 1), lambda x, s: x * 0.5), (("result", 1), lambda x, s: x * 0)
    with vla.hooks(mute, half):
        _, cache = vla.run_with_cache(inputs, names=("attn_out", 1))
    assert float(cache["attn_out"].values.abs().max()) < 1e-5


def test_the_towers_streams_add_up(make_vla):
    for sizes in ({}, {"film": True}):
        vla = make_vla(**sizes)
        _, cache = vla.run_with_cache(noise_inputs(vla), names="vision.*")
        for tower, depth in (("dino", 3), ("siglip", 2)):
            for i in range(depth):
                parts = {n: cache[f"{tower}.{n}", i].values for n in ("resid_pre", "attn_out", "resid_mid", "mlp_out")}
                after = cache[f"{tower}.resid_post", i].values
                torch.testing.assert_close(after, parts["resid_mid"] + parts["mlp_out"])
                if not sizes:
                    torch.testing.assert_close(parts["resid_mid"], parts["resid_pre"] + parts["attn_out"])
                if i:
                    assert torch.equal(parts["resid_pre"], cache[f"{tower}.resid_post", i - 1].values)


def test_logits_are_what_the_tokens_are_chosen_by(make_vla):
    vla = make_vla("discrete")
    inputs = noise_inputs(vla)
    out, cache = vla.run_with_cache(inputs, names=["logits", "ln_final.normalized"])
    logits = cache["logits"]
    assert isinstance(logits.axis, ReadAxis) and logits.labels()[:2] == ["t0.dx", "t0.dy"]
    assert torch.equal(logits.action.values.argmax(-1), out.token_ids)
    assert torch.equal(logits.action["t3.dz"].argmax(-1), out.token_ids[:, 3, 2])
    states = cache["ln_final.normalized"].at("action_read")
    assert torch.equal(vla.module("unembed")(states), logits.values)
    one = vla.run_with_cache(inputs, names="logits", tokens="action_read.dz")[1]["logits"]
    assert torch.equal(one, logits.action["dz"]) and one.labels()[-1] == "t7.dz"
    with pytest.raises(UnknownName, match="'action_read'"):
        logits.at("text")
    base = make_vla("base")
    out, cache = base.run_with_cache(noise_inputs(base), names="logits", step=3)
    assert torch.equal(cache["logits"].values[:, 0].argmax(-1), out.token_ids[:, 0, 3])
    assert cache["logits"].labels() == ["t0.droll"]


def test_before_an_edit_and_after_it(vla, inputs):
    site = ("resid_post", 1)
    plain = vla.run_with_cache(inputs, names=["resid_post", "ln1.scale"])[1]
    with vla.hooks(
        (site, lambda x, s: x + 1), (("resid_post", 2), lambda x, s: x * 2), (("ln1.scale", 2), lambda x, s: 3 * x)
    ):
        before = vla.run_with_cache(inputs, names=["resid_post", "ln1.scale"], when="before")[1]
        after = vla.run_with_cache(inputs, names=["resid_post", "ln1.scale"])[1]
    assert torch.equal(before[site], plain[site]) and torch.equal(after[site], plain[site] + 1)
    assert not torch.equal(before["resid_post", 2], plain["resid_post", 2]), "the edit above is in it"
    assert torch.equal(before["resid_post", 2] * 2, after["resid_post", 2])
    assert torch.equal(before["ln1.scale", 2] * 3, after["ln1.scale", 2])
    with pytest.raises(UnknownName, match="'before'"):
        vla.run_with_cache(inputs, when="befor")


def test_the_default_capture_has_nothing_expensive(vla, inputs):
    _, cache = vla.run_with_cache(inputs)
    assert not {site.hook.short for site in cache} & {"result", "attn_scores", "ln1.scale", "dino.resid_mid"}
    stream = cache["resid_post", 0].nbytes
    assert all(activation.nbytes <= stream for site, activation in cache.items() if site.hook.axis == "sequence")


def test_parts_by_name(vla):
    layers = vla.policy.language_model.model.layers
    assert vla.module("blocks.2.attn") is layers[2].self_attn and vla.module("blocks.-1") is layers[3]
    assert vla.module("action_head.blocks.1") is vla.policy.action_head.model.mlp_resnet_blocks[1]
    assert vla.module("vision.siglip.blocks.0") is vla.policy.vision_backbone.fused_featurizer.blocks[0]
    assert (
        vla.module("projector") is vla.policy.projector and vla.module("unembed") is vla.policy.language_model.lm_head
    )
    assert vla.module("language_model.model.norm") is vla.module("ln_final")
    assert {str(s) for s in vla.sites_at("ln_final")} == {"ln_final.hook_scale", "ln_final.hook_normalized"}
    for wrong, nearest in (("blocks.2.atn", "'blocks"), ("blocks.4.mlp", "0"), ("ln_finale", "'ln_final'")):
        with pytest.raises(UnknownName, match=nearest):
            vla.module(wrong)


def test_parts_that_a_variant_lacks(make_vla):
    with pytest.raises(UnknownName, match="module 'proprio'"):
        make_vla("base").module("proprio")
    with pytest.raises(UnknownName, match="action_head"):
        make_vla("discrete").module("action_head.blocks.0")


def test_a_catalogue_describes_itself():
    text = Catalogue({"llm": 2}).describe(["result", Site("hook_embed")])
    assert text.splitlines()[2] == "blocks.{i}.attn.hook_result  [0..1]  (batch, token, head, d_model)"


def test_the_runs_of_base_openvla_have_names(make_vla):
    vla = make_vla("base")
    inputs = noise_inputs(vla)
    _, cache = vla.run_with_cache(inputs, names="resid_post", step="droll")
    assert cache.step == 3 and cache["resid_post", 0].labels() == ["t0.droll"]
    assert vla.shapes(inputs, "pattern", step="droll")["blocks.0.attn.hook_pattern"][2:] == (1, 26 + 3)
    with pytest.raises(UnknownName, match="'droll'"):
        vla.run_with_cache(inputs, step="dorll")
    with pytest.raises(UnknownName, match="step of a l1 policy"):
        make_vla().run_with_cache(noise_inputs(make_vla()), step="dz")


@pytest.mark.parametrize("short", ["k", "v"])
def test_edited_keys_and_values_stay_edited_in_later_runs(make_vla, short):
    """Base OpenVLA keeps them for the tokens that it generates next."""
    vla = make_vla("base")
    inputs = noise_inputs(vla)
    with vla.hooks(((short, 1), lambda x, site: torch.zeros_like(x))):
        for step in (0, 3):
            _, cache = vla.run_with_cache(inputs, names=[(short, 1), ("z", 1), ("attn_scores", 1)], step=step)
            assert not bool(cache[short].values.any())
            scores = cache["attn_scores"].values
            assert scores.shape[-1] == vla.layout(inputs).length + step, "nothing of the earlier runs is lost"
            gone = cache["z"].values if short == "v" else scores[scores > -1e30]
            assert float(gone.abs().max()) == 0
    _, cache = vla.run_with_cache(inputs, names=(short, 1), step=3)
    assert bool(cache[short].values.any())
