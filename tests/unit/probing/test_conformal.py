"""Conformal alarms keep their promise in simulation, and the rules that would break it are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_rollouts import MakeStore, contact, make_episode

from mist_interp.data.records import Unit
from mist_interp.probing.conformal import ConformalAlarm, FalseAlarms, rank_limit
from mist_interp.probing.scored import ScoredEpisodes

SEVEN = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
NONE: frozenset[tuple[str, int, int]] = frozenset()

Limit = Callable[[np.ndarray, float], float]


def walks(rng: np.random.Generator, count: int, queries: int = 12, width: int = 1) -> np.ndarray:
    """(count, queries, width) scores that hang together in time and, over the outputs, in an episode."""
    steps = rng.normal(size=(count, queries, width)) + rng.normal(size=(count, 1, 1))
    scores = np.empty_like(steps)
    scores[:, 0] = steps[:, 0]
    for k in range(1, queries):
        scores[:, k] = 0.9 * scores[:, k - 1] + steps[:, k]
    return scores


def episodes(values: np.ndarray | list[np.ndarray], first: int = 0, outputs: tuple[str, ...] = ()) -> ScoredEpisodes:
    units = tuple(Unit("libero_spatial", 0, first + k) for k in range(len(values)))
    names = outputs or ("risk", *SEVEN)[-values[0].shape[1] :] if values[0].shape[1] > 1 else ("risk",)
    return ScoredEpisodes(tuple(values), units, ("",) * len(units), names)


# -- the rank


def test_the_rank_is_the_one_of_the_definition() -> None:
    assert rank_limit(np.arange(1.0, 20.0), 0.1) == 18.0  # ceil(20 * 0.9)
    assert rank_limit(np.arange(1.0, 20.0)[::-1], 0.05) == 19.0
    assert rank_limit(np.arange(1.0, 19.0), 0.05) == np.inf, "18 episodes cannot certify 5 %"
    assert rank_limit(np.arange(1.0, 100.0), 0.41) == 59.0, "100 * (1 - 0.41) is 59.000000000000006 in binary"
    assert rank_limit(np.array([]), 0.5) == np.inf
    for alpha in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="alpha="):
            rank_limit(np.arange(3.0), alpha)
    with pytest.raises(ValueError, match="1 of 2 episodes have NaN"):
        rank_limit(np.array([0.5, np.nan]), 0.1)


@given(n=st.integers(1, 300), percent=st.integers(1, 99))
def test_n_episodes_certify_an_alpha_from_one_over_alpha_on(n: int, percent: int) -> None:
    limit = rank_limit(np.arange(1.0, n + 1), percent / 100)
    assert np.isfinite(limit) == ((n + 1) * percent >= 100)
    if np.isfinite(limit):
        assert limit == -(-(n + 1) * (100 - percent) // 100)


# -- the promise, by simulation


DRAWS = 5000


@cache
def maxima(n: int) -> np.ndarray:
    """(draws, n + 1): one new safe episode, and n to calibrate on."""
    return walks(np.random.default_rng(n), DRAWS * (n + 1), 6).max((1, 2)).reshape(DRAWS, n + 1)


def false_alarms(limit: Limit, n: int, alpha: float, coarse: float = 0.0, shift: float = 0.0) -> float:
    """Share of calibrations after which a new safe episode raises an alarm; `coarse` scores have ties."""
    values = maxima(n) + shift * (np.arange(n + 1) == 0)
    values = coarse * np.round(values / coarse) if coarse else values
    return sum(row[0] > limit(row[1:], alpha) for row in values) / DRAWS


def noise(alpha: float) -> float:
    return 3 * float(np.sqrt(alpha * (1 - alpha) / DRAWS))


GRID = [(19, 0.05), (19, 0.1), (30, 0.1), (12, 0.3), (60, 0.02)]


@pytest.mark.parametrize(("n", "alpha"), GRID)
def test_false_alarms_are_as_rare_as_promised_and_not_much_rarer(n: int, alpha: float) -> None:
    share = false_alarms(rank_limit, n, alpha)
    assert alpha - 1 / (n + 1) - noise(alpha) <= share <= alpha + noise(alpha)


@pytest.mark.parametrize(("n", "alpha"), GRID)
def test_ties_only_make_false_alarms_rarer(n: int, alpha: float) -> None:
    assert false_alarms(rank_limit, n, alpha, coarse=4.0) <= alpha + noise(alpha)


def test_the_promise_is_void_under_a_shift() -> None:
    assert false_alarms(rank_limit, 19, 0.1, shift=3.0) > 0.15


def test_a_bare_quantile_or_at_least_would_break_the_promise() -> None:
    def bare(scores: np.ndarray, alpha: float) -> float:
        return float(np.quantile(scores, 1 - alpha))

    assert false_alarms(bare, 19, 0.05) > 0.05 + 2 * noise(0.05)
    assert false_alarms(bare, 12, 0.3) > 0.3 + noise(0.3)

    def at_least(scores: np.ndarray, alpha: float) -> float:
        return float(np.nextafter(rank_limit(scores, alpha), -np.inf))

    assert false_alarms(at_least, 30, 0.1, coarse=4.0) > 0.1 + 3 * noise(0.1)


@pytest.mark.parametrize("band", [False, True])
@pytest.mark.parametrize("joint", ["max", "split"])
def test_seven_outputs_together_keep_one_alpha(joint: str, band: bool) -> None:
    alpha, n, fresh, draws = 0.2, 40, 60, 60
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(draws):
        values = walks(rng, n + fresh + 12, 6, 7)
        shape = episodes(values[-12:], 5000) if band else None
        alarm = ConformalAlarm.calibrate(episodes(values[:n]), alpha, trained_on=NONE, joint=joint, band=shape)
        assert len(alarm.limits) == (1 if joint == "max" else 7)
        rates.append(np.mean([alarm.fires(one) for one in values[n : n + fresh]]))
    error = 3 * np.std(rates) / np.sqrt(draws)
    assert np.mean(rates) <= alpha + error
    if joint == "max":
        assert np.mean(rates) >= alpha - 1 / (n + 1) - error


def test_a_band_follows_the_clock() -> None:
    """Safe risk rises with time. An early rise is an alarm for the band and nothing for the constant limit."""
    rng = np.random.default_rng(0)
    rising = np.linspace(0, 1, 20)[:, None] + 0.05 * rng.normal(size=(80, 20, 1))
    shape, calibration = episodes(rising[:40]), episodes(rising[40:], 100)
    early = rising[0].copy()
    early[3] += 0.5
    constant = ConformalAlarm.calibrate(calibration, 0.1, trained_on=NONE)
    moving = ConformalAlarm.calibrate(calibration, 0.1, trained_on=NONE, band=shape)
    assert constant.first(early) is None and moving.first(early) == 3
    np.testing.assert_allclose(moving.centre[:, 0], np.linspace(0, 1, 20), atol=0.05)
    # Beyond the band's last query its last centre and width hold.
    longer = np.concatenate([rising[1], np.full((5, 1), 1.0)])
    np.testing.assert_allclose(moving.excess(longer)[-1], moving.excess(rising[1])[-1], atol=1.5)


def test_a_band_is_not_made_of_noise() -> None:
    rng = np.random.default_rng(0)
    lengths = [10] * 4 + [6] * 8
    shape = episodes([rng.normal(size=(length, 1)) for length in lengths])
    flat = episodes([np.zeros((4, 1)) for _ in range(20)])
    fresh = episodes(walks(rng, 20), 200)
    band = ConformalAlarm.calibrate(fresh, 0.1, trained_on=NONE, band=shape)
    assert band.centre.shape == (6, 1), "only four episodes have a seventh query"
    assert (ConformalAlarm.calibrate(fresh, 0.1, trained_on=NONE, band=flat).width == 1).all()
    still = [np.concatenate([np.zeros((1, 1)), one[:5]]) for one in shape.scores]
    narrow = ConformalAlarm.calibrate(fresh, 0.1, trained_on=NONE, band=episodes(still))
    assert narrow.width[0] > 0.05 * narrow.width[1:].mean()
    with pytest.raises(ValueError, match="at least 5"):
        ConformalAlarm.calibrate(fresh, 0.1, trained_on=NONE, band=shape.take([0, 1]))


# -- streaming


@given(seed=st.integers(0, 2**31), joint=st.sampled_from(["max", "split"]), band=st.booleans())
@settings(max_examples=25, deadline=None)
def test_query_by_query_is_the_same_as_at_once(seed: int, joint: str, band: bool) -> None:
    rng = np.random.default_rng(seed)
    values = walks(rng, 40, 7, 2)
    shape = episodes(values[30:], 100, ("dx", "dz")) if band else None
    calibration = episodes(values[:30], 0, ("dx", "dz"))
    alarm = ConformalAlarm.calibrate(calibration, 0.4, trained_on=NONE, joint=joint, band=shape)
    new = walks(rng, 1, 11, 2)[0] + 1
    streamed = [alarm.fires(new[: k + 1]) for k in range(len(new))]
    assert streamed == alarm.alarms(new).any(1).tolist()
    assert alarm.first(new) == (streamed.index(True) if any(streamed) else None)
    assert streamed == sorted(streamed), "an alarm stays on"


def test_scores_that_do_not_fit_are_refused() -> None:
    alarm = ConformalAlarm.calibrate(episodes(walks(np.random.default_rng(0), 20)), 0.1, trained_on=NONE)
    assert alarm.fires(np.array([1e9])) and not alarm.fires(np.array([-1e9]))
    for wrong in (np.zeros((0, 1)), np.zeros((3, 2))):
        with pytest.raises(ValueError, match="outputs risk"):
            alarm.fires(wrong)
    with pytest.raises(ValueError, match="1 of 2 queries have NaN"):
        alarm.fires(np.array([0.0, np.nan]))


def test_a_score_equal_to_the_limit_is_no_alarm() -> None:
    """All safe episodes of a saturated score have the same; with "at least" every one would raise the alarm."""
    alarm = ConformalAlarm.calibrate(episodes([np.ones((3, 1))] * 30), 0.1, trained_on=NONE)
    assert alarm.limits == (1.0,)
    assert not alarm.fires(np.ones((3, 1))) and alarm.fires(np.array([1.0, np.nextafter(1.0, 2.0)]))


# -- what it may be calibrated on


def test_only_safe_and_unseen_episodes_calibrate() -> None:
    good = episodes(walks(np.random.default_rng(0), 30))
    bad = replace(good, unsafe=("failed", *[""] * 28, "had a forbidden contact"))
    with pytest.raises(ValueError, match=r"2 of 30 episodes are not safe, .* libero_spatial-t00-i000\S* failed"):
        ConformalAlarm.calibrate(bad, 0.1, trained_on=NONE)
    assert ConformalAlarm.calibrate(bad.safe(), 0.1, trained_on=NONE).n == 28
    with pytest.raises(ValueError, match="libero_spatial task 0 init 7"):
        ConformalAlarm.calibrate(good, 0.1, trained_on=frozenset({("libero_spatial", 0, 7)}))
    other = episodes(walks(np.random.default_rng(1), 10), 29)
    with pytest.raises(ValueError, match="libero_spatial task 0 init 29"):
        ConformalAlarm.calibrate(good, 0.1, trained_on=NONE, band=other)
    with pytest.raises(ValueError, match="did you mean"):
        ConformalAlarm.calibrate(good, 0.1, trained_on=NONE, joint="mx")
    with pytest.raises(ValueError, match="1 units are there more than once"):
        replace(good, units=(good.units[1], *good.units[1:]))


def test_halves_share_no_start_state() -> None:
    values = walks(np.random.default_rng(0), 21)
    both = episodes(values)
    again = tuple(replace(unit, simulator_seed=1) for unit in both.units)
    doubled = replace(both, scores=both.scores * 2, units=both.units + again, unsafe=both.unsafe * 2)
    for seed in range(5):
        a, b = doubled.halves(seed)
        assert len(a) == 20 and len(b) == 22 and not a.start_states & b.start_states
    assert doubled.halves(0)[0].units != doubled.halves(1)[0].units


def test_a_store_says_which_episodes_are_safe(make_store: MakeStore) -> None:
    rng = np.random.default_rng(0)
    made = [
        make_episode(0, 0, rng, n_queries=3),
        make_episode(0, 1, rng, n_queries=5, success=False),
        make_episode(0, 2, rng, n_queries=4, contacts=(contact(5, force=0.5),)),
        make_episode(0, 3, rng, n_queries=2, contacts=(contact(5),), success=False),
    ]
    store = make_store(made)
    keys = store.queries(["episode"])["episode"].to_numpy()
    scores = np.arange(len(keys), dtype=float)[:, None]
    found = ScoredEpisodes.of(store, scores)
    assert [len(one) for one in found.scores] == [3, 5, 4, 2]
    assert found.scores[1].ravel().tolist() == [3, 4, 5, 6, 7]
    assert found.unsafe == ("", "failed", "", "failed and had a forbidden contact")
    assert [unit.init_state for unit in found.safe().units] == [0, 2]
    assert ScoredEpisodes.of(store, scores, force=0.1).unsafe[2] == "had a forbidden contact"
    with pytest.raises(ValueError, match="14 queries"):
        ScoredEpisodes.of(store, scores[1:])


# -- what is said, and files


def test_too_few_episodes_never_fire_and_say_so() -> None:
    few = ConformalAlarm.calibrate(episodes(walks(np.random.default_rng(0), 18)), 0.05, trained_on=NONE)
    assert not few.certified and not few.fires(np.array([1e300]))
    assert "cannot certify 0.05 with 18 safe episodes, 19 are needed" in str(few)
    seven = episodes(walks(np.random.default_rng(0), 40, 5, 7))
    assert ConformalAlarm.calibrate(seven, 0.05, trained_on=NONE).certified
    split = ConformalAlarm.calibrate(seven, 0.05, trained_on=NONE, joint="split")
    assert "cannot certify 0.05 with 40 safe episodes, 139 are needed (a 7th" in str(split)


def test_the_measured_share_stands_beside_the_promise() -> None:
    rng = np.random.default_rng(0)
    alarm = ConformalAlarm.calibrate(episodes(walks(rng, 39)), 0.1, trained_on=frozenset({("libero_spatial", 0, 900)}))
    assert "not measured" in str(alarm)
    shifted = episodes(walks(rng, 50) + 8, 100)
    seen = replace(shifted, unsafe=("failed", *[""] * 49))
    measured = alarm.measured_on(seen)
    assert measured.measured is not None and measured.measured.n == 49
    assert measured.measured.low > 0.1, "under a shift the measured share gives the promise the lie"
    assert f"{measured.measured.fired} of 49 other safe episodes" in str(measured) and "Wilson" in str(measured)
    with pytest.raises(ValueError, match="init 38"):
        alarm.measured_on(episodes(walks(rng, 5), 38))
    with pytest.raises(ValueError, match="init 900"):
        alarm.measured_on(episodes(walks(rng, 5), 898))


def test_wilson() -> None:
    none, all_, some = FalseAlarms.count([]), FalseAlarms.count([True] * 10), FalseAlarms.count([True] + 19 * [False])
    assert none.rate is None and (none.low, none.high) == (0.0, 1.0)
    assert (all_.rate, all_.high) == (1.0, 1.0) and all_.low == pytest.approx(0.7225, abs=1e-3)
    assert (some.low, some.high) == (pytest.approx(0.0089, abs=1e-3), pytest.approx(0.2361, abs=1e-3))


@pytest.mark.parametrize("n", [9, 60])
def test_an_alarm_survives_being_saved(n: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = walks(rng, n + 30, 6, 7)
    trained = frozenset({("libero_goal", 3, 1)})
    alarm = ConformalAlarm.calibrate(
        episodes(values[:n]), 0.1, trained_on=trained, joint="split", band=episodes(values[n:-10], 500)
    ).measured_on(episodes(values[-10:], 900))
    alarm.save(tmp_path)
    again = ConformalAlarm.load(tmp_path)
    assert str(again) == str(alarm) and again.calibrated_on == alarm.calibrated_on and again.trained_on == trained
    assert again.limits == alarm.limits and again.measured == alarm.measured
    for one in values[-10:]:
        assert np.array_equal(again.excess(one), alarm.excess(one)) and again.first(one) == alarm.first(one)
    path = tmp_path / "conformal.json"
    assert json.loads(path.read_text())["text"] == str(alarm)
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(ValueError, match="format 9"):
        ConformalAlarm.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"conformal\.json"):
        ConformalAlarm.load(tmp_path / "nothing")
