"""What is the answer, per policy query, to the question that a probe is asked?

1, 0, or *masked* (NaN) where the record does not say. A masked query is neither positive nor negative; why it is masked
is counted. One column per output, so that a target may speak of each action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from mist_interp.data.store import RolloutStore

# What is asked of a score: is it coming; given that something comes, is this output to blame.
DETECTION, ATTRIBUTION = "detection", "attribution"


@dataclass(frozen=True)
class Labels:
    """Labels of all queries of a store, in the order of `store.queries()`.

    Attributes:
        values: (queries, outputs), 1, 0, or NaN where masked.
        outputs: name of each column.
        episode: (queries,) key of the episode.
        query: (queries,) number of the query in its episode.
        masked: reason -> number of masked queries.
        contrast: the question that `values` answer: `detection`, is it coming; `attribution`, is it the one to blame.
        also: another question -> (queries, outputs), on which the scores of a probe of `values` are judged as well.
        incident: (queries,) whether anything of the kind is coming or under way, whichever output it belongs to. None:
            the labels of an output tell.
        ahead: (queries, outputs) control steps from a query with label 1 to the event that it foresees.
        step: (queries,) control step of each query.
    """

    values: Float[np.ndarray, "queries outputs"]
    outputs: tuple[str, ...]
    episode: np.ndarray
    query: Int[np.ndarray, " queries"]
    masked: Mapping[str, int] = field(default_factory=dict)
    contrast: str = DETECTION
    also: Mapping[str, Float[np.ndarray, "queries outputs"]] = field(default_factory=dict)
    incident: Bool[np.ndarray, " queries"] | None = None
    ahead: Float[np.ndarray, "queries outputs"] | None = None
    step: Int[np.ndarray, " queries"] | None = None

    def __post_init__(self) -> None:
        shape = (len(self.episode), len(self.outputs))
        if self.values.shape != shape or len(self.query) != len(self.episode):
            raise ValueError(f"labels of {shape[0]} queries x {shape[1]} outputs have shape {self.values.shape}")
        for values in (self.values, *self.also.values()):
            if not np.isin(values[~np.isnan(values)], (0.0, 1.0)).all():
                raise ValueError("labels are 0, 1 or NaN (masked)")
        for name, more in (*self.also.items(), ("ahead", self.ahead)):
            if more is not None and more.shape != shape:
                raise ValueError(f"{name} has shape {more.shape}; the labels have {shape}")

    def __len__(self) -> int:
        return len(self.values)


class Target(Protocol):
    """A question with a yes-or-no answer per query and output."""

    @property
    def name(self) -> str:
        """Name in tables."""
        ...

    def labels(self, store: RolloutStore) -> Labels:
        """Labels of all queries of the store."""
        ...
