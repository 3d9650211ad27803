"""Are gradients right, do integrated shares sum to the change, and do maps show the right patches?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_policies import queries, small

from mist_interp.analysis.gradients import ERROR, gradient_attribution
from mist_interp.analysis.head import action_weights
from mist_interp.core.errors import UnknownName

SITES = [
    "hook_embed",
    ("resid_pre", 2),
    ("resid_mid", 1),
    ("resid_post", 3),
    "projector.hook_out",
    "proprio.hook_out",
    ("dino.resid_post", 1),
    ("z", 1),
    ("mlp.post", 0),
]


def number(vla, inputs, target="t0.dz"):
    return (vla(inputs).values * action_weights(vla, target)).sum((1, 2))


def value_at(vla, inputs, site):
    seen = []
    with vla.hooks((site, lambda values, site: seen.append(values.clone()))):
        vla(inputs)
    return seen[0]


@pytest.mark.parametrize("site", SITES)
def test_gradient_times_input_is_the_slope_toward_the_baseline(site):
    vla = small()
    inputs = queries(vla)
    x, x0 = value_at(vla, inputs, site), 0.5 * value_at(vla, queries(vla, 2, seed=4), site)
    found = gradient_attribution(vla, inputs, "t0.dz", site, "gradient x input", x0)
    step = 1e-3
    ends = []
    for share in (step, -step):
        with vla.hooks((site, lambda values, _, share=share: x + share * (x - x0))):
            ends.append(number(vla, inputs))
    measured = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(found.tokens.sum(1), measured, rtol=0.03, atol=3e-3)


@pytest.mark.parametrize("site", SITES)
def test_integrated_shares_sum_to_the_change(site):
    vla = small()
    inputs = queries(vla)
    x0 = value_at(vla, queries(vla, 2, seed=4), site)
    found = gradient_attribution(vla, inputs, "t0.dz", site, "integrated", x0, points=32, batch=64)
    with vla.hooks((site, lambda values, _: x0)):
        start = number(vla, inputs)
    change = (number(vla, inputs) - start).numpy()
    np.testing.assert_allclose(found.groups.values.sum("group"), change, atol=1e-6)
    assert abs(found.error.values).max() < 0.05 * max(abs(change).max(), 0.2)


def test_zero_is_a_bad_baseline_of_a_stream_and_the_error_says_so():
    vla = small()
    inputs = queries(vla)
    zero = gradient_attribution(vla, inputs, site=("resid_post", 3), baseline="zero", points=64)
    mean = gradient_attribution(vla, inputs, site=("resid_post", 3), baseline="group mean", points=64)
    assert abs(zero.error.values).max() > 0.1 > 5 * abs(mean.error.values).max()


def test_padding_has_no_share_and_groups_hold_everything():
    vla = small()
    inputs = queries(vla)
    found = gradient_attribution(vla, inputs, site="hook_embed", baseline="zero", method="gradient x input")
    layout = vla.layout(inputs)
    assert len(set(layout.lengths)) > 1 and float(found.tokens[1, layout.lengths[1] :].abs().max()) == 0
    rows = found.groups.values.sel(group=[g for g in found.groups.axes["group"] if g != ERROR])
    np.testing.assert_allclose(rows.sum("group"), found.tokens.sum(1), atol=1e-9)
    placeholders = found.groups.sel(group="action_slot").values
    assert (placeholders == 0).all(), "they are empty, so an input of zero has no share"


def test_a_patch_that_alone_differs_has_the_only_share():
    vla = small()
    inputs = queries(vla)
    x = value_at(vla, inputs, "projector.hook_out")
    x0 = x.clone()
    place = vla.cfg.patch_grid[0] * vla.cfg.patch_grid[1] + 1 * vla.cfg.patch_grid[1] + 2  # wrist, row 1, column 2
    x0[:, place] += 1
    found = gradient_attribution(vla, inputs, site="projector.hook_out", baseline=x0, points=8)
    maps = found.patches()
    assert maps.values.dims == ("sample", "camera", "row", "col")
    assert (maps.sel(camera="wrist", row=1, col=2).values != 0).all()
    assert int((maps.values != 0).sum()) == 2
    assert found.top(1)["token"].item() == "wrist r1c2"


def test_words_carry_their_text():
    vla = small()
    picture = np.zeros((56, 56, 3), np.uint8)
    obs = {"agentview_image": picture, "robot0_eye_in_hand_image": picture, "robot0_eef_pos": np.zeros(3)}
    obs |= {"robot0_eef_quat": np.array([0.0, 0, 0, 1]), "robot0_gripper_qpos": np.zeros(2)}
    inputs = vla.prepare(obs, "put the black bowl on the plate")
    words = gradient_attribution(vla, inputs, site="hook_embed", points=4).words()
    assert "'bowl'" in words.axes["token"] and "'the' (2)" in words.axes["token"]
    assert (abs(words.values) > 0).all()


def test_mean_baselines():
    vla = small()
    inputs = queries(vla)
    groups = gradient_attribution(vla, inputs, site="hook_embed", baseline="group mean", points=4).groups
    assert (groups.sel(group=["bos", "proprio", "stop"]).values == 0).all()
    assert (groups.sel(group=["agentview", "wrist", "text"]).values != 0).all()
    with pytest.raises(ValueError, match="prompts of one length"):
        gradient_attribution(vla, inputs, site="hook_embed", baseline="query mean")
    patches = gradient_attribution(vla, inputs, site="projector.hook_out", baseline="query mean")
    assert abs(patches.error.values).max() < 0.05


def test_token_policies_are_measured_in_logits():
    vla = small("discrete")
    inputs = queries(vla)
    found = gradient_attribution(vla, inputs, "t1.dx", ("resid_pre", 1), points=64)
    assert "logit" in found.groups.unit
    assert abs(found.error.values).max() < 0.05
    with pytest.raises(ValueError, match="comes after"):
        gradient_attribution(vla, inputs, "t1.dx", "ln_final.hook_normalized")


def test_other_queries_as_baseline_and_figures(tmp_path):
    vla = small()
    inputs = queries(vla)
    found = gradient_attribution(vla, inputs, baseline=queries(vla, 2, seed=2), points=4)
    pictures = {camera: np.zeros((56, 56, 3), np.uint8) for camera in ("agentview", "wrist")}
    figure = found.plot(sample=1, pictures=pictures)
    figure.savefig(tmp_path / "maps.png")
    assert [axes.get_title("left") for axes in figure.axes[1:3]] == ["agentview", "wrist"]
    state = gradient_attribution(vla, inputs, site="proprio.hook_in", points=4, baseline="zero")
    assert state.groups.axes["group"] == ["proprio", ERROR]
    state.plot().savefig(tmp_path / "state.png")
    with pytest.raises(UnknownName, match="vision"):
        state.patches()


def test_the_policy_is_left_as_it_was():
    vla = small()
    inputs = queries(vla)
    before = vla(inputs).values
    gradient_attribution(vla, inputs, points=2)
    assert torch.equal(vla(inputs).values, before) and vla.edits() == ()
    assert all(p.grad is None and not p.requires_grad for p in vla.policy.parameters())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"method": "integrate"}, UnknownName, "did you mean 'integrated'"),
        ({"baseline": "noise"}, UnknownName, "group mean"),
        ({"site": ("pattern", 1)}, ValueError, r"pairs of tokens"),
        ({"site": "resid_post"}, ValueError, "names 4 sites"),
        ({"points": 0}, ValueError, "at least 1"),
        ({"baseline": torch.zeros(1, 2, 3)}, ValueError, r"shape \(1, 2, 3\)"),
    ],
)
def test_wrong_requests(options, error, text):
    vla = small()
    with pytest.raises(error, match=text):
        gradient_attribution(vla, queries(vla), **options)


@pytest.mark.parametrize(("variant", "text"), [("diffusion", "predicts the noise"), ("base", "one after the other")])
def test_refusals(variant, text):
    vla = small(variant)
    with pytest.raises(ValueError, match=text):
        gradient_attribution(vla, queries(vla))
