"""Does every edit that is data do what its verb says, there and nowhere else, in every variant?"""

import numpy as np
import pytest
import torch

from mist_interp.core.errors import UnknownName
from mist_interp.tracing import (
    Edit,
    Intervention,
    ablate,
    add,
    clamp_projection,
    patch_from,
    project_out,
    replace,
    scale,
    skip,
)
from mist_interp.tracing.checks import noise_inputs

VARIANTS = ["l1", "discrete", "diffusion", "base"]
RESID = ("resid_post", 1)


@pytest.fixture(params=[(v, a) for v in VARIANTS for a in ("eager", "sdpa")], ids="-".join)
def any_vla(request, make_vla):
    variant, attention = request.param
    hooked = make_vla(variant, attention, **({"diffusion_steps": 2} if variant == "diffusion" else {}))
    yield hooked
    assert hooked.edits() == ()


def vector(width=64, seed=0):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def values_at(vla, inputs, site, *edits):
    """Plain values of a site under edits, from the first run of the network."""
    with vla.hooks(*edits):
        _, cache = vla.run_with_cache(inputs, names=[site], step=0)
    return cache[site].values


def pair(vla, inputs, site, *edits):
    return values_at(vla, inputs, site), values_at(vla, inputs, site, *edits)


# -- each verb, in every variant --------------------------------------------------------------------------------------


def test_add(any_vla):
    inputs = noise_inputs(any_vla)
    before, after = pair(any_vla, inputs, RESID, add(RESID, vector(), "action_read", -1.5))
    mask = any_vla.layout(inputs).mask("action_read")
    torch.testing.assert_close((after - before)[mask], (-1.5 * vector()).expand(int(mask.sum()), -1))
    assert torch.equal(after[~mask], before[~mask])
    nothing = any_vla.run_with_hooks(inputs, [add(RESID, vector(), coef=0.0)])
    assert torch.equal(nothing.values, any_vla(inputs).values)


def test_scale_and_zero(any_vla):
    inputs = noise_inputs(any_vla)
    mask = any_vla.layout(inputs).mask("text")
    before, after = pair(any_vla, inputs, ("mlp_out", 2), scale(("mlp_out", 2), 0.25, "text"))
    assert torch.equal(after[mask], before[mask] * 0.25) and torch.equal(after[~mask], before[~mask])
    _, gone = pair(any_vla, inputs, ("mlp_out", 2), ablate(("mlp_out", 2), tokens="text"))
    assert not bool(gone[mask].any()) and torch.equal(gone[~mask], before[~mask])
    same = any_vla.run_with_hooks(inputs, [scale("*resid_post", 1.0)])
    assert torch.equal(same.values, any_vla(inputs).values)


def test_patching_a_forward_with_itself_changes_nothing_and_with_another_everything(any_vla):
    """What leaves the last block of the language model is all that the answer is made of."""
    inputs, other = noise_inputs(any_vla), noise_inputs(any_vla, seed=5)
    last = ("resid_post", -1)
    runs = {"l1": 1, "discrete": 1, "diffusion": 2, "base": any_vla.policy.config.action_slots}[any_vla.cfg.variant]
    for source in (inputs, other):
        expected = any_vla(source)
        caches = [any_vla.run_with_cache(source, names=[last], step=run)[1] for run in range(runs)]
        out = any_vla.run_with_hooks(inputs, [patch_from(cache, last) for cache in caches])
        if any_vla.cfg.variant == "diffusion" and source is other:  # where the noise of the query itself still enters
            assert not torch.equal(out.values, any_vla(inputs).values)
        else:
            assert torch.equal(out.values, expected.values)


def test_a_step_is_one_run_of_the_network(make_vla):
    vla = make_vla("base")
    inputs = noise_inputs(vla)
    for run in (0, 3):
        edit = add(RESID, 50 * vector(), "action_read", step=run)
        before = [vla.run_with_cache(inputs, names=[("resid_pre", 1)], step=i)[1] for i in range(5)]
        with vla.hooks(edit):
            after = [vla.run_with_cache(inputs, names=[RESID, ("resid_pre", 1)], step=i)[1] for i in range(5)]
            assert vla.changes()[0].touched.tolist() == [1, 1]
        for i in range(run + 1):
            assert torch.equal(after[i]["resid_pre", 1], before[i]["resid_pre", 1]), (run, i)


def test_a_step_has_the_names_that_reading_knows(make_vla):
    vla = make_vla("base")
    inputs = noise_inputs(vla)
    for run, names in ((2, ["dz", -5, np.int64(2)]), (6, ["gripper", -1])):
        wanted = vla.run_with_hooks(inputs, [scale(RESID, 3.0, step=run)])
        for step in names:
            with vla.hooks(scale(RESID, 3.0, step=step)):
                assert torch.equal(vla(inputs).normalized, wanted.normalized)
                assert vla.changes()[0].touched.tolist() == [1, 1] and f"step={run}" in vla.changes()[0].edit
        assert Intervention.from_dict(scale(RESID, 3.0, step=names[0]).to_dict()).step == names[0]
    for step, error in (("dq", UnknownName), (7, IndexError), (-8, IndexError)):
        with pytest.raises(error, match="step"), vla.hooks(scale(RESID, 2.0, step=step)):
            pass
    with pytest.raises(TypeError, match="step=True"):
        scale(RESID, 2.0, step=True)


def test_a_later_run_of_base_openvla_reads_no_other_tokens(make_vla):
    vla = make_vla("base")
    inputs = noise_inputs(vla)
    for tokens in ("text", "action_read.dz", ["action_read", "text"]):
        with pytest.raises(ValueError, match="can never act on"), vla.hooks(scale(RESID, 2.0, tokens, step=2)):
            pass
    wanted = vla.run_with_hooks(inputs, [scale(RESID, 3.0, step=2)])
    for tokens in ("all", "action_read", ["action_read"]):
        with vla.hooks(scale(RESID, 3.0, tokens, step=2)):
            assert torch.equal(vla(inputs).normalized, wanted.normalized) and vla.changes()[0].total > 0
    with vla.hooks(scale(RESID, 2.0, "text", step=0)):
        vla(inputs)
        assert vla.changes()[0].total > 0


def test_project_out_and_clamp(any_vla):
    inputs = noise_inputs(any_vla)
    one, two = vector(seed=1), vector(seed=2)
    unit = one.double() / one.double().norm()
    before, after = pair(any_vla, inputs, RESID, project_out(RESID, torch.stack([one, two]), "text"))
    mask = any_vla.layout(inputs).mask("text")
    assert float((after[mask] @ one).abs().max()) < 1e-3 > float((after[mask] @ two).abs().max())
    removed = (before - after)[mask]
    basis = torch.linalg.qr(torch.stack([one, two]).T).Q
    torch.testing.assert_close(removed @ basis @ basis.T, removed, atol=1e-4, rtol=1e-4)
    assert torch.equal(after[~mask], before[~mask])
    _, clamped = pair(any_vla, inputs, RESID, clamp_projection(RESID, 3 * one, -0.2, 0.1, "text"))
    along, allowed = (before.double() @ unit)[mask], (clamped.double() @ unit)[mask]
    torch.testing.assert_close(allowed, along.clamp(-0.2, 0.1), atol=1e-5, rtol=1e-5)
    inside = mask & ((before.double() @ unit) > -0.19) & ((before.double() @ unit) < 0.09)
    assert torch.equal(clamped[inside], before[inside]) and torch.equal(clamped[~mask], before[~mask])
    rest = clamped.double() - (clamped.double() @ unit)[..., None] * unit
    torch.testing.assert_close(rest, before.double() - (before.double() @ unit)[..., None] * unit, atol=1e-5, rtol=0)


def test_a_skipped_block_is_the_identity_bit_for_bit(any_vla):
    inputs = noise_inputs(any_vla)
    with any_vla.skip([1, -1]):
        out, cache = any_vla.run_with_cache(inputs, names=["resid_pre", "resid_post"], step=0)
        assert {str(change.edit) for change in any_vla.changes()} >= {"skip() on blocks.1.hook_attn_out"}
    for layer in (1, 3):
        assert torch.equal(cache["resid_post", layer], cache["resid_pre", layer])
    assert not torch.equal(cache["resid_post", 0], cache["resid_pre", 0])
    assert torch.equal(any_vla.run_with_hooks(inputs, [skip(slice(1, 2)), skip(3)]).values, out.values)
    assert not torch.equal(any_vla(inputs).values, out.values)


def test_an_edit_that_is_data_and_does_nothing_is_bit_identical_at_every_site(any_vla):
    inputs = noise_inputs(any_vla)
    plain = any_vla(inputs)
    with any_vla.hooks(scale("*", 1.0)):
        assert torch.equal(any_vla(inputs).values, plain.values)
        changes = any_vla.changes()
    assert [change.site for change in changes] == list(any_vla.sites())
    assert all(change.total == 0 and bool((change.tokens > 0).all()) for change in changes)


def test_gradients_pass_through(vla, inputs):
    push = torch.zeros(64, requires_grad=True)
    edits = [scale(RESID, 0.5, "text"), skip(2), project_out(RESID, vector())]
    out = vla.run_with_hooks(inputs, [(("resid_post", 0), lambda x, site: x + push), *edits])
    (gradient,) = torch.autograd.grad(out.normalized[..., 2].sum(), push)
    assert bool(gradient.isfinite().all()) and float(gradient.norm()) > 0


# -- heads, neurons, tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["q", "k", "v", "z", "result", "pattern"])
def test_heads(vla, inputs, site):
    key = (site, 2)
    axis = 1 if site == "pattern" else 2
    before, after = pair(vla, inputs, key, scale(key, 0.5, "text", head=[-1, 1]))
    tokens = vla.layout(inputs).mask("text")
    heads = torch.tensor([False, True, False, True])
    shape = (2, 1, -1, 1) if site == "pattern" else (2, -1, 1, 1)
    mask = tokens.reshape(shape) & heads.reshape((1, 4, 1, 1) if axis == 1 else (1, 1, 4, 1))
    assert torch.equal(after, torch.where(mask, before * 0.5, before))


def test_heads_given_in_another_order_get_their_own_values(vla, inputs):
    key = ("z", 1)
    rows = torch.stack([torch.full((16,), float(head)) for head in (3, 0)])
    after = values_at(vla, inputs, key, replace(key, rows, head=[3, 0]))
    layout = vla.layout(inputs).attention_mask
    assert bool((after[:, :, 3][layout] == 3).all()) and bool((after[:, :, 0][layout] == 0).all())


def test_neurons(vla, inputs):
    for site in (("mlp.post", 0), ("mlp.pre", 0)):
        before, after = pair(vla, inputs, site, add(site, torch.tensor([1.0, 2.0]), "action_read.dz", neuron=[5, -1]))
        expected = torch.zeros_like(before)
        expected[..., 5], expected[..., -1] = 1.0, 2.0
        expected[~vla.layout(inputs).mask("action_read.dz")] = 0
        torch.testing.assert_close(after - before, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", ["action_read.t3.dz", "wrist[0:2, 1]", ["bos", "stop"], "action_slot.gripper"])
def test_token_groups(vla, inputs, tokens):
    before, after = pair(vla, inputs, RESID, add(RESID, vector(), tokens))
    assert torch.equal((after != before).any(-1), vla.layout(inputs).mask(tokens))


def test_chunk_steps_inside_the_head(vla, inputs):
    site = ("action_head.post", 0)
    before, after = pair(vla, inputs, site, ablate(site, tokens=["t3", "t5"]))
    assert (after != before).any(-1).any(0).tolist() == [step in (3, 5) for step in range(8)]
    out = vla.run_with_hooks(inputs, [replace("action_head.out", torch.full((7,), 0.25), "t6")])
    torch.testing.assert_close(out.normalized[:, 6], torch.full((2, 7), 0.25))
    assert torch.equal(out.normalized[:, :6], vla(inputs).normalized[:, :6])


def test_padding_counts_as_no_token(vla, inputs):
    with vla.hooks(replace(RESID, vector())):
        out, cache = vla.run_with_cache(inputs, names=RESID)
        (change,) = vla.changes()
    mask = vla.layout(inputs).attention_mask
    assert not bool(mask.all()) and torch.equal(
        cache["resid_post", 1].values[mask], vector().expand(int(mask.sum()), -1)
    )
    assert change.touched.tolist() == change.tokens.tolist() == mask.sum(1).tolist()
    alone = vla.run_with_hooks(inputs[1], [replace(RESID, vector())])
    torch.testing.assert_close(out.values[1:], alone.values)


def test_vision_and_proprio(vla, inputs):
    other = noise_inputs(vla, seed=9)
    _, cache = vla.run_with_cache(other, names=["proprio.hook_out", "projector.hook_out"])
    hybrid = vla.run_with_hooks(inputs, [patch_from(cache, ["proprio.hook_out", "projector.hook_out"])])
    expected = vla(type(inputs)(inputs.input_ids, inputs.attention_mask, other.pixel_values, other.proprio))
    assert torch.equal(hybrid.values, expected.values)
    wrist = vla.run_with_hooks(inputs, [patch_from(cache, "projector.hook_out", "wrist")])
    pixels = torch.cat([inputs.pixel_values[:, :6], other.pixel_values[:, 6:]], 1)
    expected = vla(type(inputs)(inputs.input_ids, inputs.attention_mask, pixels, inputs.proprio))
    torch.testing.assert_close(wrist.values, expected.values)


# -- values that come from elsewhere ----------------------------------------------------------------------------------


def test_patching_takes_one_sample_for_all_or_one_each(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=RESID)
    tokens = "action_read"
    after = values_at(vla, inputs, RESID, patch_from(cache[1], RESID, tokens))
    assert torch.equal(after[0][vla.layout(inputs).mask(tokens)[0]], cache[1]["resid_post", 1].at(tokens)[0])
    three = noise_inputs(vla)
    three = type(three).cat([three, three[0]])
    _, wide = vla.run_with_cache(three, names=RESID)
    with pytest.raises(ValueError, match="holds 3 samples, this query has 2"):
        vla.run_with_hooks(inputs, [patch_from(wide, RESID, tokens)])


def test_patching_between_tokens(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=RESID)
    after = values_at(vla, inputs, RESID, patch_from(cache, RESID, "agentview", from_tokens="wrist"))
    assert torch.equal(after[:, 1 : 1 + 16], cache["resid_post", 1].at("wrist"))
    with pytest.raises(ValueError, match="give the last axes of that shape"):
        vla.run_with_hooks(inputs, [patch_from(cache, RESID, "agentview", from_tokens="action_read")])


def test_prompts_of_other_lengths_are_not_mixed_up(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=RESID)
    assert torch.equal(vla.run_with_hooks(inputs, [patch_from(cache, RESID, "text")]).values, vla(inputs).values)
    swapped = type(inputs).cat([inputs[1], inputs[0]])
    for tokens in ("text", None):
        with pytest.raises(ValueError, match=r"tokens per sample.*a selector that both have"):
            vla.run_with_hooks(swapped, [patch_from(cache, RESID, tokens)])
    with pytest.raises(ValueError, match="tokens per sample"):
        vla.run_with_hooks(inputs, [patch_from(vla.run_with_cache(inputs[0], names=RESID)[1], RESID, "text")])


def test_what_was_not_captured_cannot_be_patched(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=RESID, tokens="action_read")
    patch_from(cache, RESID, "action_read.dz")
    with pytest.raises(ValueError, match=r"'text' was not captured.*only 'action_read'"):
        patch_from(cache, RESID, "text")
    with pytest.raises(ValueError, match="'all' was not captured"):
        patch_from(cache, RESID)
    with pytest.raises(UnknownName, match="captured site"):
        patch_from(cache, ("resid_post", 2), "action_read")


def test_mean_ablation(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=["resid_post", "z"])
    means = cache["resid_post", 1].at("action_read").mean(0)
    after = values_at(vla, inputs, RESID, ablate(RESID, "mean", tokens="action_read", stats=cache))
    mask = vla.layout(inputs).mask("action_read")
    for sample in range(2):
        torch.testing.assert_close(after[sample][mask[sample]], means)
    by_hand = values_at(vla, inputs, RESID, ablate(RESID, "mean", tokens="action_read", stats=means))
    torch.testing.assert_close(after, by_hand)
    one_head = values_at(vla, inputs, ("z", 0), ablate(("z", 0), "mean", head=2, tokens="proprio", stats=cache))
    expected = cache["z", 0].proprio[:, 2].mean(0)
    place = 1 + 32
    torch.testing.assert_close(one_head[:, place, 2], expected.expand(2, -1))
    with pytest.raises(ValueError, match="different numbers of 'text' tokens"):
        ablate(RESID, "mean", tokens="text", stats=cache)


def test_resampling_takes_whole_samples_and_the_same_at_every_site(vla, inputs):
    sources = type(inputs).cat([noise_inputs(vla, seed=seed) for seed in (1, 2, 3)])
    _, cache = vla.run_with_cache(sources, names=["resid_post", "attn_out"])
    drawn = set()
    for seed in range(12):
        edit = ablate([RESID, ("attn_out", 3)], "resample", tokens="wrist", source=cache, seed=seed)
        found = []
        for site in (RESID, ("attn_out", 3)):
            after = values_at(vla, inputs, site, edit)[:, 17:33]
            pool = cache[site].at("wrist")
            found.append([int((pool == row).all(-1).all(-1).nonzero()[0]) for row in after])
        assert found[0] == found[1]
        drawn.add(tuple(found[0]))
    assert len(drawn) > 3


# -- together ---------------------------------------------------------------------------------------------------------


def double(x, site):
    return x * 2


def test_data_and_functions_apply_in_the_order_in_which_they_are_listed(vla, inputs):
    pushed = values_at(vla, inputs, RESID, (RESID, double), add(RESID, vector()))
    doubled = values_at(vla, inputs, RESID, add(RESID, vector()), (RESID, double))
    plain = values_at(vla, inputs, RESID)
    mask = vla.layout(inputs).attention_mask
    torch.testing.assert_close(pushed[mask], (plain * 2 + vector())[mask])
    torch.testing.assert_close(doubled[mask], ((plain + vector()) * 2)[mask])
    site = vla.site(RESID)
    assert torch.equal(values_at(vla, inputs, RESID, Edit(site, add(RESID, vector())), (RESID, double)), doubled)


def test_an_edit_object_moves_an_intervention_to_its_own_place(vla, inputs):
    push = add(("resid_post", 0), vector(), "text")
    before, there = pair(vla, inputs, RESID, Edit(vla.site(RESID), push))
    assert torch.equal((there != before).any(-1), vla.layout(inputs).mask("text"))
    _, narrower = pair(vla, inputs, RESID, Edit(vla.site(RESID), push, "proprio"))
    assert torch.equal((narrower != before).any(-1), vla.layout(inputs).mask("proprio"))
    with pytest.raises(ValueError, match="made with another model"), vla.hooks(Edit(vla.site(("z", 0)), push)):
        pass


def test_scopes_with_data_nest_and_clean_up(vla, inputs):
    plain = vla(inputs)
    outer, inner = add(RESID, vector(), "action_read"), [skip(2), (("mlp_out", 3), double)]
    alone = vla.run_with_hooks(inputs, [outer])
    with vla.hooks(outer):
        with vla.hooks(*inner):
            assert [str(edit) for edit in vla.edits()] == [
                "add(coef=1) on blocks.1.hook_resid_post at 'action_read'",
                "skip() on blocks.2.hook_attn_out",
                "skip() on blocks.2.hook_mlp_out",
                "double on blocks.3.hook_mlp_out",
            ]
            assert torch.equal(vla(inputs).values, vla.run_with_hooks(inputs, []).values)
        with pytest.raises(ZeroDivisionError), vla.hooks(outer, *inner):
            raise ZeroDivisionError
        assert len(vla.edits()) == 1 and torch.equal(vla(inputs).values, alone.values)
    assert vla.edits() == () and torch.equal(vla(inputs).values, plain.values)


def test_the_same_edit_object_twice_is_two_edits(vla, inputs):
    edit = add(RESID, vector())
    twice = vla.run_with_hooks(inputs, [edit, edit])
    once = vla.run_with_hooks(inputs, [add(RESID, vector(), coef=2.0)])
    torch.testing.assert_close(twice.values, once.values, atol=1e-5, rtol=1e-4)


def test_film_and_one_camera(make_vla):
    for sizes in ({"film": True}, {"num_images": 1, "use_proprio": False}):
        vla = make_vla(**sizes)
        inputs = noise_inputs(vla)
        edits = [add(RESID, vector(), "agentview"), ablate("projector.out", tokens="agentview[1, 2]"), skip(0)]
        with vla.hooks(*edits):
            assert not torch.equal(vla(inputs).values, vla.policy(inputs).values)
            assert [int(change.touched[0]) for change in vla.changes()][:2] == [16, 1]
        assert torch.equal(vla(inputs).values, vla.policy(inputs).values)


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (scale(("resid_pots", 1), 2.0), UnknownName, "did you mean 'resid_post'"),
        (scale(("resid_post", 9), 2.0), UnknownName, "layer of resid_post"),
        (add(RESID, torch.ones(7)), ValueError, "64 wide here.*made with another model"),
        (project_out(RESID, torch.ones(7)), ValueError, "made with another model"),
        (clamp_projection(RESID, torch.ones(7), 0), ValueError, "made with another model"),
        (replace(("z", 1), torch.ones(64)), ValueError, "16 wide here"),
        (scale(RESID, 2.0, head=1), ValueError, "has no heads"),
        (scale(("z", 1), 2.0, head=4), IndexError, "no 4, only 0..3"),
        (scale(("z", 1), 2.0, head=[0, -4]), ValueError, "one of 4 twice"),
        (scale(("z", 1), 2.0, neuron=1), ValueError, "has no neurons"),
        (scale(("mlp.post", 1), 2.0, neuron=96), IndexError, "no 96, only 0..95"),
        (add(("mlp.post", 1), torch.ones(3), neuron=[1, 2]), ValueError, "2 wide here"),
        (scale(RESID, 2.0, step=1), IndexError, "runs the language model 1 times"),
        (scale("projector.out", 2.0, step=0), ValueError, "computed once per query"),
        (Intervention("pull", (RESID,)), UnknownName, "kind of intervention 'pull'"),
        (Intervention("knockout", (RESID,), "text", options={"keys": "text"}), ValueError, "works on attention scores"),
    ],
)
def test_what_cannot_fit_is_refused_on_entry(vla, edit, error, message):
    with pytest.raises(error, match=message), vla.hooks((RESID, double), edit):
        raise AssertionError("the scope was entered")
    assert vla.edits() == ()


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (scale(RESID, 2.0, "txt"), UnknownName, "did you mean 'text'"),
        (scale(RESID, 2.0, "agentview[9, 0]"), IndexError, "agentview row 9"),
        (scale(RESID, 2.0, "action_read.t9"), IndexError, "chunk step 9"),
        (add(("dino.resid_post", 0), torch.ones(7)), ValueError, "made with another model"),
        (add(RESID, torch.ones(3, 64), "action_read"), ValueError, "give the last axes of that shape"),
        (add(RESID, torch.ones(2, 56, 1, 64), "action_read"), ValueError, "give the last axes"),
        ((("action_head.post", 0), double, []), ValueError, "selects no token"),
        ((RESID, double, []), ValueError, "selects nothing"),
    ],
)
def test_what_only_the_values_show_is_refused_at_the_first_forward(vla, inputs, edit, error, message):
    plain = vla(inputs)
    with pytest.raises(error, match=message) as caught:
        vla.run_with_hooks(inputs, [edit])
    assert caught.value.__notes__[0].startswith("in a hook at ") and vla.changes() == ()
    assert vla.edits() == () and torch.equal(vla(inputs).values, plain.values)


def test_an_edit_that_brings_in_a_nan_is_named_with_its_site(vla, inputs):
    def spoil(x, site):
        return x / 0

    overflow = scale(("resid_post", 2), 1e38, "text")
    for edit, name in ((("resid_post", spoil), "spoil"), (overflow, r"scale\(factor=1e\+38\)")):
        layer = 0 if edit is not overflow else 2
        match = rf"{name} on blocks.{layer}.hook_resid_post.* wrote NaN or infinite values"
        with pytest.raises(FloatingPointError, match=match):
            vla.run_with_hooks(inputs, [edit])
    assert vla.edits() == () and vla.changes() == ()
