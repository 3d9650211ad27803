"""How does an arm that waits for the trigger get by without running again what came before it?

The episode of `none` runs first, with the detector in shadow; its first trigger is query tau. Before tau an arm that
is *gated* (it does nothing until the detector has fired) is `none` by construction, so it begins at tau: from the
state of the simulator kept in memory, or after a cut by replaying the actions that `none` executed, with the state's
hash compared at every query. Where the detector remembers earlier queries, `none` is run again up to tau after a cut,
once for all arms, and must come out the same; that is a `fork` too. A row has the queries of `none` before tau and
then its own, so every metric sees a whole episode, and contacts before tau are counted. A unit without a trigger is
the same episode in all gated arms: it is written, not run. Column `start` of a row says which it was: `reset`,
`fork`, `replay` or `copy`.

Whether two rows were one episode until tau is told by `prefix_hash`: the states at the queries up to tau and the
actions before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mist_interp.data.records import Unit
from mist_interp.data.replay import replay_until
from mist_interp.evaluation.arms import Arm
from mist_interp.evaluation.folder import ResultsFolder, Row
from mist_interp.evaluation.plan import REFERENCE_ARM, PlannedEpisode
from mist_interp.evaluation.recorded import recorded

RESET, FORK, REPLAY, COPY = STARTS = ("reset", "fork", "replay", "copy")


def reference_first(episodes: Sequence[PlannedEpisode]) -> list[PlannedEpisode]:
    """The episodes unit by unit in their order, within a unit `none` before the others."""
    place = {unit: index for index, unit in enumerate(dict.fromkeys(episode.unit for episode in episodes))}
    return sorted(episodes, key=lambda episode: (place[episode.unit], episode.arm != REFERENCE_ARM))


def prefix_hash(queries: Sequence[Row], trigger: int | None) -> str | None:
    """Hash of what an episode was until its trigger; None without one.

    Args:
        queries: query rows of the episode, `state_hash` and `executed` are read.
        trigger: index of the first query at which the detector fired.
    """
    if trigger is None:
        return None
    digest = hashlib.blake2b(digest_size=12)
    for row in queries[: trigger + 1]:
        digest.update(row["state_hash"].encode())
    for row in queries[:trigger]:
        digest.update(np.asarray(row["executed"], dtype=np.float64).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Moment:
    """The moment of the trigger, before the query is answered.

    Attributes:
        query: its index.
        world: state of the simulator (`env.save()`); None where it must be replayed.
        memory: what a detector that remembers (`score.memory()`) knew before this query.
    """

    query: int
    world: Any = None
    memory: Any = None


@dataclass(frozen=True)
class Origin:
    """Where an episode goes on from; the environment stands there.

    Attributes:
        how: `fork` or `replay`.
        prefix: query rows of `none` before the trigger.
        step: control steps executed in them.
        memory: as in `Moment`.
    """

    how: str
    prefix: tuple[Row, ...]
    step: int
    memory: Any = None


@dataclass
class Shadow:
    """The finished `none` episode of a unit.

    Attributes:
        row: its row.
        queries: its query rows.
        moment: its first trigger; None without one.
        forgotten: what a detector that remembers knew at the trigger was not kept; `none` must live through it again.
    """

    row: Row
    queries: Sequence[Row]
    moment: Moment | None
    forgotten: bool = False

    def bring(self, env: Any, on_step: Callable[[int], None] | None = None) -> Origin:
        """Bring the simulator to the trigger.

        Args:
            env: an environment of the unit's task.
            on_step: called after the reset and after every control step, which needs a replay: frames of a film.

        Raises:
            ReplayDiffers: the recorded states are not reached.
            ValueError: the episode has no trigger.
        """
        if self.moment is None:
            raise ValueError(f"{self.row['key']} has no trigger to begin at")
        prefix, step, how = tuple(self.queries[: self.moment.query]), self.queries[self.moment.query]["step"], FORK
        if self.moment.world is None or on_step:
            replay_until(env, recorded(self.row, self.queries), step, on_step=on_step)
            self.moment, how = replace(self.moment, world=env.save()), REPLAY
        else:
            env.restore(self.moment.world)
        return Origin(how, prefix, step, self.moment.memory)


class Shadows:
    """Gives the `none` episode of a unit: the one that has just run, or the one that an earlier call has stored.

    Args:
        folder: where rows and queries are.
        forgetful: whether the detector remembers earlier queries, which the disk does not.
    """

    def __init__(self, folder: ResultsFolder, *, forgetful: bool = False) -> None:
        self._folder, self._forgetful = folder, forgetful
        done = [row for row in folder.rows() if row["arm"] == REFERENCE_ARM and row["status"] == "ok"]
        self._stored = {PlannedEpisode.from_row(row).unit: row for row in done}
        self._unit: Unit | None = None
        self._shadow: Shadow | None = None

    def keep(self, unit: Unit, shadow: Shadow | None) -> None:
        """Remember the episode that has just run, or that there is none to go on from, until the next unit."""
        self._unit, self._shadow = unit, shadow

    def of(self, unit: Unit) -> Shadow | None:
        """The unit's `none` episode; None if it has crashed or is not in the plan."""
        if unit != self._unit:
            row = self._stored.get(unit)
            self.keep(unit, self._load(row) if row else None)
        return self._shadow

    def _load(self, row: Row) -> Shadow:
        queries = pq.read_table(self._folder.queries_path(PlannedEpisode.from_row(row))).to_pylist()
        trigger = row["trigger_query"]
        if trigger is None:
            return Shadow(row, queries, None)
        return Shadow(row, queries, Moment(trigger), self._forgetful)


def copied_row(shadow: Shadow, planned: PlannedEpisode, facts: Mapping[str, str], finished_at: str) -> Row:
    """The row of a gated arm in a unit without a trigger: that of `none`, and the mark that nothing was run."""
    return {
        **shadow.row,
        **planned.as_row(),
        "start": COPY,
        "queries_run": 0,
        "seconds": 0.0,
        "finished_at": finished_at,
        "provenance": dict(facts),
    }


def remembers(detector: Any) -> bool:
    """Whether a detector's score depends on earlier queries; it then has `begin()`, `memory()` and `recall(memory)`."""
    return hasattr(getattr(detector, "score", None), "memory")


def gated_names(arms: Iterable[Arm]) -> frozenset[str]:
    """Names of the arms that begin at the trigger of `none`: those that say of themselves that they are gated."""
    return frozenset(arm.name for arm in arms if arm.name != REFERENCE_ARM and getattr(arm, "gated", False))
