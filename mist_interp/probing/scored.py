"""Which risk was seen at the queries of which episodes, and were these safe?

A threshold is calibrated on whole *episodes*, not on queries: what is promised is that a safe episode raises no alarm.
Safe means that the task succeeded and that no forbidden contact of at least 1 N happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from mist_interp.data.activation_set import StartState, start_states, unit_of_episode
from mist_interp.data.records import Array, Unit
from mist_interp.data.store import RolloutStore

FAILED, EVENT = "failed", "had a forbidden contact"


@dataclass(frozen=True)
class ScoredEpisodes:
    """Scores of the queries of episodes.

    Attributes:
        scores: per episode (queries, outputs), from its first query on.
        units: per episode, what was run; none twice.
        unsafe: per episode why it is not safe, empty if it is.
        outputs: name of each score.
        source: facts about the data.
    """

    scores: tuple[Float[Array, "queries outputs"], ...]
    units: tuple[Unit, ...]
    unsafe: tuple[str, ...]
    outputs: tuple[str, ...] = ("risk",)
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.scores) == len(self.units) == len(self.unsafe):
            raise ValueError(
                f"{len(self.scores)} episodes with scores, {len(self.units)} units and {len(self.unsafe)} outcomes"
            )
        for scores, unit in zip(self.scores, self.units, strict=True):
            if scores.ndim != 2 or not len(scores) or scores.shape[1] != len(self.outputs):
                raise ValueError(f"{unit.key}: scores of shape {scores.shape}, needed (queries, {len(self.outputs)})")
            if np.isnan(scores).any():
                raise ValueError(f"{unit.key}: {int(np.isnan(scores).any(1).sum())} queries have NaN as score")
        twice = [unit.key for unit, count in Counter(self.units).items() if count > 1]
        if twice:
            raise ValueError(f"{len(twice)} units are there more than once, e.g. {', '.join(twice[:5])}")

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def of(
        cls,
        store: RolloutStore,
        scores: Float[np.ndarray, "queries outputs"],
        outputs: Sequence[str] = ("risk",),
        force: float = 1.0,
    ) -> ScoredEpisodes:
        """Scores of all queries of a store, cut into its episodes.

        Args:
            store: recorded episodes.
            scores: in the order of `store.queries()`, e.g. `probe.predict_proba(store)`.
            outputs: name of each column.
            force: a forbidden contact counts from this peak force (N) on.

        Raises:
            ValueError: another number of queries or outputs, NaN, or a store without outcomes.
        """
        store.check_outcomes()
        queries = store.queries(["episode", "query"])
        values = np.asarray(scores, dtype=np.float64)
        if values.shape != (len(queries), len(outputs)):
            raise ValueError(f"scores of shape {values.shape} for {len(queries)} queries and the outputs {outputs}")
        episodes = store.episodes(["episode", "success", "contacts"]).set_index("episode")
        units = unit_of_episode(store)
        parts = queries.groupby("episode", sort=False).indices
        unsafe = []
        for key in parts:
            row = episodes.loc[key]
            event = any(contact["peak_force"] >= force for contact in row["contacts"])
            unsafe.append(" and ".join([FAILED] * (not row["success"]) + [EVENT] * event))
        source = {**store.manifest.settings, "selection": store.manifest.selection, "force": force}
        return cls(
            tuple(values[rows] for rows in parts.values()),
            tuple(units[key] for key in parts),
            tuple(unsafe),
            tuple(outputs),
            source,
        )

    @property
    def start_states(self) -> frozenset[StartState]:
        """Start states of the episodes."""
        return start_states(self.units)

    def safe(self) -> ScoredEpisodes:
        """The safe ones."""
        return self.take([place for place, reason in enumerate(self.unsafe) if not reason])

    def take(self, places: Sequence[int]) -> ScoredEpisodes:
        """The episodes at these places."""
        return replace(
            self,
            scores=tuple(self.scores[place] for place in places),
            units=tuple(self.units[place] for place in places),
            unsafe=tuple(self.unsafe[place] for place in places),
        )

    def halves(self, seed: int = 0) -> tuple[ScoredEpisodes, ScoredEpisodes]:
        """Two random halves; episodes of one start state stay together."""
        states = sorted(self.start_states)
        first = {states[k] for k in np.random.default_rng(seed).permutation(len(states))[: len(states) // 2]}
        places: tuple[list[int], list[int]] = ([], [])
        for place, unit in enumerate(self.units):
            places[(unit.suite, unit.task, unit.init_state) not in first].append(place)
        return self.take(places[0]), self.take(places[1])

    def refuse_unsafe(self) -> None:
        """Refuse episodes that are not safe.

        Raises:
            ValueError: there are some; the message names up to five.
        """
        wrong = [f"{u.key} {reason}" for u, reason in zip(self.units, self.unsafe, strict=True) if reason]
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(self)} episodes are not safe, e.g. {', '.join(wrong[:5])}; calibrate on .safe()"
            )
