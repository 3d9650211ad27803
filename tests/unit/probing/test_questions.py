"""What scores are judged on: who is to blame beside whether it comes, whole episodes, and what a control knows too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_rollouts import SITE, MakeStore, make_episode, outcome_store

from mist_interp.data.store import RolloutStore
from mist_interp.probing import Failure, Labels, Probe, cross_validate, fit_layers
from mist_interp.probing.questions import EPISODE, questions


@dataclass(frozen=True)
class Blamed:
    """A failure is an event; `dx` is to blame for it in even start states, `dz` in odd ones."""

    name: str = "blamed"

    def labels(self, store: RolloutStore) -> Labels:
        failure = Failure().labels(store)
        even = store.episodes().set_index("episode")["init_state"].loc[failure.episode].to_numpy() % 2 == 0
        event, blamed = failure.values == 1, np.stack([even, ~even], axis=1)
        detection = np.where(event, np.where(blamed, 1.0, np.nan), 0.0)
        attribution = np.where(event, blamed, np.nan)
        names = ("dx", "dz")
        return Labels(detection, names, failure.episode, failure.query, also={"attribution": attribution})


@pytest.mark.parametrize("shown", [False, True], ids=["only that it comes", "also who is to blame"])
def test_a_detector_of_failures_is_no_reader_of_dimensions(make_store: MakeStore, shown: bool) -> None:
    """Hidden states that are the same for all dimensions detect each of them, and cannot say which it is."""
    rng = np.random.default_rng(0)
    episodes = []
    for task, init_state in np.ndindex(4, 20):
        success = bool(rng.random() < 0.5)
        side = -1 if shown and init_state % 2 else 1
        episodes.append(make_episode(task, init_state, rng, success=success, signal=3.0 * side * (not success)))
    report = cross_validate(Probe(SITE, target=Blamed()), make_store(episodes), draws=100, min_episodes=10)
    for output in report.outputs:
        detection, attribution = report.score(output), report.score(output, contrast="attribution")
        assert detection.auc is not None and detection.auc > 0.9
        assert attribution.queries < detection.queries
        assert attribution.auc == pytest.approx(0.98 if shown else 0.5, abs=0.1)
    margin = report.margin("dx", "attribution")
    assert margin.low is not None and (margin.low > 0) == shown


@dataclass(frozen=True)
class Known:
    """A label that is a function of the clock, or of the action about to be sent."""

    by: str
    name: str = "known"

    def labels(self, store: RolloutStore) -> Labels:
        rows = store.queries(["episode", "query", "chunk"])
        action = np.array([chunk[0][2] for chunk in rows["chunk"]])
        value = (rows["query"].to_numpy() >= 4) if self.by == "step counter" else (action > 0)
        return Labels(value[:, None] * 1.0, ("known",), rows["episode"].to_numpy(), rows["query"].to_numpy())


@pytest.mark.parametrize("by", ["step counter", "action only"])
def test_a_label_that_a_control_can_tell_has_no_margin(make_store: MakeStore, by: str) -> None:
    """The hidden state follows what makes the label, so its AUC is high and says nothing."""
    rng = np.random.default_rng(0)
    episodes = []
    for task, init_state in np.ndindex(3, 10):
        course = np.arange(8) - 3.5 if by == "step counter" else 2.0 * rng.normal(size=8)
        action = None if by == "step counter" else course
        episodes.append(make_episode(task, init_state, rng, signal=course, action=action))
    sweep = fit_layers(Probe(SITE, target=Known(by)), make_store(episodes), shuffles=1, draws=100)
    assert sweep.report(3).score().auc == pytest.approx(0.9, abs=0.08)
    for layer in sweep.layers:
        margin = sweep.report(layer).margin()
        assert margin.best_control == by and margin.value is not None and margin.value <= 0


@dataclass(frozen=True)
class Permuted:
    """Failures, given to other episodes."""

    seed: int
    name: str = "permuted"

    def labels(self, store: RolloutStore) -> Labels:
        failure = Failure().labels(store)
        names, number = np.unique(failure.episode, return_inverse=True)
        failed = np.array([failure.values[number == i].max() for i in range(len(names))])
        values = np.random.default_rng(self.seed).permutation(failed)[number, None]
        return replace(failure, values=values, ahead=None)


def test_labels_of_other_episodes_give_one_half(make_store: MakeStore) -> None:
    store = outcome_store(make_store, tasks=4, inits=14, signal=3.0)
    scores: list[Any] = []
    for seed in range(4):
        sweep = fit_layers(Probe(SITE, target=Permuted(seed)), store, by="init_state", shuffles=0, draws=200)
        scores += [report.score() for report in sweep.reports]
    assert np.mean([score.auc for score in scores]) == pytest.approx(0.5, abs=0.06)
    # Intervals of 95 % over draws of episodes, which do not hold the luck of the fit: of eight, two may miss.
    assert sum(score.low < 0.5 < score.high for score in scores) >= 6


# -- episodes


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_whole_episodes_are_judged_by_their_maximum_before_the_shortest_ends(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths, tasks = rng.integers(1, 6, 7), rng.integers(0, 2, 7)
    episode = np.repeat([f"e{i}" for i in range(7)], lengths)
    query = np.concatenate([np.arange(n) for n in lengths])
    values = rng.choice([0.0, 1.0, np.nan], p=[0.6, 0.2, 0.2], size=(len(query), 1))
    incident = rng.random(len(query)) < 0.2
    fold_of = np.repeat(rng.integers(-1, 2, 7), lengths)
    labels = Labels(values, ("dz",), episode, query, incident=incident)
    data: Any = SimpleNamespace(labels=labels, task=np.repeat(tasks, lengths))
    scores = rng.normal(size=len(query)) + 10 * query  # whoever lasts longer has the larger maximum
    asked = next(one for one in questions(data, fold_of) if one.contrast == EPISODE)
    expected = []
    for number in range(7):
        mine = (episode == f"e{number}") & (query < lengths[tasks == tasks[number]].min())
        seen = values[mine, 0]
        if fold_of[mine][0] < 0:
            continue
        if (seen == 1).any() or ((seen == 0).any() and not incident[mine].any()):
            expected.append((scores[mine].max(), float((seen == 1).any()), fold_of[mine][0]))
    assert list(zip(asked.of(scores), asked.rows.labels, asked.rows.fold, strict=True)) == expected


def test_an_event_behind_the_cut_is_not_seen() -> None:
    """Three episodes of one task, of 3, 2 and 4 queries: two queries of each count."""
    episode, query = np.repeat(["a", "b", "c"], [3, 2, 4]), np.array([0, 1, 2, 0, 1, 0, 1, 2, 3])
    values = np.array([0, 0, 1, np.nan, 0, 0, 1, 0, 0])[:, None]
    incident = np.isnan(values[:, 0])
    data: Any = SimpleNamespace(labels=Labels(values, ("dz",), episode, query, incident=incident), task=np.zeros(9))
    asked = questions(data, np.zeros(9, dtype=int))[-1]
    assert list(asked.rows.labels) == [0, 1]  # a is quiet, b lives through what is another's, c is positive
    assert list(asked.of(np.array([1.0, 2, 99, 99, 99, 4, 3, 99, 99]))) == [2, 4]
