"""How well do scores order positives above negatives, and how sure is that?

AUC = P(score of a positive > score of a negative) + half the ties, counted over pairs *within* a fold: scores of
models that were fitted on different episodes are not on one scale, and comparing them would mix the folds' base
rates into the answer.

Queries of one episode are not independent, so intervals come from resampling whole episodes: within each task, and
over the tasks first when there are at least five. Models are not refitted; the interval is that of the judged sample.

Source: Hanley and McNeil 1982 (AUC); Davison and Hinkley 1997, section 3.8 (hierarchical resampling).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import average_precision_score

DRAWS = 10_000
LEVEL = 0.95
MIN_TASKS = 5
ECE_BINS = 10
# Rows times episodes that are held at once; bounds memory to some 100 MB.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Judged:
    """The queries on which scores are judged; the same for a probe and all its controls.

    Attributes:
        labels: (rows,) 0 or 1.
        fold: (rows,) which fold judged the row.
        episode: (rows,) which episode it belongs to.
        task: (rows,) which task.
    """

    labels: Float[np.ndarray, " rows"]
    fold: Int[np.ndarray, " rows"]
    episode: Int[np.ndarray, " rows"]
    task: Int[np.ndarray, " rows"]

    def episodes_with(self, label: int) -> int:
        """Number of episodes with at least one query of this label."""
        return len(np.unique(self.episode[self.labels == label]))


def auc(scores: Float[np.ndarray, " rows"], judged: Judged) -> float | None:
    """AUC over pairs within folds; None when no fold has both labels."""
    value = float(auc_of_draws(scores, judged, np.ones((1, int(judged.episode.max(initial=-1)) + 1)))[0])
    return None if np.isnan(value) else value


def auc_of_draws(
    scores: Float[np.ndarray, " rows"], judged: Judged, weights: Float[np.ndarray, "draws episodes"]
) -> Float[np.ndarray, " draws"]:
    """AUC with each episode counted as often as `weights` says; NaN where a draw has no pair.

    The pairs won are counted once for every two episodes; a draw is then a quadratic form in its weights.
    """
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for fold in np.unique(judged.fold):
        up, down = (np.flatnonzero((judged.fold == fold) & (judged.labels == label)) for label in (1, 0))
        if not len(up) or not len(down):
            continue
        risen, place_up = np.unique(judged.episode[up], return_inverse=True)
        fallen, place_down = np.unique(judged.episode[down], return_inverse=True)
        wins = _wins(scores[up], place_up, scores[down], place_down)
        left, right = weights[:, risen], weights[:, fallen]
        won += ((left @ wins) * right).sum(1)
        pairs += (left @ np.bincount(place_up)) * (right @ np.bincount(place_down))
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def episode_draws(judged: Judged, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draws episodes"]:
    """How often each episode is drawn: tasks with replacement (from five on), then episodes within each drawn task."""
    rng = np.random.default_rng(seed)
    count = int(judged.episode.max(initial=-1)) + 1
    weights = np.zeros((draws, count))
    tasks = np.unique(judged.task)
    if len(tasks) >= MIN_TASKS:
        copies = rng.multinomial(len(tasks), np.full(len(tasks), 1 / len(tasks)), size=draws)
    else:
        copies = np.ones((draws, len(tasks)), dtype=int)
    for place, task in enumerate(tasks):
        members = np.unique(judged.episode[judged.task == task])
        chances = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(copies[:, place] * len(members), chances)
    return weights


def interval(draws: Float[np.ndarray, " draws"]) -> tuple[float, float] | tuple[None, None]:
    """95 % percentile interval; none when hardly any draw has a value."""
    known = draws[~np.isnan(draws)]
    if len(known) < 0.5 * len(draws) or len(known) == 0:
        return None, None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def is_constant(scores: Float[np.ndarray, " rows"], judged: Judged) -> bool:
    """Whether the scores say nothing: in every fold all rows have the same one."""
    return all(np.ptp(scores[judged.fold == fold]) == 0 for fold in np.unique(judged.fold))


def average_precision(scores: Float[np.ndarray, " rows"], judged: Judged) -> float | None:
    """Mean over the folds with positives of the average precision, weighted by their rows."""
    values, sizes = [], []
    for fold in np.unique(judged.fold):
        rows = judged.fold == fold
        if judged.labels[rows].any():
            values.append(average_precision_score(judged.labels[rows], scores[rows]))
            sizes.append(rows.sum())
    return float(np.average(values, weights=sizes)) if values else None


def brier(probabilities: Float[np.ndarray, " rows"], judged: Judged) -> float:
    """Mean squared difference between probability and label."""
    return float(np.mean((probabilities - judged.labels) ** 2))


def calibration_error(probabilities: Float[np.ndarray, " rows"], judged: Judged, bins: int = ECE_BINS) -> float:
    """Expected calibration error: mean |frequency - probability| over `bins` equally wide bins, weighted by rows."""
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    sizes = np.bincount(place, minlength=bins)
    gaps = np.bincount(place, weights=judged.labels - probabilities, minlength=bins)
    return float(np.abs(gaps).sum() / max(1, sizes.sum()))


def _wins(
    up: Float[np.ndarray, " positives"],
    episode_up: Int[np.ndarray, " positives"],
    down: Float[np.ndarray, " negatives"],
    episode_down: Int[np.ndarray, " negatives"],
) -> Float[np.ndarray, "with_positives with_negatives"]:
    """Per two episodes the pairs in which the positive query of the first scores above the negative of the second."""
    order, by_episode = np.argsort(down, kind="stable"), np.argsort(episode_up, kind="stable")
    below, not_above = (np.searchsorted(down[order], up[by_episode], side) for side in ("left", "right"))
    starts = np.flatnonzero(np.diff(episode_up[by_episode], prepend=-1))
    count = int(episode_down.max()) + 1
    wins = np.empty((len(starts), count))
    size = max(1, _BLOCK // (len(up) + len(down)))
    for start in range(0, count, size):
        some = np.arange(start, min(start + size, count))
        seen = np.cumsum(episode_down[order][:, None] == some, axis=0, dtype=np.int32)
        seen = np.vstack([np.zeros((1, len(some)), dtype=np.int32), seen])
        wins[:, some] = np.add.reduceat(0.5 * (seen[below] + seen[not_above]), starts, axis=0)
    return wins
