"""Probes: a planted signal is found where it is, chance is called chance, and what the controls know is not claimed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import LinearSVC
from synthetic_rollouts import NOISE_SITE, SITE, MakeStore, contact, make_episode, outcome_store

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import Site
from mist_interp.probing import Probe, cross_validate
from mist_interp.probing.controls import CONTROLS, SHUFFLED

DRAWS = 500


def test_a_planted_signal_is_found_at_its_site_and_nowhere_else(make_store: MakeStore) -> None:
    store = outcome_store(make_store, signal=2.0)
    report = cross_validate(Probe(SITE), store, draws=DRAWS)
    score, margin = report.score(), report.margins[0]
    # One unit Gaussian against another 2 away: AUC = Phi(2 / sqrt 2) = 0.921.
    assert score.auc == pytest.approx(0.921, abs=0.04)
    assert score.low is not None and score.high is not None and score.low < score.auc < score.high
    assert margin.value is not None and margin.low is not None and margin.value > 0.3 and margin.low > 0.2
    elsewhere = cross_validate(Probe(NOISE_SITE), store, draws=DRAWS).score()
    assert elsewhere.low is not None and elsewhere.high is not None and elsewhere.low < 0.5 < elsewhere.high


def test_the_controls_are_always_in_the_table(make_store: MakeStore) -> None:
    report = cross_validate(Probe(SITE), outcome_store(make_store, signal=2.0), draws=DRAWS)
    assert [score.reader for score in report.only().scores] == ["probe", *CONTROLS]
    for control in report.controls:
        assert control.auc == pytest.approx(0.5, abs=0.12), control.reader
    frame = report.to_frame()
    assert list(frame["reader"]) == 2 * ["probe", *CONTROLS] and frame["margin"].notna().sum() == 2
    json.dumps(report.to_dict())


def test_some_controls_can_be_left_out_and_unknown_ones_are_refused(make_store: MakeStore) -> None:
    store = outcome_store(make_store, signal=2.0)
    report = cross_validate(Probe(SITE), store, controls=("proprio only",), draws=DRAWS).only()
    assert {score.reader for score in report.scores} == {"probe", "proprio only"}
    # Solved together with fewer others, a fit ends elsewhere within its tolerance.
    beside_all = cross_validate(Probe(SITE), store, draws=DRAWS).score()
    assert report.score().auc == pytest.approx(beside_all.auc, abs=1e-3)
    assert {margin.best_control for margin in report.margins} == {"proprio only"}
    with pytest.raises(UnknownName, match="did you mean 'proprio only'"):
        cross_validate(Probe(SITE), store, controls=("proprio",))


def test_shuffled_labels_hold_one_half_in_their_interval(make_store: MakeStore) -> None:
    """Also beside a strong signal, and without crying wolf: the interval holds the luck of the shuffling too."""
    for seed in range(4):
        store = outcome_store(make_store, tasks=4, inits=14, seed=seed, signal=3.0)
        report = cross_validate(Probe(SITE, seed=seed), store, draws=200, min_episodes=15)
        shuffled = report.score(reader=SHUFFLED)
        assert shuffled.low is not None and shuffled.high is not None and shuffled.low < 0.5 < shuffled.high
        assert not any("leaks" in flag for flag in report.flags)


@pytest.mark.parametrize(("where", "control"), [("action", "action only"), ("state", "proprio only")])
def test_what_a_control_knows_as_well_is_not_claimed(make_store: MakeStore, where: str, control: str) -> None:
    """The hidden state and the control carry the same signal: the probe is good, the margin is nothing."""
    report = cross_validate(Probe(SITE), outcome_store(make_store, signal=2.0, **{where: 2.0}), draws=DRAWS)
    margin = report.margins[0]
    assert report.score().auc == pytest.approx(0.92, abs=0.05)
    assert margin.best_control == control
    assert margin.value == pytest.approx(0, abs=0.05) and margin.low is not None and margin.low < 0


def test_a_label_that_only_the_clock_knows_is_given_to_the_clock(make_store: MakeStore) -> None:
    """Contacts happen at step 40 in every episode, and the hidden state counts time too."""
    rng = np.random.default_rng(0)
    time = np.arange(10) * 1.0
    episodes = [
        make_episode(task, i, rng, n_queries=10, contacts=(contact(40),), signal=time)
        for task in range(5)
        for i in range(8)
    ]
    report = cross_validate(Probe(SITE, target="contact"), make_store(episodes), draws=DRAWS)
    clock = report.score(reader="step counter")
    assert clock.auc is not None and clock.auc > 0.99, "bins let a linear control learn any course over time"
    assert report.margins[0].best_control == "step counter" and (report.margins[0].value or 0) <= 0


def test_a_label_that_only_tells_the_task_is_worth_nothing_on_a_new_task(make_store: MakeStore) -> None:
    rng = np.random.default_rng(0)
    episodes = [
        make_episode(task, i, rng, success=rng.random() < (0.9 if task % 2 else 0.1), task_offset=5 * np.eye(16)[task])
        for task in range(6)
        for i in range(12)
    ]
    store = make_store(episodes)
    across = cross_validate(Probe(SITE), store, "task", draws=DRAWS)
    task_id = across.score(reader="task id")
    assert task_id.auc == 0.5 and task_id.degenerate
    within = cross_validate(Probe(SITE), store, "init_state", draws=DRAWS)
    known = within.score(reader="task id")
    assert known.auc is not None and known.auc > 0.8 and not known.degenerate
    assert within.margins[0].value is not None and within.margins[0].value < 0.05


def test_too_few_episodes_give_no_auc_and_a_lowered_limit_is_flagged(make_store: MakeStore) -> None:
    store = outcome_store(make_store, tasks=4, inits=8, signal=2.0)
    silent = cross_validate(Probe(SITE), store, draws=50)
    assert silent.score().auc is None and silent.margins[0].value is None and silent.macro_auc is None
    assert "no AUC is reported" in silent.flags[0]
    loud = cross_validate(Probe(SITE), store, draws=50, min_episodes=5)
    assert loud.score().auc is not None and "demonstration" in loud.flags[0]
    enough = cross_validate(Probe(SITE), outcome_store(make_store, signal=2.0), draws=50)
    assert enough.flags == ()


# -- fit and evaluate


def test_fit_and_evaluate_on_other_start_states(make_store: MakeStore) -> None:
    probe = Probe(SITE).fit(outcome_store(make_store, signal=2.0))
    test = outcome_store(make_store, signal=2.0, first_init=30, seed=1)
    report = probe.evaluate(test, draws=DRAWS)
    assert report.split == "test episodes" and report.score().auc == pytest.approx(0.92, abs=0.05)


def test_judging_on_training_episodes_is_refused(make_store: MakeStore) -> None:
    store = outcome_store(make_store, signal=2.0)
    probe = Probe(SITE).fit(store.only(store.keys[:60]))
    with pytest.raises(ValueError, match="training and in the evaluation"):
        probe.evaluate(store)
    probe.evaluate(store.only(store.keys[60:]), min_episodes=1, draws=10)


def test_standardisation_sees_the_training_rows_only(make_store: MakeStore) -> None:
    """Judging the same row in another company must give the same score."""
    probe = Probe(SITE).fit(outcome_store(make_store, signal=2.0))
    x = outcome_store(make_store, signal=2.0, first_init=30, seed=1).load(SITE)[0]
    together = probe.decision_function(np.concatenate([x, 1000 * x]))[: len(x)]
    np.testing.assert_array_equal(together, probe.decision_function(x))


def test_one_label_only_is_an_error(make_store: MakeStore) -> None:
    with pytest.raises(ValueError, match="only the label 0"):
        Probe(SITE).fit(outcome_store(make_store, tasks=2, inits=4, failure_rate=0.0))


def test_an_unfitted_probe_says_so(make_store: MakeStore) -> None:
    for call in (lambda p: p.decision_function(np.zeros((1, 4))), lambda p: p.direction(), lambda p: p.save("/tmp/x")):
        with pytest.raises(ValueError, match="call fit first"):
            call(Probe(SITE))


def test_rows_of_another_width_are_an_error(make_store: MakeStore) -> None:
    probe = Probe(SITE).fit(outcome_store(make_store, tasks=3, inits=8, signal=2.0))
    with pytest.raises(ValueError, match="width 16"):
        probe.decision_function(np.zeros((3, 8)))


def test_fitting_changes_neither_the_estimator_nor_its_settings(make_store: MakeStore) -> None:
    estimator = LogisticRegression(C=0.5)
    probe = Probe(SITE, estimator=estimator)
    cross_validate(probe, outcome_store(make_store, tasks=3, inits=8, signal=2.0), draws=10)
    assert not hasattr(probe, "readouts_") and not hasattr(estimator, "coef_")


def test_any_classifier_of_scikit_learn_can_be_used(make_store: MakeStore) -> None:
    store = outcome_store(make_store, tasks=3, signal=3.0)
    for estimator in (GaussianNB(), RidgeClassifier(), LinearSVC()):
        report = cross_validate(Probe(SITE, estimator=estimator), store, min_episodes=5, draws=10)
        assert report.score().auc is not None and report.score().auc > 0.9, estimator
        assert (report.score().brier is None) == (not hasattr(estimator, "predict_proba"))


# -- direction


def test_the_direction_points_to_the_planted_signal_in_its_unit(make_store: MakeStore) -> None:
    store = outcome_store(make_store, signal=4.0)
    direction = Probe(SITE).fit(store).direction()
    assert direction.site == Site(SITE) and direction.tokens == "action_read"
    assert direction.vector[5] / direction.norm > 0.9
    x, _ = store.load(SITE)
    assert np.std(direction.project(x)) == pytest.approx(1.0, rel=0.02)
    with pytest.raises(ValueError, match="init 0"):
        from mist_interp.data.records import Unit

        direction.check_disjoint([Unit("libero_spatial", 0, 0)])


def test_moving_along_the_direction_raises_the_score(make_store: MakeStore) -> None:
    probe = Probe(SITE).fit(outcome_store(make_store, tasks=3, inits=8, signal=2.0))
    x = np.zeros((1, 16), dtype=np.float32)
    moved = x + 2 * probe.direction().vector.numpy()
    assert probe.decision_function(moved) > probe.decision_function(x)


# -- files


@pytest.mark.parametrize(
    "estimator",
    [None, LogisticRegression(C=2.0), LinearSVC(), SGDClassifier(random_state=0)],
    ids=str,
)
def test_a_probe_survives_being_saved_with_its_controls(
    make_store: MakeStore, tmp_path: Path, estimator: object
) -> None:
    probe = Probe(("resid_post", 3), estimator=estimator).fit(outcome_store(make_store, tasks=3, inits=8, signal=2.0))
    probe.save(tmp_path / "p")
    again = Probe.load(tmp_path / "p")
    test = outcome_store(make_store, tasks=2, inits=6, signal=2.0, first_init=30, seed=1)
    np.testing.assert_allclose(again.decision_function(test), probe.decision_function(test), rtol=1e-6)
    assert again.evaluate(test, min_episodes=2, draws=20) == probe.evaluate(test, min_episodes=2, draws=20)
    assert again.direction().vector.tolist() == probe.direction().vector.tolist()
    assert (again.site_, again.source_, again.trained_on_) == (probe.site_, probe.source_, probe.trained_on_)
    assert sorted(path.suffix for path in (tmp_path / "p").iterdir()) == [".json", ".safetensors"]


class OfOnesOwn(GaussianNB):
    pass


def test_what_cannot_be_stored_safely_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    probe = Probe(SITE, estimator=OfOnesOwn()).fit(outcome_store(make_store, tasks=3, inits=8, signal=2.0))
    with pytest.raises(ValueError, match=r"cannot be stored: it holds types that are not trusted .*OfOnesOwn"):
        probe.save(tmp_path / "p")
    assert not (tmp_path / "p").exists()
    with pytest.raises(ValueError, match="not linear"):
        probe.direction()
    with pytest.raises(FileNotFoundError, match=r"probe\.json"):
        Probe.load(tmp_path)


def test_plot_shows_probe_and_controls(make_store: MakeStore) -> None:
    ax = cross_validate(Probe(SITE), outcome_store(make_store, signal=2.0), draws=20).plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == [*reversed(CONTROLS), "probe"]
