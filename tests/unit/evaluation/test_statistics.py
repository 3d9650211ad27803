"""Intervals cover, tests agree with statsmodels, and the edge cases of the definitions hold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, bootstrap
from statsmodels.stats.multitest import multipletests

from mist_interp.evaluation.statistics import (
    UNDEFINED,
    bootstrap_interval,
    difference_estimate,
    holm,
    mcnemar_p,
    paired_difference_interval,
    ratio_estimate,
    resampled_sums,
    smallest_detectable_difference,
    wilson,
)


@given(n=st.integers(1, 200), data=st.data())
def test_wilson_is_ordered_inside_the_unit_and_symmetric(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert -1e-12 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1 + 1e-12
    mirrored = wilson(n - k, n)
    assert math.isclose(low, 1 - mirrored[1], abs_tol=1e-9)


def test_wilson_known_value_and_coverage() -> None:
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    covered = []
    for p in (0.1, 0.3, 0.5, 0.75, 0.9):
        ks = np.arange(31)
        inside = np.array([wilson(int(k), 30)[0] <= p <= wilson(int(k), 30)[1] for k in ks])
        covered.append(binom.pmf(ks, 30, p)[inside].sum())
    assert min(covered) > 0.91 and 0.93 < np.mean(covered) < 0.97


def test_wilson_refuses_nonsense() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError):
        wilson(3, 2)


def _random_runs(rng: np.random.Generator, tasks: int, units: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    p = np.clip(0.6 + spread * rng.standard_normal(tasks), 0.02, 0.98)
    return np.repeat(np.arange(tasks), units), (rng.random((tasks, units)) < p[:, None]).astype(float).ravel()


def _mean_of_clipped_normal(spread: float) -> float:
    return float(np.clip(0.6 + spread * np.random.default_rng(1).standard_normal(400_000), 0.02, 0.98).mean())


@pytest.mark.parametrize(("tasks", "floor"), [(8, 0.86), (20, 0.89)])
def test_bootstrap_covers_when_tasks_differ(tasks: int, floor: float) -> None:
    """A bootstrap with few clusters under-covers a little; ignoring the clusters would cover about 60 % here."""
    rng = np.random.default_rng(0)
    truth = _mean_of_clipped_normal(0.25)
    hits = naive = 0
    for _ in range(250):
        task, y = _random_runs(rng, tasks, 20, 0.25)
        estimate = ratio_estimate(y, np.ones_like(y), task, proportion=True, draws=600)
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= truth <= estimate.high
        low, high = wilson(int(y.sum()), len(y))
        naive += low <= truth <= high
    assert floor <= hits / 250 <= 0.995
    assert naive / 250 < 0.8


def test_resampling_keeps_units_whole_and_tasks_as_drawn() -> None:
    tasks = np.repeat([0, 1, 2], [2, 3, 4])
    columns = np.stack([np.ones(9), np.repeat([1.0, 10.0, 100.0], [2, 3, 4])], axis=1)
    fixed = resampled_sums(columns, tasks, draws=50, resample_tasks=False)
    assert (fixed == [9, 432]).all()
    free = resampled_sums(columns, tasks, draws=3000)
    assert len(np.unique(free[:, 0])) > 3
    assert free.mean(axis=0) == pytest.approx([9, 432], rel=0.05)
    assert (resampled_sums(columns, tasks, draws=3000) == free).all()
    assert (resampled_sums(columns, tasks, draws=3000, seed=1) != free).any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_estimates_bracket_the_value_and_name_their_method(rows: list[tuple[int, bool]]) -> None:
    task, y = np.array([t for t, _ in rows]), np.array([float(v) for _, v in rows])
    estimate = ratio_estimate(y, np.ones(len(y)), task, proportion=True, draws=400)
    assert estimate.value == pytest.approx(y.mean())
    assert estimate.low is not None and estimate.high is not None and estimate.value is not None
    assert 0 <= estimate.low <= estimate.high <= 1
    assert estimate.n == len(y)
    if len(set(task)) < 5 or y.sum() in (0, len(y)):
        assert estimate.method == "Wilson"
    else:
        assert "tasks and units" in estimate.method


def test_bca_starts_at_ten_tasks() -> None:
    rng = np.random.default_rng(3)
    for tasks, starts in ((9, "bootstrap"), (10, "BCa")):
        task, y = _random_runs(rng, tasks, 10, 0.2)
        assert ratio_estimate(y, np.ones_like(y), task, proportion=True, draws=500).method.startswith(starts)


def test_tasks_outside_the_denominator_do_not_count_as_tasks() -> None:
    """Ten tasks, six of them with a trigger: too few for BCa; with four, too few for a bootstrap."""
    task = np.repeat(np.arange(10), 4)
    y = np.tile([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0], 5)
    for counted, method in ((10, "BCa bootstrap over tasks"), (6, "bootstrap over tasks"), (4, "Wilson")):
        inside = (task < counted).astype(float)
        estimate = ratio_estimate(y * inside, inside, task, proportion=True, draws=500)
        assert estimate.method.startswith(method) and (estimate.value, estimate.n) == (0.5, 4 * counted)
        alone = ratio_estimate(y[inside > 0], inside[inside > 0], task[inside > 0], proportion=True, draws=500)
        assert estimate == alone


def test_where_all_resamples_agree_there_is_no_interval() -> None:
    one = ratio_estimate(np.array([2.0]), np.array([100.0]), np.array([0]), proportion=False, draws=100)
    assert (one.value, one.low, one.high, one.n) == (0.02, None, None, 1) and "resamples agree" in one.method
    varied = ratio_estimate(np.array([2.0, 0.0, 1.0]), np.full(3, 100.0), np.zeros(3, int), proportion=False, draws=100)
    assert varied.low is not None and varied.high is not None and varied.low < 0.01 < varied.high


def test_a_difference_on_every_unit_is_still_uncertain() -> None:
    both = np.tile([1.0, 0.0], (12, 1))
    estimate = difference_estimate(both, np.ones((12, 2)), np.arange(12), proportion=True, draws=100)
    assert estimate.method == "Newcombe, paired" and estimate.value == 1.0
    assert estimate.low is not None and 0.4 < estimate.low < 0.9


def test_nothing_at_stake_is_undefined() -> None:
    zero, task = np.zeros(6), np.arange(6)
    assert ratio_estimate(zero, zero, task, proportion=True) == UNDEFINED
    assert difference_estimate(np.zeros((6, 2)), np.zeros((6, 2)), task, proportion=True) == UNDEFINED


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_binomial_test_on_discordant_pairs(a: int, b: int) -> None:
    expected = binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar_p(a, b) == pytest.approx(min(expected, 1.0), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_agrees_with_statsmodels_and_with_its_definition(p: list[float]) -> None:
    adjusted = holm(p)
    assert adjusted == pytest.approx(list(multipletests(p, method="holm")[1]))
    running = 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        assert adjusted[index] == pytest.approx(running)


def test_holm_of_nothing() -> None:
    assert holm([]) == []


def test_newcombe_known_value() -> None:
    """Newcombe 1998, table II, method 10: cells 36, 12, 2, 0 of 50 give 0.0569 to 0.3404."""
    assert paired_difference_interval(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-4)


@given(*(st.integers(0, 30) for _ in range(4)))
def test_newcombe_brackets_the_difference_and_mirrors(both: int, a: int, b: int, neither: int) -> None:
    n = both + a + b + neither
    low, high = paired_difference_interval(both, a, b, neither)
    assert -1 - 1e-9 <= low <= high <= 1 + 1e-9
    if n:
        assert low - 1e-9 <= (a - b) / n <= high + 1e-9
        mirrored = paired_difference_interval(both, b, a, neither)
        assert mirrored == pytest.approx((-high, -low), abs=1e-9)


def test_detectable_difference_has_the_promised_power() -> None:
    n, share = 200, 0.3
    difference = smallest_detectable_difference(n, int(n * share))
    assert difference is not None
    rng = np.random.default_rng(0)
    cells = [(share + difference) / 2, (share - difference) / 2, 1 - share]
    draws = rng.multinomial(n, cells, size=2000)
    power = np.mean([mcnemar_p(int(a), int(b)) < 0.05 for a, b, _ in draws])
    assert 0.72 < power < 0.86  # the exact test is a little conservative


def test_detectable_difference_is_none_when_pairs_are_too_few() -> None:
    assert smallest_detectable_difference(0, 0) is None
    assert smallest_detectable_difference(10, 1) is None
    assert smallest_detectable_difference(1000, 200) < smallest_detectable_difference(300, 60)


def test_bca_agrees_with_scipy_where_every_task_is_one_unit() -> None:
    skewed = np.random.default_rng(5).exponential(size=40) ** 2
    ours = bootstrap_interval(
        np.stack([skewed, np.ones(40)], axis=1), np.arange(40), lambda s: s[..., 0] / s[..., 1], draws=20_000
    )
    theirs = bootstrap((skewed,), np.mean, n_resamples=20_000, method="BCa", rng=0).confidence_interval
    percentile = bootstrap((skewed,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert ours[:2] == pytest.approx((theirs.low, theirs.high), rel=0.02)
    assert abs(ours[1] - percentile.high) > 3 * abs(ours[1] - theirs.high)
