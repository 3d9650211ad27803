"""How far is a run, how does each arm do so far, and when will it be done?

Pure bookkeeping over episode rows; the command line draws it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mist_interp.evaluation.plan import PlannedEpisode
from mist_interp.evaluation.statistics import wilson


@dataclass(frozen=True)
class ArmProgress:
    """State of one arm: episodes done of all, errors among them, successes and their Wilson interval."""

    arm: str
    done: int
    total: int
    errors: int
    successes: int
    interval: tuple[float, float]

    @property
    def success_rate(self) -> float | None:
        """Running success rate over valid episodes; None before the first."""
        valid = self.done - self.errors
        return self.successes / valid if valid else None


@dataclass(frozen=True)
class Progress:
    """State of a run.

    Attributes:
        arms: one entry per arm.
        done: episodes with a row.
        total: episodes that this command is to complete, including those that were there at its start.
        seconds_per_episode: wall time per episode of this process; None before the first has finished.
        seconds_left: at that pace; None likewise.
        last: the row that was just stored, None at the start.
    """

    arms: tuple[ArmProgress, ...]
    done: int
    total: int
    seconds_per_episode: float | None
    seconds_left: float | None
    last: dict[str, Any] | None = None


@dataclass
class ProgressMeter:
    """Turns rows into `Progress`; the pace counts only what this process has seen finish.

    Attributes:
        plan: the episodes that this command is to complete.
        rows: key -> row of those that have finished.
    """

    plan: Sequence[PlannedEpisode]
    rows: dict[str, dict[str, Any]]
    _begun: float = field(default_factory=time.monotonic)
    _at_start: int = 0

    def __post_init__(self) -> None:
        keys = {episode.key for episode in self.plan}
        self.rows = {key: row for key, row in self.rows.items() if key in keys}
        self._at_start = len(self.rows)

    def add(self, row: dict[str, Any]) -> Progress:
        """Count a finished episode."""
        self.rows[row["key"]] = row
        return self.now(row)

    def now(self, last: dict[str, Any] | None = None) -> Progress:
        """The state at this moment."""
        fresh = len(self.rows) - self._at_start
        pace = (time.monotonic() - self._begun) / fresh if fresh else None
        left = pace * (len(self.plan) - len(self.rows)) if pace is not None else None
        arms = tuple(dict.fromkeys(episode.arm for episode in self.plan))
        return Progress(tuple(self._arm(arm) for arm in arms), len(self.rows), len(self.plan), pace, left, last)

    def _arm(self, arm: str) -> ArmProgress:
        rows = [row for row in self.rows.values() if row["arm"] == arm]
        errors = sum(row["status"] == "error" for row in rows)
        successes = sum(bool(row.get("success")) for row in rows)
        total = sum(episode.arm == arm for episode in self.plan)
        return ArmProgress(arm, len(rows), total, errors, successes, wilson(successes, len(rows) - errors))
