"""Networks as classifiers: scikit-learn's own rules, no dead unit, nothing held out that shares an episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from mist_interp.probing.networks import LSTM, MLP, network_config, network_from_config
from mist_interp.probing.networks_classifier import NetworkClassifier
from mist_interp.probing.networks_fit import fit_network, hold_out, platt
from mist_interp.probing.networks_fitted import Recipe, Training, as_sequences, probabilities
from mist_interp.probing.readout import fit_readout

QUICK = {"hidden": (16,), "learning_rate": 0.02, "epochs": 15, "patience": 4}


@parametrize_with_checks([NetworkClassifier(**QUICK)])
def test_scikit_learn_accepts_the_classifier(estimator: Any, check: Any) -> None:
    check(estimator)


def rows(count: int = 400, width: int = 6, strength: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, size=count)
    x = rng.normal(size=(count, width)) * 5 + 100
    x[:, 2] += 5 * strength * y
    return x, y


def test_it_works_in_a_pipeline_and_a_grid_search_by_groups() -> None:
    x, y = rows()
    pipeline = make_pipeline(StandardScaler(), NetworkClassifier(**QUICK))
    search = GridSearchCV(pipeline, {"networkclassifier__dropout": [0.0, 0.5]}, cv=GroupKFold(2), scoring="roc_auc")
    search.fit(x, y, groups=np.arange(400) // 8)
    assert search.best_score_ > 0.85


def test_a_seed_gives_the_same_network_and_torch_is_left_alone() -> None:
    x, y = rows(200)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (NetworkClassifier(**QUICK).fit(x, y) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(one.decision_function(x), two.decision_function(x))
    other = clone(one).set_params(random_state=1).fit(x, y)
    assert not np.array_equal(one.decision_function(x), other.decision_function(x))


def test_probabilities_are_those_of_the_data_although_training_is_balanced() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(3000) < 0.1).astype(int)
    x = rng.normal(size=(3000, 4))
    x[:, 0] += 2 * y
    fitted = NetworkClassifier(**QUICK).fit(x, y)
    assert fitted.predict_proba(x)[:, 1].mean() == pytest.approx(0.1, abs=0.03)
    raw = clone(fitted).set_params(held_out=0.0).fit(x, y)
    assert raw.predict_proba(x)[:, 1].mean() == pytest.approx(0.1, abs=0.04), "the weights are undone"
    assert any("not calibrated" in text for _, text in raw.network_.flags)


def test_held_out_rows_share_no_group_with_fitted_ones() -> None:
    x, y = rows(200)
    episode = np.repeat(np.arange(25), 8)
    held = NetworkClassifier(**QUICK).fit(x, y, groups=episode).held_out_
    assert held.any() and not set(episode[held]) & set(episode[~held])


def test_a_read_out_tells_the_network_what_belongs_together() -> None:
    x, y = rows(200)
    episode = np.repeat(np.arange(25), 8)
    (inner,) = fit_readout(NetworkClassifier(**QUICK), x, y[:, None].astype(float), episode).estimators
    assert inner.held_out_.any() and not set(episode[inner.held_out_]) & set(episode[~inner.held_out_])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 5), st.floats(0.05, 0.6))
def test_holding_out_splits_no_group_and_leaves_every_label(seed: int, groups: int, outputs: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, size=5 * groups)
    y = rng.choice([0.0, 0.0, 0.0, 1.0, np.nan], size=(len(group), outputs))
    held = hold_out(group, y, share, rng)
    assert not set(group[held]) & set(group[~held])
    assert not held.all()
    for column in y.T:
        assert set(column[~np.isnan(column)]) == set(column[~held & ~np.isnan(column)])


def test_an_episode_in_two_groups_is_refused() -> None:
    x, y = rows(40)
    with pytest.raises(ValueError, match="in two groups"):
        fit_network(Recipe(), x, y[:, None] * 1.0, episode=np.zeros(40), group=np.arange(40), seed=0)


def test_the_scale_is_that_of_the_fitted_rows() -> None:
    """Held-out rows, far away, do not move it."""
    x, y = rows(200)
    group = np.repeat(np.arange(25), 8)
    _, held = fit(x, y, group)
    moved = x.copy()
    moved[held] += 1e6
    network, again = fit(moved, y, group)
    np.testing.assert_array_equal(again, held)
    np.testing.assert_allclose(network.mean, x[~held].mean(0), rtol=1e-6)


def fit(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> tuple[Any, np.ndarray]:
    recipe = Recipe(MLP((8,)), None, Training(epochs=2))
    return fit_network(recipe, x, y[:, None] * 1.0, episode=group, group=group, seed=3)


@pytest.mark.parametrize("network", [MLP((32,)), LSTM(16)], ids=["MLP", "LSTM"])
def test_no_output_unit_is_dead(network: Any) -> None:
    """Seven rare outputs, each on a feature of its own: a rectified output with squared error gives AUC 0.5 on all."""
    rng = np.random.default_rng(0)
    y = (rng.random((2400, 7)) < 0.06).astype(float)
    x = rng.normal(size=(2400, 12))
    x[:, :7] += 3 * y
    group = np.repeat(np.arange(300), 8)
    training = Training(learning_rate=0.01, epochs=12, batch=128)
    fitted, _ = fit_network(Recipe(network, None, training), x, y, episode=group, group=group, seed=0)
    assert fitted.flags == () and (fitted.slope > 0).all()
    scores = fitted.scores(x, group)
    assert (np.ptp(scores, axis=0) > 1).all()
    assert min(roc_auc_score(y[:, k], scores[:, k]) for k in range(7)) > 0.85
    assert probabilities(scores).mean() == pytest.approx(0.06, abs=0.03)


def test_labels_that_are_not_known_have_no_part() -> None:
    """Rows without a label may hold anything: with the same scale, the weights do not change."""
    x, y = rows(200)
    labels = np.where(np.arange(200)[:, None] % 2 == 0, y[:, None], np.nan) * 1.0
    rng = np.random.default_rng(0)
    swapped = x.copy()
    swapped[1::2] = x[1::2][rng.permutation(100)]  # the same mean and deviation
    recipe = Recipe(MLP((8,), dropout=0.0), None, Training(epochs=3, held_out=0.0, batch=200))
    one, two = (
        fit_network(recipe, each, labels, episode=np.arange(200), group=np.arange(200), seed=0)[0]
        for each in (x, swapped)
    )
    np.testing.assert_allclose(one.scores(x, np.arange(200)), two.scores(x, np.arange(200)), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(0, 1000))
def test_sequences_hold_each_row_once_and_in_order(lengths: list[int], seed: int) -> None:
    episode = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(lengths)), lengths))
    places = as_sequences(episode)
    assert sorted(places[places >= 0]) == list(range(len(episode)))
    for row in places:
        row = row[row >= 0]
        assert (np.diff(row) > 0).all() and len(set(episode[row])) == 1


def test_calibration_undoes_a_known_distortion() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=20_000) * 2
    y = (rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * z - 1)))).astype(float)
    assert platt(z, y, 0.0) == pytest.approx((0.5, -1.0), abs=0.06)
    slope, offset = platt(-z, y, 0.0)
    assert slope > 0, "the order is never turned round"
    assert platt(np.array([1.0]), np.array([1.0]), -2.0)[0] == pytest.approx(1.0, abs=2.0) and np.isfinite(offset)


def test_large_networks_can_be_built_and_settings_kept() -> None:
    module = MLP((2048, 512)).module(4096, 7)
    assert 9e6 < sum(p.numel() for p in module.parameters()) < 1e7
    for network in (MLP((3, 4), 0.1), LSTM(5, 2)):
        assert network_from_config(network_config(network)) == network
    with pytest.raises(KeyError, match="'LSTM'"):
        network_from_config({"kind": "LSTN"})
    with pytest.raises(ValueError, match="at least 1"):
        MLP((0,))
