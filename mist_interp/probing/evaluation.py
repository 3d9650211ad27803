"""Does a probe hold on episodes that it was not fitted on?

Either on a test store (`Probe.evaluate`), or by fitting anew in every fold and judging each query once
(`cross_validate`). Both give the same report: the probe and its controls on the same queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from mist_interp.core.errors import UnknownName
from mist_interp.data.manifest import BALANCED, CHOSEN
from mist_interp.data.store import RolloutStore
from mist_interp.probing.controls import CONTROLS, SHUFFLED, SHUFFLED_FITS
from mist_interp.probing.dataset import ProbeData
from mist_interp.probing.folds import Fold, make_folds
from mist_interp.probing.leaks import Spread, refuse_standardised
from mist_interp.probing.questions import questions
from mist_interp.probing.readout import Estimator, Readout
from mist_interp.probing.report import MIN_EPISODES, PROBE, Predictions, ProbeReport, make_report, with_queries
from mist_interp.probing.scores import DRAWS

if TYPE_CHECKING:
    from mist_interp.probing.probe import Probe

SPLIT_NAMES = {"task": "leave one task out", "init_state": "same tasks, other start states"}
SELECTION_FLAGS = {
    BALANCED: "episodes were chosen by outcome: base rates and probabilities are not those of the policy",
    CHOSEN: "episodes were picked one by one (`only`): base rates and probabilities need not be those of the policy",
}


def cross_validate(
    probe: Probe,
    store: RolloutStore,
    by: str | Sequence[Fold] = "task",
    *,
    count: int = 5,
    controls: Sequence[str] = CONTROLS,
    min_episodes: int = MIN_EPISODES,
    draws: int = DRAWS,
) -> ProbeReport:
    """Judge every query by a model that saw neither its task (`by="task"`) nor its start state (`by="init_state"`).

    The probe itself is left as it is; clones are fitted in every fold, standardisation included.

    Args:
        probe: what to judge; it need not be fitted.
        store: the episodes.
        by: how to split, see `make_folds`; or folds of one's own.
        count: number of folds for `init_state`.
        controls: which are fitted beside it; a margin is over the best of these.
        min_episodes: fewer positive or negative episodes than this give no AUC; below 20 the report is flagged.
        draws: resamplings for the intervals.

    Raises:
        UnknownName: there is no such control.
        ValueError: the store cannot be split, or the target has no label.
    """
    data = with_controls(probe.read(store), controls)
    plan = plan_folds(data, make_folds(store, by, count))
    predictions = out_of_fold(data, probe.estimator_, plan, probe.seed)
    return _report(
        probe, data, predictions, plan.fold_of, split_name(by), store, min_episodes=min_episodes, draws=draws
    )


def with_controls(data: ProbeData, controls: Sequence[str]) -> ProbeData:
    """The data of the probe and of some of its controls.

    Raises:
        UnknownName: there is no such control.
    """
    for control in controls:
        if control not in CONTROLS:
            raise UnknownName("control", control, CONTROLS)
    kept = {PROBE, *controls, *(SHUFFLED_FITS if SHUFFLED in controls else ())}
    return replace(data, features={fit: x for fit, x in data.features.items() if fit in kept})


@dataclass(frozen=True)
class Plan:
    """What is fitted and judged in which fold.

    Attributes:
        numbers: number of each fold that has something to fit and to judge.
        train: per such fold, the labelled queries that it is fitted on.
        test: per such fold, the queries that it scores, labelled or not: a running maximum needs them all.
        fold_of: (queries,) the fold that scores a query; -1 where none does.
    """

    numbers: tuple[int, ...]
    train: tuple[Bool[np.ndarray, " queries"], ...]
    test: tuple[Bool[np.ndarray, " queries"], ...]
    fold_of: Int[np.ndarray, " queries"]


def plan_folds(data: ProbeData, folds: Sequence[Fold]) -> Plan:
    """Masks of the folds; one without labels on either side is left out."""
    known, fold_of = data.labelled(), np.full(len(data.labels), -1)
    kept = []
    for number, fold in enumerate(folds):
        train, test = data.labelled(fold.train), np.isin(data.labels.episode, list(fold.test))
        if train.any() and (test & known).any():
            fold_of[test] = number
            kept.append((number, train, test))
    return Plan(tuple(n for n, *_ in kept), tuple(t for _, t, _ in kept), tuple(t for *_, t in kept), fold_of)


def out_of_fold(data: ProbeData, estimator: Estimator, plan: Plan, seed: int) -> dict[str, Predictions]:
    """Per fit, scores of all queries, each by what was fitted without its fold."""
    shape = data.labels.values.shape
    scores: dict[str, np.ndarray] = {fit: np.full(shape, np.nan) for fit in data.features}
    chances: dict[str, np.ndarray | None] = {fit: np.full(shape, np.nan) for fit in data.features}
    fitted = data.fit_folds(estimator, plan.train, [(seed, number) for number in plan.numbers])
    for readouts, test in zip(fitted, plan.test, strict=True):
        for fit, predicted in data.predict(readouts, test).items():
            scores[fit][test] = predicted.scores
            mine = chances[fit]
            if mine is not None and predicted.probabilities is not None:
                mine[test] = predicted.probabilities
            else:
                chances[fit] = None
    return {fit: Predictions(scores[fit], chances[fit]) for fit in scores}


def judge(
    probe: Probe, readouts: Mapping[str, Readout], test: RolloutStore, *, min_episodes: int, draws: int
) -> ProbeReport:
    """Report of fitted read-outs on a test store; pairs are counted over the whole store."""
    data = probe.read(test)
    if hasattr(probe, "spread_"):
        both = probe.spread_.with_(Spread.of(data.features[PROBE]))
        refuse_standardised(both, f"{data.site.name} in the training and the test episodes")
    everything = np.ones(len(data.labels), dtype=bool)
    return _report(
        probe,
        data,
        data.predict(readouts, everything),
        np.zeros(len(data.labels), dtype=int),
        "test episodes",
        test,
        min_episodes=min_episodes,
        draws=draws,
    )


def split_name(by: str | Sequence[Fold]) -> str:
    """How episodes were split, in words."""
    return SPLIT_NAMES[by] if isinstance(by, str) else f"{len(by)} given folds"


def selection_flags(store: RolloutStore) -> tuple[str, ...]:
    """What to say of episodes that are no sample of the policy's."""
    flag = SELECTION_FLAGS.get(store.manifest.selection)
    return () if flag is None else (flag,)


def query_columns(data: ProbeData, fold_of: Int[np.ndarray, " queries"]) -> dict[str, Any]:
    """What is known of every query besides its scores, for `ProbeReport.queries`."""
    labels = data.labels
    known: dict[str, Any] = {"episode": labels.episode, "query": labels.query, "task": data.task, "fold": fold_of}
    known |= {"step": labels.step, "label": labels.values, "ahead": labels.ahead}
    return {**known, "incident": False if labels.incident is None else labels.incident}


def _report(
    probe: Probe,
    data: ProbeData,
    predictions: Mapping[str, Predictions],
    fold_of: Int[np.ndarray, " queries"],
    split: str,
    store: RolloutStore,
    *,
    min_episodes: int,
    draws: int,
) -> ProbeReport:
    report = make_report(
        predictions,
        questions(data, fold_of),
        site=data.site.name,
        tokens=probe.tokens,
        split=split,
        masked=data.labels.masked,
        min_episodes=min_episodes,
        draws=draws,
    )
    report = replace(report, flags=(*report.flags, *selection_flags(store)))
    return with_queries(report, query_columns(data, fold_of), predictions[PROBE])
