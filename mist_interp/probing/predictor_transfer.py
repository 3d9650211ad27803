"""Fitted on the labels of one policy, how well are the others judged?

A matrix: rows say whose labels were fitted, columns who is judged. Every number is from tasks left out (or, with
`by="init_state"`, start states) on both sides: neither a label nor the scale of what is judged was seen in the fold.
The last row was fitted on the labels of all policies together.

For each row the policy in it is the reference, and every other column gets an adapter from its unlabelled rollouts of
the training side (`predictor_policies.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mist_interp.core.errors import UnknownName
from mist_interp.data.activation_set import unit_of_episode
from mist_interp.data.records import Unit
from mist_interp.data.store import RolloutStore
from mist_interp.probing.folds import FOLDS
from mist_interp.probing.predictor_policies import PolicyPredictor
from mist_interp.probing.report import MIN_EPISODES
from mist_interp.probing.scores import DRAWS, Judged, auc, auc_of_draws, episode_draws, interval
from mist_interp.probing.targets import target

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ALL = "all"


@dataclass(frozen=True)
class TransferScore:
    """One cell.

    Attributes:
        trained_on: policy whose labels were fitted, or `all`.
        judged_on: policy that is judged.
        output: what is foreseen.
        auc: area under the curve over pairs within a fold; None with too few episodes of a kind.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        positive_episodes: judged episodes with a positive query.
        negative_episodes: judged episodes with a negative query.
    """

    trained_on: str
    judged_on: str
    output: str
    auc: float | None
    low: float | None
    high: float | None
    positive_episodes: int
    negative_episodes: int


@dataclass(frozen=True)
class Transfer:
    """Result of `transfer`.

    Attributes:
        scores: all cells.
        split: how episodes were split.
        way: how policies were brought to common features.
    """

    scores: tuple[TransferScore, ...]
    split: str
    way: str

    def to_frame(self, output: str | None = None) -> pd.DataFrame:
        """AUC; rows: trained on, columns: judged on. `output` None takes the mean over outputs that have one."""
        if output is not None and output not in {score.output for score in self.scores}:
            raise UnknownName("output", output, sorted({score.output for score in self.scores}))
        cells = pd.DataFrame([vars(s) for s in self.scores if output in (None, s.output)])
        cells["auc"] = cells["auc"].astype(float)
        frame = cells.groupby(["trained_on", "judged_on"], sort=False)["auc"].mean().unstack()
        return frame.loc[cells["trained_on"].unique(), cells["judged_on"].unique()]

    def plot(self, output: str | None = None, ax: Axes | None = None) -> Axes:
        """The matrix as a heat map (needs the `report` extra)."""
        import matplotlib.pyplot as plt

        frame = self.to_frame(output)
        ax = ax or plt.subplots(figsize=(1.2 * frame.shape[1] + 2, 0.8 * frame.shape[0] + 1))[1]
        ax.imshow(frame.to_numpy(), vmin=0, vmax=1, cmap="RdBu_r")
        for (row, column), value in np.ndenumerate(frame.to_numpy()):
            ax.text(column, row, "–" if np.isnan(value) else f"{value:.2f}", ha="center", va="center")
        ax.set_xticks(range(frame.shape[1]), list(frame.columns))
        ax.set_yticks(range(frame.shape[0]), list(frame.index))
        ax.set(xlabel="judged on", ylabel="trained on", title=f"AUC, {output or 'mean over outputs'}")
        return ax


def transfer(
    predictor: PolicyPredictor,
    stores: Mapping[str, RolloutStore],
    by: str = "task",
    *,
    count: int = 5,
    min_episodes: int = MIN_EPISODES,
    draws: int = DRAWS,
) -> Transfer:
    """Fit on each policy, and on all, and judge each policy on what was left out.

    Args:
        predictor: what to fit; it is left as it is.
        stores: policy -> its rollouts.
        by: `task` leaves out one task at a time, `init_state` every `count`-th start state.
        count: number of folds for `init_state`.
        min_episodes: with fewer positive or negative episodes a cell has no AUC.
        draws: resamplings of the episodes.

    Raises:
        ValueError: fewer than two policies, a policy of the name `all`, or fewer than two groups to split by.
        UnknownName: another `by`.
    """
    if len(stores) < 2 or ALL in stores:
        raise ValueError(f"two policies at least, none of the name {ALL!r}; got {', '.join(stores) or 'none'}")
    units = {name: unit_of_episode(store) for name, store in stores.items()}
    group_of = {name: _groups(units[name], by, count) for name in stores}
    groups = sorted({group for groups in group_of.values() for group in groups.values()})
    if len(groups) < 2:
        raise ValueError(f"splitting by {by} needs at least two groups; there is only {groups}")
    known = {name: target(predictor.target).labels(store) for name, store in stores.items()}
    scores = {
        (row, name): np.full(labels.values.shape, np.nan) for row in (*stores, ALL) for name, labels in known.items()
    }
    for group in groups:
        train = {
            name: store.where(units=[unit for key, unit in units[name].items() if group_of[name][key] != group])
            for name, store in stores.items()
        }
        test = {
            name: store.where(units=[unit for key, unit in units[name].items() if group_of[name][key] == group])
            for name, store in stores.items()
        }
        for row in (*stores, ALL):
            first = {row: train[row]} if row != ALL else train
            fitted = copy.copy(predictor).fit(first)  # its settings are frozen, and fit replaces all else
            for name, labels in known.items():
                if not len(test[name]):
                    continue
                if name not in fitted.adapters_:
                    fitted.adapt(name, train[name], train)
                here = np.isin(labels.episode, test[name].keys)
                scores[row, name][here] = fitted.decision_function(test[name], name)
    cells = []
    for (row, name), values in scores.items():
        labels = known[name]
        fold = np.unique([group_of[name][key] for key in labels.episode], return_inverse=True)[1]
        tasks = {key: f"{unit.suite}/{unit.task}" for key, unit in units[name].items()}
        task = np.unique([tasks[key] for key in labels.episode], return_inverse=True)[1]
        for place, output in enumerate(labels.outputs):
            rows = ~np.isnan(labels.values[:, place])
            episode = np.unique(labels.episode[rows], return_inverse=True)[1]
            judged = Judged(labels.values[rows, place], fold[rows], episode, task[rows])
            cells.append(_cell(row, name, output, values[rows, place], judged, min_episodes, draws))
    split = "leave one task out" if by == "task" else "other start states"
    return Transfer(tuple(cells), split, predictor.way)


def _cell(
    row: str, name: str, output: str, scores: np.ndarray, judged: Judged, min_episodes: int, draws: int
) -> TransferScore:
    positive, negative = judged.episodes_with(1), judged.episodes_with(0)
    value, low, high = None, None, None
    if min(positive, negative) >= min_episodes:
        value = auc(scores, judged)
        low, high = interval(auc_of_draws(scores, judged, episode_draws(judged, draws)))
    return TransferScore(row, name, output, value, low, high, positive, negative)


def _groups(units: Mapping[str, Unit], by: str, count: int) -> dict[str, str]:
    """Episode -> group; the same for all policies, so that no start state is on both sides whoever ran it."""
    if by == "task":
        return {key: f"{unit.suite} task {unit.task}" for key, unit in units.items()}
    if by == "init_state":
        return {key: f"start states {unit.init_state % count + 1}/{count}" for key, unit in units.items()}
    raise UnknownName("way to split", by, FOLDS)
