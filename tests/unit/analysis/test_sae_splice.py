"""Splicing, ablating and steering: what keeps everything changes nothing, what does not is counted right."""

from __future__ import annotations

import pytest
import torch

from mist_interp.analysis.sae.autoencoder import SparseAutoencoder
from mist_interp.analysis.sae.effects import ablation, active_share, dose_response
from mist_interp.analysis.sae.rows import TokenRows
from mist_interp.analysis.sae.splicing import ablating, action_sd, actions, editing, rms, splice
from mist_interp.core.inputs import PolicyInputs
from mist_interp.models import random_policy
from mist_interp.tracing import HookedVLA
from mist_interp.tracing.checks import noise_inputs

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return HookedVLA(random_policy(hidden=32, ffn=48, layers=3).requires_grad_(False))


@pytest.fixture(scope="module")
def inputs(vla: HookedVLA) -> PolicyInputs:
    return noise_inputs(vla)


@pytest.fixture(scope="module")
def sae(vla: HookedVLA, inputs: PolicyInputs) -> SparseAutoencoder:
    """Fitted on the very tokens that are spliced."""
    site = vla.site(("resid_post", 1))
    _, cache = vla.run_with_cache(inputs, names=site, tokens="vision")
    rows = TokenRows.of_array(cache[site].values.flatten(0, 1).numpy(), site, "vision")
    return SparseAutoencoder(64, 6, steps=300, batch_size=64, learning_rate=3e-3).fit(rows)


@pytest.fixture
def perfect(sae: SparseAutoencoder) -> SparseAutoencoder:
    """One that keeps everything: plus and minus every axis, all of them active."""
    width = sae.width_
    made = SparseAutoencoder(2 * width, width)
    made.decoder_ = torch.cat([torch.eye(width), -torch.eye(width)])
    made.encoder_, made.encoder_bias_, made.bias_ = made.decoder_, torch.zeros(2 * width), torch.zeros(width)
    for name in ("mean_", "covariance_", "site_", "tokens_", "trained_on_", "source_", "n_rows_"):
        setattr(made, name, getattr(sae, name))
    return made


def test_a_perfect_reconstruction_changes_nothing(vla, inputs, perfect) -> None:
    result = splice(vla, inputs, perfect)
    assert result.change.axes["arm"] == ["sae", "sae + error", "pca", "mean"]
    assert float(result.change.sel(arm=["sae", "sae + error", "pca"]).values.max()) < 1e-4
    assert float(result.change.sel(arm="mean").values.min()) > 1e-2
    assert float(result.recovered.sel(arm="sae").values) > 0.99
    assert float(result.recovered.sel(arm="mean").values) == 0
    assert vla.edits() == ()


def test_the_error_term_gives_back_what_is_lost(vla, inputs, sae) -> None:
    result = splice(vla, inputs, sae)
    assert float(result.change.sel(arm="sae + error").values.max()) < 1e-4
    assert float(result.change.sel(arm="sae").values.min()) > 1e-3
    plain = actions(vla, inputs, ())
    same = actions(vla, inputs, [(sae.site_, editing(sae, lambda codes: codes), "vision")])
    assert torch.equal(plain, same)


def test_the_change_is_counted_in_standard_deviations(vla, inputs, sae) -> None:
    plain = actions(vla, inputs, ())
    site = vla.site(("resid_post", 1))
    mean = actions(vla, inputs, [(site, lambda x, _: sae.mean_.expand_as(x), "vision")])
    expected = ((mean - plain) ** 2).mean((0, 1)).sqrt() / plain.reshape(-1, 7).std(0, correction=0)
    result = splice(vla, inputs, sae, arms=["mean"])
    torch.testing.assert_close(torch.tensor(result.change.values.values)[0], expected)
    torch.testing.assert_close(torch.tensor(result.action_sd.values.values), action_sd(plain, vla))
    batched = splice(vla, inputs, sae, arms=["mean"], batch_size=1)
    torch.testing.assert_close(torch.tensor(batched.change.values.values)[0], expected, rtol=1e-3, atol=1e-5)


def test_ablating_takes_out_the_code_of_the_feature_where_it_is_active(vla, inputs, sae) -> None:
    share = active_share(vla, inputs, sae)
    feature = int(share.argmax())
    seen = {}

    def look(x: torch.Tensor, site: object) -> None:
        seen["after"] = x.clone()

    site = sae.site_
    _, cache = vla.run_with_cache(inputs, names=site, tokens="vision")
    before = cache[site].values
    hooks = [(site, ablating(sae, feature), "vision"), (site, look, "vision")]
    vla.run_with_hooks(inputs, hooks)
    codes = sae.encode(before)
    assert float((codes[..., feature] > 0).float().mean()) == pytest.approx(float(share[feature]))
    expected = before - codes[..., feature, None] * sae.decoder_[feature]
    torch.testing.assert_close(seen["after"], expected, rtol=1e-4, atol=1e-5)
    off = codes[..., feature] == 0
    assert off.any() and torch.equal(seen["after"][off], before[off])


def test_ablation_compares_with_the_same_lengths_elsewhere(vla, inputs, sae) -> None:
    share = active_share(vla, inputs, sae)
    loud, silent = int(share.argmax()), int((share == 0).nonzero()[0])
    result = ablation(vla, inputs, sae, [loud, silent], draws=2)
    assert float(result.size.sel(feature=loud).values) > 0
    assert float(result.random.sel(feature=loud).values.min()) > 0
    assert float(result.size.sel(feature=silent).values) == 0 == float(result.random.sel(feature=silent).values.max())
    assert float(result.active.sel(feature=silent).values) == 0
    change = rms(actions(vla, inputs, [(sae.site_, ablating(sae, loud), "vision")]) - actions(vla, inputs, ()))
    sd = action_sd(actions(vla, inputs, ()), vla)
    torch.testing.assert_close(torch.tensor(result.change.values.values)[0], change / sd)


def test_a_dose_response_is_that_of_the_direction(vla, inputs, sae) -> None:
    feature = int(sae.sigma_.argmax())
    result = dose_response(vla, inputs, sae, [feature], coefs=(-1.0, 0.0, 2.0), draws=2)
    plain = actions(vla, inputs, ())
    with sae.direction(feature).steer(vla, 2.0):
        change = (actions(vla, inputs, ()) - plain) / action_sd(plain, vla)
    torch.testing.assert_close(torch.tensor(result.mean.values.values)[0, 2], change.mean((0, 1)))
    assert float(result.size.sel(feature=feature, coef=2.0).values) == pytest.approx(
        float(change.square().mean().sqrt())
    )
    assert (
        float(result.size.sel(feature=feature, coef=0.0).values) == 0 == float(result.random.sel(coef=0.0).values.max())
    )
    assert result.random.values.shape == (1, 2, 3) and float(result.random.sel(coef=2.0).values.min()) > 0
    drawn = result.random.sel(feature=feature, coef=2.0).values.values.tolist()
    assert len({*drawn, float(result.size.sel(feature=feature, coef=2.0).values)}) == 3
    again = dose_response(vla, inputs, sae, [feature], coefs=(2.0,), draws=2)
    assert again.random.values.values[0, :, 0] == pytest.approx(result.random.values.values[0, :, 2])


def test_what_cannot_be_is_refused(vla, inputs, sae) -> None:
    with pytest.raises(ValueError, match="unknown arm 'saes'; did you mean 'sae'"):
        splice(vla, inputs, sae, arms=["saes"])
    with pytest.raises(IndexError, match="feature 64"):
        ablation(vla, inputs, sae, [64])
    with pytest.raises(ValueError, match="no feature"):
        ablation(vla, inputs, sae, [])
    with pytest.raises(ValueError, match="nothing to steer"):
        dose_response(vla, inputs, sae, [])
    bare = SparseAutoencoder(8, 2, steps=1).fit(torch.randn(40, sae.width_))
    with pytest.raises(ValueError, match="no site"):
        splice(vla, inputs, bare)
    with pytest.raises(ValueError, match="do not vary"):
        action_sd(torch.ones(2, 8, 7), vla)
    narrow = SparseAutoencoder(8, 2, steps=1).fit(TokenRows.of_array(torch.randn(40, 5).numpy(), sae.site_, "vision"))
    with pytest.raises(ValueError, match="32 wide, this autoencoder 5"):
        splice(vla, inputs, narrow)
