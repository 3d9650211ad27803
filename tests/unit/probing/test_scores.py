"""AUC and its interval against brute force and against repeated sampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mist_interp.probing.scores import (
    Judged,
    auc,
    auc_of_draws,
    average_precision,
    brier,
    calibration_error,
    episode_draws,
    interval,
    is_constant,
)


def judged(labels: list[int] | np.ndarray, fold: object = 0, episode: object = None, task: object = 0) -> Judged:
    labels = np.asarray(labels, dtype=float)
    n = len(labels)
    return Judged(
        labels,
        np.broadcast_to(np.asarray(fold), n),
        np.arange(n) if episode is None else np.asarray(episode),
        np.broadcast_to(np.asarray(task), n),
    )


def brute_force(scores: np.ndarray, rows: Judged) -> float | None:
    won = pairs = 0.0
    for i in np.flatnonzero(rows.labels == 1):
        for j in np.flatnonzero(rows.labels == 0):
            if rows.fold[i] == rows.fold[j]:
                won += (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
                pairs += 1
    return won / pairs if pairs else None


@given(data=st.data(), n=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_auc_is_the_share_of_ordered_pairs_within_folds(data: st.DataObject, n: int) -> None:
    labels = np.array(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    scores = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)), dtype=float)
    fold = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    rows = judged(labels, fold)
    expected, found = brute_force(scores, rows), auc(scores, rows)
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found == pytest.approx(expected)


def test_auc_of_one_fold_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 500), rng.normal(size=500).round(1)
    assert auc(scores, judged(labels)) == pytest.approx(roc_auc_score(labels, scores))


def test_weights_are_copies_of_episodes() -> None:
    rng = np.random.default_rng(1)
    episode = np.repeat(np.arange(12), 5)
    labels, scores = rng.integers(0, 2, 60).astype(float), rng.normal(size=60)
    weights = rng.integers(0, 4, size=(20, 12)).astype(float)
    found = auc_of_draws(scores, judged(labels, episode=episode), weights)
    for draw, value in zip(weights, found, strict=True):
        copies = np.repeat(np.arange(60), draw[episode].astype(int))
        assert value == pytest.approx(roc_auc_score(labels[copies], scores[copies]))


def test_large_blocks_and_small_blocks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    rows = judged(rng.integers(0, 2, 50), fold=rng.integers(0, 3, 50))
    scores, weights = rng.normal(size=50), rng.integers(0, 3, size=(30, 50)).astype(float)
    whole = auc_of_draws(scores, rows, weights)
    monkeypatch.setattr("mist_interp.probing.scores._BLOCK", 60)
    np.testing.assert_allclose(auc_of_draws(scores, rows, weights), whole)


def test_scores_of_different_folds_are_not_compared() -> None:
    """Within each fold the order is perfect; the folds' models have different offsets."""
    labels = np.array([0, 1] * 20)
    fold = np.repeat([0, 1], 20)
    scores = labels + 100.0 * (fold == 0)
    assert auc(scores, judged(labels, fold)) == 1.0
    assert roc_auc_score(labels, scores) < 0.8


def test_constant_scores_are_a_half_and_degenerate() -> None:
    rows = judged([0, 1, 0, 1], fold=[0, 0, 1, 1])
    for constant in (np.zeros(4), np.array([1.0, 1.0, 7.0, 7.0])):  # a constant per fold says nothing either
        assert auc(constant, rows) == 0.5 and is_constant(constant, rows)
    assert not is_constant(np.array([0.0, 1.0, 2.0, 2.0]), rows)


def test_no_pair_gives_no_auc() -> None:
    assert auc(np.arange(4.0), judged([1, 1, 1, 1])) is None
    assert auc(np.arange(4.0), judged([1, 1, 0, 0], fold=[0, 0, 1, 1])) is None
    assert interval(np.full(100, np.nan)) == (None, None)


@pytest.mark.parametrize("tasks", [1, 8])
def test_the_draws_keep_the_sample_size(tasks: int) -> None:
    episode = np.repeat(np.arange(40), 3)
    rows = judged(np.zeros(120), episode=episode, task=(episode % tasks))
    weights = episode_draws(rows, draws=500, seed=3)
    assert (weights.sum(1) == 40).all()
    assert weights.mean() == pytest.approx(1.0)
    lonely = (weights[:, np.arange(40) % tasks == 0].sum(1) == 0).mean()
    assert lonely > 0.1 if tasks == 8 else lonely == 0, "from five tasks on whole tasks are drawn"


def test_intervals_count_episodes_and_not_queries() -> None:
    """Copying every query ten times adds no information, so the interval must stay."""
    rng = np.random.default_rng(5)
    labels = np.repeat(rng.integers(0, 2, 60), 1)
    scores = labels + rng.normal(size=60)
    once = judged(labels)
    ten = judged(np.repeat(labels, 10), episode=np.repeat(np.arange(60), 10))
    a = interval(auc_of_draws(scores, once, episode_draws(once, 2000)))
    b = interval(auc_of_draws(np.repeat(scores, 10), ten, episode_draws(ten, 2000)))
    np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.slow
def test_the_interval_covers_the_truth() -> None:
    """60 episodes of 6 correlated queries: 95 % intervals must hold the true AUC about 95 % of the time."""
    from scipy.stats import norm

    truth = float(norm.cdf(1.0 / np.sqrt(2 * (1 + 1))))  # N(1, 2) against N(0, 2): an episode effect and a query effect
    rng = np.random.default_rng(6)
    episode = np.repeat(np.arange(60), 6)
    covered = 0
    for _ in range(300):
        label = np.repeat(rng.permutation([0, 1] * 30), 6)
        scores = label + rng.normal(size=60)[episode] + rng.normal(size=360)
        rows = judged(label, episode=episode)
        low, high = interval(auc_of_draws(scores, rows, episode_draws(rows, 400, seed=1)))
        covered += low is not None and high is not None and low <= truth <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_calibration_and_brier_of_known_cases() -> None:
    rows = judged([0, 0, 0, 1] * 100)
    assert brier(np.full(400, 0.25), rows) == pytest.approx(0.1875)
    assert calibration_error(np.full(400, 0.25), rows) == pytest.approx(0.0)
    assert calibration_error(np.full(400, 0.95), rows) == pytest.approx(0.7)
    assert brier(rows.labels, rows) == 0 and calibration_error(rows.labels, rows) == 0
    assert calibration_error(np.ones(400), judged(np.ones(400))) == 0


def test_average_precision_of_chance_is_the_base_rate() -> None:
    rng = np.random.default_rng(7)
    rows = judged((rng.random(20000) < 0.2).astype(int))
    assert average_precision(rng.random(20000), rows) == pytest.approx(0.2, abs=0.02)
    assert average_precision(rows.labels, rows) == 1.0
    assert average_precision(np.zeros(3), judged([0, 0, 0])) is None
