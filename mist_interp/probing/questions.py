"""Which questions is one and the same score judged on?

    detection     y_d = 1 against no event             of the scores of all queries whose label is known
    attribution   y_d = 1 against an event of others    of the same scores: seven equal detection AUCs with attribution
                                                        near 0.5 are a detector of failures, not of dimensions
    episode       an episode with a positive against one without any event, by the running maximum of the scores

Episodes are cut at the shortest one of their task: else a longer one would have the larger maximum, and the clock would
answer. What an episode is, is read off the same cut queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from mist_interp.probing.labels import Labels
from mist_interp.probing.scores import Judged

if TYPE_CHECKING:
    from mist_interp.probing.dataset import ProbeData

EPISODE = "episode"


@dataclass(frozen=True)
class Question:
    """Labels that the scores of one output are judged on.

    Attributes:
        output: which output.
        place: its column.
        contrast: `detection`, `attribution` or `episode`.
        rows: what is known of the judged rows.
        queries: the queries that they come from, in the order of the store.
        starts: where in `queries` each row begins, if the rows are episodes; None: every query is a row.
    """

    output: str
    place: int
    contrast: str
    rows: Judged
    queries: Int[np.ndarray, " judged"]
    starts: Int[np.ndarray, " rows"] | None = None

    @property
    def name(self) -> str:
        """Output, and the contrast unless it is detection."""
        return self.output if self.contrast == "detection" else f"{self.output}, {self.contrast}"

    def of(self, scores: Float[np.ndarray, " queries"]) -> Float[np.ndarray, " rows"]:
        """The scores of the judged rows."""
        mine = scores[self.queries]
        return mine if self.starts is None else np.maximum.reduceat(mine, self.starts)


def questions(data: ProbeData, fold_of: Int[np.ndarray, " queries"]) -> tuple[Question, ...]:
    """Every question that the labels of some queries answer.

    Args:
        data: labels and tasks of all queries.
        fold_of: which fold judged each query; negative where none did.
    """
    labels = data.labels
    asked = []
    for contrast, values in {labels.contrast: labels.values, **labels.also}.items():
        for place, output in enumerate(labels.outputs):
            known = np.flatnonzero(~np.isnan(values[:, place]) & (fold_of >= 0))
            rows = _judged(data, fold_of, known, values[known, place])
            asked.append(Question(output, place, contrast, rows, known))
    return (*asked, *_of_episodes(data, fold_of))


def before_the_shortest_ends(data: ProbeData) -> Bool[np.ndarray, " queries"]:
    """Which queries every episode of the task has."""
    _, episode, counts = np.unique(data.labels.episode, return_inverse=True, return_counts=True)
    mine = counts[episode]
    _, task = np.unique(data.task, return_inverse=True)
    shortest = np.full(task.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(shortest, task, mine)
    kept: Bool[np.ndarray, " queries"] = data.labels.query < shortest[task]
    return kept


def _of_episodes(data: ProbeData, fold_of: Int[np.ndarray, " queries"]) -> Iterator[Question]:
    seen = np.flatnonzero(before_the_shortest_ends(data) & (fold_of >= 0))
    starts = np.flatnonzero(data.labels.episode[seen][1:] != data.labels.episode[seen][:-1]) + 1
    starts = np.concatenate([[0], starts]).astype(np.int64) if len(seen) else np.zeros(0, dtype=np.int64)
    for place, output in enumerate(data.labels.outputs):
        kinds = _kind_of_episodes(data.labels, place, seen, starts)
        known = ~np.isnan(kinds)
        of_row = np.cumsum(np.isin(np.arange(len(seen)), starts)) - 1
        queries = seen[known[of_row]] if len(seen) else seen
        begin = np.flatnonzero(np.diff(of_row[known[of_row]], prepend=-1)) if len(queries) else starts[:0]
        rows = _judged(data, fold_of, queries[begin], kinds[known])
        yield Question(output, place, EPISODE, rows, queries, begin)


def _kind_of_episodes(
    labels: Labels, place: int, seen: Int[np.ndarray, " judged"], starts: Int[np.ndarray, " episodes"]
) -> Float[np.ndarray, " episodes"]:
    """1 with a positive query, 0 with known ones and no event at all, else NaN."""
    if not len(seen):
        return np.zeros(0)
    mine = labels.values[seen, place]
    positive, negative = (np.logical_or.reduceat(mine == label, starts) for label in (1, 0))
    event = np.zeros(len(starts), dtype=bool)
    if labels.incident is not None:
        event = np.logical_or.reduceat(labels.incident[seen], starts)
    return np.where(positive, 1.0, np.where(negative & ~event, 0.0, np.nan))


def _judged(
    data: ProbeData, fold_of: Int[np.ndarray, " queries"], at: Int[np.ndarray, " rows"], labels: np.ndarray
) -> Judged:
    numbered = (np.unique(names[at], return_inverse=True)[1] for names in (data.labels.episode, data.task))
    return Judged(labels, fold_of[at], next(numbered), next(numbered))
