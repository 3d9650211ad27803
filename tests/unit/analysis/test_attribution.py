"""Do shares of parts sum to the action, and does a share say what its part does?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_policies import queries, small

from mist_interp.analysis.attribution import EXTRA, direct_action_attribution
from mist_interp.analysis.head import action_weights
from mist_interp.core.errors import UnknownName

UNITS = {"component": 9, "head": 4 * 4 + 1 + 4, "neuron": 4 * 96 + 1 + 4}


def number(vla, inputs, target):
    return ((vla(inputs).values) * action_weights(vla, target)).sum((1, 2)).numpy()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("target", ["t0.dz", "gripper", {"t1.dx": 1.0, "t1.dy": -0.5}])
def test_shares_and_bias_sum_to_the_action(unit, target):
    vla = small()
    inputs = queries(vla)
    shares = direct_action_attribution(vla, inputs, target, unit)
    np.testing.assert_allclose(shares.total.values, number(vla, inputs, target), atol=1e-9)
    assert abs(shares.error.values).max() < 1e-5, "frozen, the head is affine: only rounding may be left"
    assert abs(shares.sel(row="rest").values).max() < 1e-5
    assert len(shares.parts().axes["row"]) == UNITS[unit]
    assert abs(shares.parts().values).max() > 0.01


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("how", ["frozen", "live", "path"])
def test_differences_sum_to_the_difference(unit, how):
    vla = small()
    inputs, other = queries(vla, 2), queries(vla, 2, seed=7)
    shares = direct_action_attribution(vla, inputs, "t0.dz", unit, other, how, points=128)
    expected = number(vla, inputs, "t0.dz") - number(vla, other, "t0.dz")
    np.testing.assert_allclose(shares.total.values, expected, atol=1e-5)
    assert "bias" not in shares.axes["row"]
    if how == "path":
        assert abs(shares.error.values).max() < 0.02 * abs(expected).max()
    else:
        assert abs(shares.error.values).max() > 0.05 * abs(expected).max(), (
            "a curved head leaves an error, and it shows"
        )


def test_the_error_of_the_path_vanishes_with_its_points():
    vla = small()
    inputs, other = queries(vla, 2), queries(vla, 1, seed=7)
    error = [
        float(abs(direct_action_attribution(vla, inputs, "dz", "component", other, points=n).error.values).max())
        for n in (1, 8, 128)
    ]
    assert error[0] > 10 * error[2] and error[2] < 2e-3


def test_heads_and_neurons_are_the_inside_of_their_components():
    vla = small()
    inputs, other = queries(vla), queries(vla, 1, seed=3)
    for baseline in (None, other, "mean"):
        whole = direct_action_attribution(vla, inputs, "t0.dz", "component", baseline).grid()
        heads = direct_action_attribution(vla, inputs, "t0.dz", "head", baseline).grid()
        neurons = direct_action_attribution(vla, inputs, "t0.dz", "neuron", baseline).grid()
        assert heads.values.dims == ("sample", "layer", "head") and neurons.values.sizes["neuron"] == 96
        np.testing.assert_allclose(heads.values.sum("head"), whole.sel(part="attn").values, atol=1e-6)
        np.testing.assert_allclose(neurons.values.sum("neuron"), whole.sel(part="mlp").values, atol=1e-6)


def test_a_share_is_what_removing_a_little_of_the_part_does():
    """Of the last layer, whose parts have no other way to the action than the direct one."""
    vla = small()
    inputs = queries(vla)
    far = direct_action_attribution(vla, inputs, "t0.dz", "head", queries(vla, 2, seed=5), "live")
    keep, step = {}, 1e-3

    def record(values, site):
        keep["other"] = values

    with vla.hooks((("z", 3), record)):
        vla(queries(vla, 2, seed=5))
    for head in range(4):

        def shrink(values, site, head=head):
            new = values.clone()
            new[:, :, head] -= step * (values - keep["other"])[:, :, head]
            return new

        with vla.hooks((("z", 3), shrink)):
            moved = number(vla, inputs, "t0.dz")
        effect = (number(vla, inputs, "t0.dz") - moved) / step
        # Heads of the last layer also act through the last MLP, so the MLP is held.
        direct = _with_last_mlp_held(vla, inputs, shrink, step)
        share = far.sel(row=f"L3H{head}").values.values
        np.testing.assert_allclose(direct, share, rtol=0.05, atol=2e-3)
        assert not np.allclose(effect, share, rtol=0.05, atol=2e-3)


def _with_last_mlp_held(vla, inputs, shrink, step):
    kept = {}

    def record(values, site):
        kept["mlp"] = values

    with vla.hooks((("mlp_out", 3), record)):
        before = number(vla, inputs, "t0.dz")
    with vla.hooks((("z", 3), shrink), (("mlp_out", 3), lambda values, site: kept["mlp"])):
        return (before - number(vla, inputs, "t0.dz")) / step


@pytest.mark.parametrize("variant", ["discrete", "base"])
@pytest.mark.parametrize("unit", UNITS)
def test_token_policies_are_measured_in_logits_of_their_bins(variant, unit):
    vla = small(variant)
    inputs = queries(vla)
    shares = direct_action_attribution(vla, inputs, "t0.dpitch", unit)
    assert "logit" in shares.unit
    assert (shares.total.values > 0).all(), "the chosen bin stands above the mean"
    assert abs(shares.error.values).max() < 1e-5 and abs(shares.sel(row="bias").values).max() < 1e-9
    versus = direct_action_attribution(vla, inputs, "t0.dpitch", unit, "mean")
    assert abs(versus.error.values).max() < 2e-3


def test_live_edits_of_the_stream_are_a_row_and_not_hidden():
    vla = small()
    inputs = queries(vla)
    with vla.hooks((("resid_post", 1), lambda values, site: values + 1)):
        shares = direct_action_attribution(vla, inputs)
        np.testing.assert_allclose(shares.total.values, number(vla, inputs, "t0.dz"), atol=1e-9)
    assert abs(shares.sel(row="rest").values).min() > 0.01
    assert abs(shares.error.values).max() < 1e-5
    with vla.hooks(("action_head.hook_out", lambda values, site: values + 1)):
        behind = direct_action_attribution(vla, inputs)
    assert abs(behind.error.values).min() > 0.1, "an edit of the head is beyond the linear view, and shows there"


def test_a_batch_with_the_mean_of_all_queries_has_shares_around_zero():
    vla = small()
    shares = direct_action_attribution(vla, queries(vla, 4), "t0.dz", "component", "mean", "frozen")
    one = direct_action_attribution(vla, queries(vla, 4), "t0.dz", "component")
    assert abs(shares.values.mean("sample").sel(row="attn 2")) < abs(one.values.mean("sample").sel(row="attn 2"))


def test_tables_and_figures(tmp_path):
    vla = small()
    shares = direct_action_attribution(vla, queries(vla), "t0.dz", "head")
    assert shares.top(5)["value"].abs().is_monotonic_decreasing
    figure = shares.plot(k=3)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(shown) == 6 and set(EXTRA) <= set(shown)
    figure.savefig(tmp_path / "shares.png")
    shares.grid().sel(sample=0).plot().savefig(tmp_path / "grid.png")
    shares.save(tmp_path / "shares.json")
    assert shares.source["linearization"] == "frozen"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"unit": "heads"}, UnknownName, "did you mean 'head'"),
        ({"linearization": "path"}, ValueError, "needs a baseline"),
        ({"linearization": "lively"}, UnknownName, "'live'"),
        ({"baseline": "zero"}, UnknownName, "mean"),
        ({"target": "dq"}, UnknownName, "dz"),
        ({"baseline": "mean", "points": 0}, ValueError, "at least one point"),
    ],
)
def test_wrong_requests(options, error, text):
    vla = small()
    with pytest.raises(error, match=text):
        direct_action_attribution(vla, queries(vla), **options)


def test_refusals():
    vla = small()
    with pytest.raises(ValueError, match="3 baseline queries for 2"):
        direct_action_attribution(vla, queries(vla, 2), baseline=queries(vla, 3))
    with pytest.raises(ValueError, match="the query itself"):
        direct_action_attribution(vla, queries(vla, 1), baseline="mean")
    diffusion = small("diffusion")
    with pytest.raises(ValueError, match="predicts the noise"):
        direct_action_attribution(diffusion, queries(diffusion))


def test_half_precision_shows_its_rounding_in_the_rows_made_for_it():
    vla = small(seed=2)
    policy = vla.policy
    try:
        policy.to(torch.bfloat16)
        inputs = queries(vla)
        shares = direct_action_attribution(vla, inputs)
        np.testing.assert_allclose(shares.total.values, number(vla, inputs, "t0.dz"), atol=1e-6)
        assert abs(shares.error.values).max() < 0.1
    finally:
        policy.to(torch.float32)
