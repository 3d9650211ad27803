"""What is the answer, per policy query, to the question that a probe is asked?

1, 0, or *masked* (NaN) where the record does not say. A masked query is neither positive nor negative; why it is masked
is counted. One column per output, so that a target may speak of each action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from mist_interp.data.store import RolloutStore


@dataclass(frozen=True)
class Labels:
    """Labels of all queries of a store, in the order of `store.queries()`.

    Attributes:
        values: (queries, outputs), 1, 0, or NaN where masked.
        outputs: name of each column.
        episode: (queries,) key of the episode.
        query: (queries,) number of the query in its episode.
        masked: reason -> number of masked queries.
    """

    values: Float[np.ndarray, "queries outputs"]
    outputs: tuple[str, ...]
    episode: np.ndarray
    query: Int[np.ndarray, " queries"]
    masked: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.episode), len(self.outputs))
        if self.values.shape != shape or len(self.query) != len(self.episode):
            raise ValueError(f"labels of {shape[0]} queries x {shape[1]} outputs have shape {self.values.shape}")
        if not np.isin(self.values[~np.isnan(self.values)], (0.0, 1.0)).all():
            raise ValueError("labels are 0, 1 or NaN (masked)")

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
