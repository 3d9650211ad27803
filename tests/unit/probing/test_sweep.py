"""Sweeps: a planted signal is found at its layer and output and at no other; what leaks is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from synthetic_rollouts import GROUP, NOISE_SITE, SITE, MakeStore, make_episode, outcome_store
from test_several_outputs import PerDimension

from mist_interp.data.manifest import check_rates
from mist_interp.data.records import EpisodeRecord
from mist_interp.probing import Failure, Fold, LayerSweep, Probe, cross_validate, fit_layers
from mist_interp.probing.evaluation import plan_folds
from mist_interp.probing.folds import make_folds
from mist_interp.probing.foresight import lead_time
from mist_interp.probing.leaks import Spread, grouped
from mist_interp.probing.logistic import Task, fit_logistic, moments
from mist_interp.probing.readout import fit_readout
from mist_interp.probing.report import PROBE, ProbeReport
from mist_interp.probing.scores import Judged, auc_of_draws
from mist_interp.probing.sweep import inner_auc

DRAWS = 200


def test_the_planted_signal_is_found_at_its_layer_and_output_and_nowhere_else(make_store: MakeStore) -> None:
    store = outcome_store(make_store, tasks=4, inits=14, signal=2.0)
    sweep = fit_layers(Probe(SITE, target=PerDimension()), store, draws=DRAWS, nested=True)
    found = sweep.matrix()
    assert found.loc[3, "dz"] == pytest.approx(0.92, abs=0.05) and sweep.best("dz").place.layer == 3
    assert "optimistic" in sweep.best("dz").remark
    for layer, output in ((0, "dz"), (0, "dx"), (3, "dx")):
        score = sweep.report(layer).score(output)
        assert score.low is not None and score.high is not None and score.low < 0.5 < score.high, (layer, output)
    assert sweep.nested is not None and set(sweep.chosen["dz"]) == {f"{SITE} @ action_read"}
    # dz is read off layer 3 in every fold, so the honest number is that of layer 3.
    assert sweep.nested.score("dz").auc == pytest.approx(found.loc[3, "dz"])


def test_the_layer_for_a_fold_is_chosen_without_that_fold(make_store: MakeStore) -> None:
    """Other activations and labels in a fold change what is chosen for the others, and not what is chosen for it."""
    store = outcome_store(make_store, tasks=4, inits=6, signal=1.0)
    probe = Probe(SITE, estimator=KNeighborsClassifier(1))
    data = probe.read(store)
    plan = plan_folds(data, make_folds(store))
    honest = inner_auc(data, probe, plan)
    noise = replace(data, features={PROBE: np.random.default_rng(0).normal(size=data.features[PROBE].shape)})
    assert np.abs(inner_auc(noise, probe, plan) - 0.5).max() < 0.2, "what was seen would be known by heart"
    for fold, mine in enumerate(plan.test):
        labels = replace(data.labels, values=np.where(mine[:, None], 1 - data.labels.values, data.labels.values))
        x = np.where(mine[:, None], 7.0, data.features[PROBE])
        other = inner_auc(replace(data, labels=labels, features={PROBE: x}), probe, plan)
        assert other[fold] == honest[fold] and (np.delete(other, fold) != np.delete(honest, fold)).all()


def test_a_sweep_says_of_a_layer_what_cross_validation_says(make_store: MakeStore, tmp_path: Path) -> None:
    store = outcome_store(make_store, tasks=3, inits=8, signal=2.0)
    sweep = fit_layers(Probe(NOISE_SITE), store, [3], "init_state", shuffles=5, draws=50, min_episodes=5)
    alone = cross_validate(Probe(SITE), store, "init_state", draws=50, min_episodes=5)
    assert sweep.report(3) == alone and alone.queries is not None
    sweep.save(tmp_path)
    assert LayerSweep.load(tmp_path) == sweep


def test_episodes_of_both_folds_standardised_data_and_fitted_parts_are_refused(make_store: MakeStore) -> None:
    store = outcome_store(make_store, tasks=3, inits=6, signal=2.0)
    first, rest = store.keys[:6], store.keys[6:]
    with pytest.raises(ValueError, match="training and in the evaluation"):
        cross_validate(Probe(SITE), store, [Fold("mine", train=store.keys, test=first)])
    with pytest.raises(ValueError, match="judged in two folds"):
        cross_validate(Probe(SITE), store, [Fold("a", rest, first), Fold("b", store.keys[12:], first)])
    scaler = StandardScaler().fit(store.load(SITE)[0])
    known = make_pipeline(FrozenEstimator(scaler), LogisticRegression())
    with pytest.raises(ValueError, match="comes fitted"):
        cross_validate(Probe(SITE, estimator=known), store)
    rows, place = scaler.transform(store.load(SITE)[0]), 0
    episodes: list[EpisodeRecord] = []
    for key in store.keys:
        episode = store.episode(key)
        for query in episode.queries:
            query.activations[GROUP.key(SITE)][:] = rows[place]  # type: ignore[index]
            place += 1
        episodes.append(episode)
    whole = make_store(episodes)
    with pytest.raises(ValueError, match="was standardised"):
        fit_layers(Probe(SITE), whole, [3])
    train, test = whole.only(rest), whole.only(first)
    probe = Probe(SITE).fit(train)  # a part of them looks like any other
    with pytest.raises(ValueError, match="in the training and the test episodes has mean 0"):
        probe.evaluate(test)
    plain = Probe(SITE).fit(store.only(rest))
    assert plain.evaluate(store.only(first), draws=20).score().queries > 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 40), st.integers(2, 40))
def test_the_spread_of_two_parts_is_that_of_all_rows(seed: int, first: int, second: int) -> None:
    x = np.random.default_rng(seed).normal(3.0, 2.0, size=(first + second, 3))
    both, whole = Spread.of(x[:first]).with_(Spread.of(x[first:])), Spread.of(x)
    assert both.count == whole.count
    np.testing.assert_allclose(both.mean, whole.mean, rtol=1e-9)
    np.testing.assert_allclose(both.scale, whole.scale, rtol=1e-9)


def test_shares_of_episodes_chosen_by_outcome_are_no_rates(make_store: MakeStore) -> None:
    rng = np.random.default_rng(0)
    episodes = [make_episode(task, i, rng, success=i % 2 == 0) for task in range(3) for i in range(4)]
    store = make_store(episodes, selection="balanced")
    with pytest.raises(ValueError, match="not rates of"):
        store.check_rates()
    with pytest.raises(ValueError, match="not rates of"):
        check_rates(store.episodes())
    report = cross_validate(Probe(SITE), store, draws=10, min_episodes=2)
    assert any("chosen by outcome" in flag for flag in report.flags)


def test_only_a_choice_of_the_user_is_flagged(make_store: MakeStore) -> None:
    store = outcome_store(make_store, tasks=3, inits=6, signal=3.0)
    probe = Probe(SITE).fit(store.where(inits=range(3)))

    def flags(report: ProbeReport) -> set[str]:
        return {flag for flag in report.flags if "episodes were" in flag}

    quick = {"draws": 10, "min_episodes": 2}
    assert not flags(cross_validate(Probe(SITE), store, **quick))
    assert not flags(cross_validate(Probe(SITE), store, "init_state", count=2, **quick))
    assert not flags(probe.evaluate(store.where(inits=range(3, 6)), **quick))
    judged = store.where(inits=range(3, 6))
    (flag,) = flags(probe.evaluate(judged.only(judged.keys[1:]), **quick))
    assert "picked one by one" in flag
    (flag,) = flags(cross_validate(Probe(SITE), store.only(store.keys[1:]), **quick))
    assert "picked one by one" in flag
    (report,) = fit_layers(Probe(SITE), store.only(store.keys[1:]), [3], shuffles=0, **quick).reports
    assert flags(report) == {flag}


def test_a_search_never_separates_a_start_state(make_store: MakeStore) -> None:
    store = outcome_store(make_store, tasks=3, inits=6, signal=3.0)
    steps = make_pipeline(StandardScaler(), LogisticRegression())
    search = GridSearchCV(steps, {"logisticregression__C": [0.1, 1]}, cv=2)
    report = cross_validate(Probe(SITE, estimator=search), store, draws=10, min_episodes=5)
    assert report.score().auc is not None and report.score().auc > 0.9
    groups = np.repeat(np.arange(10), 4)
    x, y = np.random.default_rng(0).normal(size=(40, 2)), groups % 2 * 1.0
    for train, test in grouped(search, x, y, groups).cv:
        assert not set(groups[train]) & set(groups[test])
    with pytest.raises(ValueError, match="both sides"):
        grouped(search.set_params(cv=KFold(3, shuffle=True)), x, y, groups)
    probe = Probe(SITE, estimator=search.set_params(cv=2)).fit(store)
    probe.save(store.folder / "probe")
    again = Probe.load(store.folder / "probe")
    np.testing.assert_array_equal(again.decision_function(store), probe.decision_function(store))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.1, 3.0]), st.sampled_from([None, "balanced", {0.0: 1, 1.0: 3}]))
def test_the_joint_fit_is_that_of_scikit_learn(seed: int, c: float, weight: object) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(120, 5)) * np.array([1e-3, 1, 30, 1, 1]) + 7
    y = (rng.random((120, 2)) < 1 / (1 + np.exp(-2 * (x[:, 1:3] - 7)))).astype(float)
    y[rng.random((120, 2)) < 0.1] = np.nan
    y[0], y[1] = 1.0, 0.0
    rows = np.r_[True, True, rng.random(118) < 0.7]
    tasks = [Task(rows, y), Task(np.ones(120, dtype=bool), y)]
    template = LogisticRegression(C=c, class_weight=weight, max_iter=1000)
    known = moments(x, [task.rows for task in tasks])
    for place, (task, fitted) in enumerate(zip(tasks, fit_logistic(template, x, tasks, known), strict=True)):
        scaler = StandardScaler().fit(x[task.rows])
        np.testing.assert_allclose(known.scales[place], scaler.scale_, rtol=1e-9)
        for output, mine in enumerate(fitted):
            kept = task.rows & ~np.isnan(y[:, output])
            exact = LogisticRegression(C=c, class_weight=weight, max_iter=5000, tol=1e-10)
            exact.fit(scaler.transform(x[kept]), y[kept, output])
            assert mine is not None
            np.testing.assert_allclose(mine.coef_, exact.coef_, atol=0.02 * np.abs(exact.coef_).max())
            np.testing.assert_allclose(mine.intercept_, exact.intercept_, atol=0.02)


def test_what_is_judged_does_not_move_what_is_fitted() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 3)), rng.integers(0, 2, (200, 1)).astype(float)
    rows, other = np.arange(200) < 150, x.copy()
    other[150:] = 50 + 9 * other[150:]
    fits = [fit_logistic(LogisticRegression(), one, [Task(rows, y)], moments(one, [rows]))[0][0] for one in (x, other)]
    alone = fit_readout(LogisticRegression(), x[:150], y[:150])
    for fit in fits:
        assert fit is not None
        np.testing.assert_allclose(fit.coef_, alone.estimators[0].coef_, atol=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_draws_count_every_pair_of_queries_by_the_weights_of_their_episodes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 40
    episode = rng.integers(0, 6, count)
    judged = Judged(rng.integers(0, 2, count).astype(float), episode % 2, episode, episode % 3)
    scores, weights = np.round(rng.normal(size=count), 1), rng.integers(0, 4, (3, 6)).astype(float)
    for drawn, found in zip(weights, auc_of_draws(scores, judged, weights), strict=True):
        won = pairs = 0.0
        for i in np.flatnonzero(judged.labels == 1):
            for j in np.flatnonzero((judged.labels == 0) & (judged.fold == judged.fold[i])):
                times = drawn[episode[i]] * drawn[episode[j]]
                won += times * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
                pairs += times
        np.testing.assert_equal(np.isnan(found), pairs == 0)
        assert pairs == 0 or found == pytest.approx(won / pairs)


def test_an_alarm_is_about_the_event_that_follows_it_and_exceeds_its_threshold() -> None:
    """Two contacts: the alarm during the first says nothing of the second; one at the limit is none."""
    rows = [(0, 0, 0.5), (8, np.nan, 0.9), (16, 0, 0.1), (24, 1, 0.7), (32, 1, 0.9)]
    queries = pd.DataFrame(rows, columns=["step", "label", "probability"])
    ahead = (40 - queries["step"]).where(queries["label"] == 1)
    queries = queries.assign(episode="a", incident=True, ahead=ahead)
    found = lead_time(queries, 0.5)
    assert found.steps == (16,) and found.events == 1
    assert lead_time(queries, 0.95).steps == () and lead_time(queries, 0.4).steps == (40,)


def test_lead_times_and_reliability(make_store: MakeStore) -> None:
    report = cross_validate(Probe(SITE, target=Failure()), outcome_store(make_store, tasks=3, signal=3.0), draws=20)
    always, never = report.lead_time(-0.1), report.lead_time(1.1)
    assert always.foreseen == 1.0 and always.median == 220.0 and always.false_alarm_rate == 1.0
    assert never.steps == () and never.median is None and never.false_alarms == 0 and never.events == always.events
    table = report.reliability()
    assert table["queries"].sum() == report.score().queries
    gap = (table["probability"] - table["frequency"]).abs() @ table["queries"] / table["queries"].sum()
    assert gap == pytest.approx(report.score().ece)
    assert "| failure |" in report.to_markdown() and report.macro("episode").counted == ("failure",)
