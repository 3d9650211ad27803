"""Which unit is run next, and is its episode kept?

Without quotas every unit is run once and kept. With quotas each task has a fixed, seeded order of attempts; they are
run until the task has its successes and its failures, and what comes beyond is counted in `surplus.jsonl` and not
stored. What is kept is then chosen by outcome, so the store says `selection="balanced"` and no success rate may be
computed from it; the outcomes of all attempts are in the counts of its manifest.

All that was decided lies in the folder (stored episodes, and the surplus). A call therefore takes exactly the steps
that an uninterrupted one would have taken next, wherever the last was killed.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mist_interp.core.files import append_json_line, read_json_lines, write_atomic
from mist_interp.data.plan import shard_units, whole_numbers
from mist_interp.data.records import EpisodeRecord, Unit, episode_key
from mist_interp.data.store import RolloutStore

SURPLUS = "surplus.jsonl"


@dataclass(frozen=True)
class Quota:
    """How many episodes of each outcome are kept of every task.

    Attributes:
        successes: successful episodes per task.
        failures: failed episodes per task.
        max_attempts: per task; None allows all its units. A budget: a later call may raise it and goes on.
        seed: of the order in which the start states are tried.

    Raises:
        ValueError: a number is not whole or negative, or both quotas are 0.
    """

    successes: int = 0
    failures: int = 0
    max_attempts: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        whole_numbers("successes, failures, seed", [self.successes, self.failures, self.seed])
        if self.max_attempts is not None:
            whole_numbers("max_attempts", [self.max_attempts], least=1)
        if not self.successes + self.failures:
            raise ValueError("quotas of 0 successes and 0 failures keep no episode")

    def of(self, success: bool) -> int:
        """How many episodes with this outcome a task keeps."""
        return self.successes if success else self.failures

    def order(self, units: Iterable[Unit]) -> list[Unit]:
        """The attempts at one task, in order: seed after seed of the simulator, the start states shuffled within."""
        seeds: dict[int, list[Unit]] = {}
        for unit in units:
            seeds.setdefault(unit.simulator_seed, []).append(unit)

        def place(unit: Unit) -> bytes:
            return hashlib.sha256(f"{self.seed}:{unit.key}".encode()).digest()

        order = [unit for group in seeds.values() for unit in sorted(group, key=place)]
        return order[: self.max_attempts]


@dataclass(frozen=True)
class Progress:
    """State of a collection.

    Attributes:
        done: episodes of the plan that are stored.
        total: episodes of the plan; with quotas, what is still possible: tasks that ran out of attempts count with
            what they have.
        last: the episode that has just ended, stored or not; None at the start and when another process ran it.
        attempts: episodes of the plan that have ended, stored or not, in this call and earlier ones.
        successes: how many of the attempts succeeded.
    """

    done: int
    total: int
    last: EpisodeRecord | None = None
    attempts: int = 0
    successes: int = 0


@dataclass
class Attempts:
    """The units of one call and what is known of them; iterating gives the units to run.

    Attributes:
        store: where episodes go.
        tasks: task -> its attempts in order.
        quota: None keeps every episode.
    """

    store: RolloutStore
    tasks: Mapping[int, Sequence[Unit]]
    quota: Quota | None = None
    _stored: dict[str, bool] = field(default_factory=dict)
    _surplus: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def plan(
        cls, store: RolloutStore, units: Sequence[Unit], quota: Quota | None = None, shard: str | None = None
    ) -> Attempts:
        """The part of a call; with quotas tasks are shared out and not units, because they are counted per task."""
        if quota is None:
            return cls(store, by_task(shard_units(units, shard))).refreshed()
        tasks = by_task(units)
        orders = {task: quota.order(tasks[task]) for task in shard_units(list(tasks), shard)}
        return cls(store, orders, quota).refreshed()

    def refreshed(self) -> Attempts:
        """Itself, after a look at what lies in the folder by now."""
        keys = {episode_key(unit) for order in self.tasks.values() for unit in order}
        new = (keys & set(self.store.keys)) - set(self._stored)
        self._stored |= {row["episode"]: row["success"] for row in _outcomes(self.store, new)}
        rows = _surplus_rows(self.store.folder, self._stored)
        self._surplus = {row["episode"]: row["success"] for row in rows if row["episode"] in keys}
        return self

    def __iter__(self) -> Iterator[Unit]:
        """Units to run now. One that crashes, so that `record` never hears of it, waits for the next call."""
        for task, order in self.tasks.items():
            for unit in order:
                key = episode_key(unit)
                if self.quota is not None and self._full(task):
                    break
                if key not in self._stored and key not in self._surplus:
                    yield unit

    def keeps(self, episode: EpisodeRecord) -> bool:
        """Whether an episode that ended will be stored."""
        task, success = episode.unit.task, episode.success
        return self.quota is None or self._kept(task, success) < self.quota.of(success)

    def record(self, episode: EpisodeRecord) -> None:
        """Store an episode that ended, or count it if its task has enough of the kind.

        Raises:
            OverflowError, KeyError, ValueError: see `RolloutStore.append`.
        """
        if self.keeps(episode):
            self.store.append(episode)
            self._stored[episode.key] = episode.success
        else:
            row = {"episode": episode.key, "task": episode.unit.task, "success": episode.success}
            append_json_line(self.store.folder / SURPLUS, row)
            self._surplus[episode.key] = episode.success

    def progress(self, last: EpisodeRecord | None = None) -> Progress:
        """The state at this moment."""
        known = [*self._stored.values(), *self._surplus.values()]
        total = sum(self._target(task) for task in self.tasks)
        return Progress(len(self._stored), total, last, len(known), sum(known))

    def _target(self, task: int) -> int:
        if self.quota is None:
            return len(self.tasks[task])
        keys = {episode_key(unit) for unit in self.tasks[task]}
        over = self._full(task) or keys <= self._stored.keys() | self._surplus.keys()
        return len(keys & self._stored.keys()) if over else self.quota.successes + self.quota.failures

    def _full(self, task: int) -> bool:
        quota = self.quota
        return quota is not None and all(self._kept(task, success) >= quota.of(success) for success in (True, False))

    def _kept(self, task: int, success: bool) -> int:
        return sum(self._stored.get(episode_key(unit)) is success for unit in self.tasks[task])


def by_task(units: Iterable[Unit]) -> dict[int, list[Unit]]:
    """Task -> its units, both in the order in which they come."""
    tasks: dict[int, list[Unit]] = {}
    for unit in units:
        tasks.setdefault(unit.task, []).append(unit)
    return tasks


def _outcomes(store: RolloutStore, keys: Iterable[str]) -> list[dict[str, Any]]:
    chosen = store.only(keys)
    return chosen.episodes(["episode", "task", "success"]).to_dict("records") if chosen.keys else []


def _surplus_rows(folder: Path, stored: Iterable[str]) -> list[dict[str, Any]]:
    """Attempts that were run and not stored, each once; two calls at the same time may both have run one."""
    rows = {row["episode"]: row for row in read_json_lines(folder / SURPLUS)}
    return [rows[key] for key in rows.keys() - set(stored)]


def write_counts(store: RolloutStore) -> RolloutStore:
    """Count all attempts into the manifest of a balanced store, and return the store with it.

    Per task: `attempts`, the `successes` and `failures` among them, and how many are `stored`. Processes that share
    the folder wait for each other; the last one counts all.
    """
    with (store.folder / SURPLUS).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        counts: dict[int, dict[str, int]] = {}
        stored = _outcomes(store, store.keys)
        rest = _surplus_rows(store.folder, [row["episode"] for row in stored])
        for rows, kept in ((stored, True), (rest, False)):
            for row in rows:
                task = counts.setdefault(row["task"], {"attempts": 0, "successes": 0, "failures": 0, "stored": 0})
                task["attempts"] += 1
                task["successes" if row["success"] else "failures"] += 1
                task["stored"] += kept
        manifest = replace(store.manifest, counts={str(task): counts[task] for task in sorted(counts)})
        write_atomic(store.folder / "manifest.json", manifest.to_json())
    return replace(store, manifest=manifest)


def quota_settings(quota: Quota, perturbations: Sequence[str], **pool: Sequence[Any] | str) -> dict[str, Any]:
    """What must be equal for episodes chosen by quotas to belong to one store; `max_attempts` may grow."""
    lists = {name: of if isinstance(of, str) else whole_numbers(name, of) for name, of in pool.items()}
    own = {"successes": quota.successes, "failures": quota.failures, "seed": quota.seed}
    return {"quota": own | lists | {"perturbations": list(perturbations)}}
