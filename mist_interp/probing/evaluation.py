"""Does a probe hold on episodes that it was not fitted on?

Either on a test store (`Probe.evaluate`), or by fitting anew in every fold and judging each query once
(`cross_validate`). Both give the same report: the probe and its controls on the same queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from mist_interp.data.store import RolloutStore
from mist_interp.probing.dataset import FITS, ProbeData
from mist_interp.probing.folds import make_folds
from mist_interp.probing.readout import Readout
from mist_interp.probing.report import MIN_EPISODES, Predictions, ProbeReport, make_report
from mist_interp.probing.scores import DRAWS, Judged

if TYPE_CHECKING:
    from mist_interp.probing.probe import Probe

SPLIT_NAMES = {"task": "leave one task out", "init_state": "same tasks, other start states"}


def cross_validate(
    probe: Probe,
    store: RolloutStore,
    by: str = "task",
    *,
    count: int = 5,
    min_episodes: int = MIN_EPISODES,
    draws: int = DRAWS,
) -> ProbeReport:
    """Judge every query by a model that saw neither its task (`by="task"`) nor its start state (`by="init_state"`).

    The probe itself is left as it is; clones are fitted in every fold, standardisation included.

    Args:
        probe: what to judge; it need not be fitted.
        store: the episodes.
        by: how to split, see `make_folds`.
        count: number of folds for `init_state`.
        min_episodes: fewer positive or negative episodes than this give no AUC; below 20 the report is flagged.
        draws: resamplings for the intervals.

    Raises:
        ValueError: the store cannot be split, or the target has no label.
    """
    data = probe.read(store)
    queries, outputs = data.labels.values.shape
    fold_of = np.full(queries, -1)
    scores = {fit: np.full((queries, outputs), np.nan) for fit in FITS}
    chances = {fit: np.full((queries, outputs), np.nan) for fit in FITS}
    has_chances = dict.fromkeys(FITS, True)
    for number, fold in enumerate(make_folds(store, by, count)):
        train, test = data.labelled(fold.train), data.labelled(fold.test)
        if not train.any() or not test.any():
            continue
        fold_of[test] = number
        readouts = data.fit(probe.estimator_, train, (probe.seed, number))
        for fit, predicted in data.predict(readouts, test).items():
            scores[fit][test] = predicted.scores
            if predicted.probabilities is None:
                has_chances[fit] = False
            else:
                chances[fit][test] = predicted.probabilities
    return make_report(
        {fit: Predictions(scores[fit], chances[fit] if has_chances[fit] else None) for fit in FITS},
        judged_rows(data, fold_of),
        site=data.site.name,
        tokens=probe.tokens,
        split=SPLIT_NAMES[by],
        masked=data.labels.masked,
        min_episodes=min_episodes,
        draws=draws,
    )


def judge(
    probe: Probe, readouts: Mapping[str, Readout], test: RolloutStore, *, min_episodes: int, draws: int
) -> ProbeReport:
    """Report of fitted read-outs on a test store; pairs are counted over the whole store."""
    data = probe.read(test)
    rows = data.labelled()
    everything = np.ones(len(rows), dtype=bool)
    return make_report(
        data.predict(readouts, everything),
        judged_rows(data, np.where(rows, 0, -1)),
        site=data.site.name,
        tokens=probe.tokens,
        split="test episodes",
        masked=data.labels.masked,
        min_episodes=min_episodes,
        draws=draws,
    )


def judged_rows(
    data: ProbeData, fold_of: Int[np.ndarray, " queries"]
) -> dict[str, tuple[Bool[np.ndarray, " queries"], Judged]]:
    """Per output the rows that have a label and were judged (fold >= 0)."""
    judged = {}
    for place, output in enumerate(data.labels.outputs):
        mask = ~np.isnan(data.labels.values[:, place]) & (fold_of >= 0)
        judged[output] = (
            mask,
            Judged(
                labels=data.labels.values[mask, place],
                fold=fold_of[mask],
                episode=_numbered(data.labels.episode[mask]),
                task=_numbered(data.task[mask]),
            ),
        )
    return judged


def _numbered(names: np.ndarray) -> Int[np.ndarray, " rows"]:
    return np.unique(names, return_inverse=True)[1]
