"""Which activations, of which queries of which episodes, are compared?

A set of rows of one site, together with the start states that they come from, so that whatever is fitted on it can
say on what it was fitted and can refuse to be judged on the same episodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mist_interp.core.names import Site, SiteKey
from mist_interp.data.records import Array, Unit
from mist_interp.data.store import RolloutStore

StartState = tuple[str, int, int]


@dataclass(frozen=True)
class ActivationSet:
    """Rows of one site.

    Attributes:
        x: (rows, width).
        units: per row, the unit of the episode that it belongs to.
        site: where the rows were read.
        tokens: token selector under which they were read.
        pool: how the selected tokens became one vector.
        source: facts about the data that travel into whatever is fitted on it (model, suite, ...).
    """

    x: Float[Array, "rows width"]
    units: tuple[Unit, ...]
    site: Site
    tokens: str = "action_read"
    pool: str = "mean"
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or len(self.x) != len(self.units):
            raise ValueError(f"x has shape {self.x.shape} and there are {len(self.units)} units; one unit per row")

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def read(cls, store: RolloutStore, site: SiteKey, tokens: str = "action_read", pool: str = "mean") -> ActivationSet:
        """One site of all queries of a store, in the order of `store.queries()`."""
        x, rows = store.load(site, tokens, pool)
        units = unit_of_episode(store)
        return cls(
            x=x,
            units=tuple(units[episode] for episode in rows["episode"]),
            site=store.group(tokens, pool).one(site),
            tokens=tokens,
            pool=pool,
            source=dict(store.manifest.settings),
        )

    def where(self, mask: Bool[np.ndarray, " rows"]) -> ActivationSet:
        """The rows at which `mask` is true."""
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != (len(self),):
            raise ValueError(f"the mask has shape {mask.shape}, the set has {len(self)} rows")
        units = tuple(unit for unit, kept in zip(self.units, mask, strict=True) if kept)
        return ActivationSet(self.x[mask], units, self.site, self.tokens, self.pool, self.source)

    @property
    def tasks(self) -> np.ndarray:
        """Per row, the task as text, across suites."""
        return np.array([f"{unit.suite}/{unit.task}" for unit in self.units])

    @property
    def start_states(self) -> frozenset[StartState]:
        """Start states that the rows come from."""
        return start_states(self.units)


def start_states(units: Iterable[Unit]) -> frozenset[StartState]:
    """(suite, task, init state) of units; a seed does not make a new situation, a deterministic policy replays it."""
    return frozenset((unit.suite, unit.task, unit.init_state) for unit in units)


def unit_of_episode(store: RolloutStore) -> dict[str, Unit]:
    """Episode key -> unit."""
    columns = list(Unit.__dataclass_fields__)
    rows = store.episodes()[["episode", *columns]].to_dict("records")
    return {row["episode"]: Unit(**{name: row[name] for name in columns}) for row in rows}


def fingerprint(states: Iterable[StartState]) -> str:
    """Short hash of a set of start states, independent of its order."""
    return hashlib.sha256(repr(sorted(states)).encode()).hexdigest()[:16]


def refuse_shared(training: frozenset[StartState], evaluation: frozenset[StartState]) -> None:
    """Raise if a start state is used for fitting and for judging.

    Raises:
        ValueError: some are; the message names up to five.
    """
    shared = sorted(training & evaluation)
    if shared:
        named = ", ".join(f"{suite} task {task} init {init}" for suite, task, init in shared[:5])
        raise ValueError(
            f"{len(shared)} start states are in the training and in the evaluation set, e.g. {named}; "
            "fit on episodes from other start states"
        )
