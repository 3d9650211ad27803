"""Would acting at random times have helped as much?

The same arm, but its queries are drawn at random: in each unit as many as the shadow arm `none` was active at, among
the queries that it had. The counts come from the rows of `none` in a results folder (it runs before the other arms of a
unit, so this may be the folder of the very run); without one, each query is drawn with the same probability `rate`.

What is drawn depends on the unit and the seed alone. A sham may act before the trigger, so it is not gated and runs
from the start. Which dimensions are flagged at a random time is the detector's business: if none is, the one nearest to
its alarm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mist_interp.core.actions import ActionChunk
from mist_interp.core.files import read_json_lines
from mist_interp.core.inputs import PolicyInputs
from mist_interp.data.records import Unit
from mist_interp.evaluation.arms.protocol import Arm, ArmLog, Query

LONGEST = 1000  # queries of an episode, far above every step limit


@dataclass(frozen=True)
class ShamTriggers:
    """An arm at random times.

    Attributes:
        arm: what is done.
        of: results folder whose `none` rows say at how many queries of each unit the alarm was on; None: `rate`.
        rate: probability of each query, if there is no folder.
        seed: of the draw, beside the unit.
        name: name in tables and folders.
    """

    arm: Arm
    of: Path | None = None
    rate: float = 0.1
    seed: int = 0
    name: str = "sham-triggers"

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"arm {self.name!r}: rate={self.rate}; give a probability")

    @property
    def gated(self) -> bool:
        """See `Arm`."""
        return False

    @property
    def sites(self) -> tuple[Any, ...]:
        """See `Arm`."""
        return tuple(getattr(self.arm, "sites", ()))

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        counted = {"counts": "as none"} if self.of else {"rate": float(self.rate)}
        return {"kind": "sham-triggers", "placebo": True, "arm": self.arm.config(), "seed": self.seed, **counted}

    def check_units(self, units: Iterable[Unit]) -> None:
        """Refuse what the arm inside refuses."""
        if hasattr(self.arm, "check_units"):
            self.arm.check_units(units)

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`.

        Raises:
            ValueError: the folder has no finished episode of `none` in this unit.
        """
        if "times" not in query.memory:
            query.memory["times"] = self.times(query.unit)
            query.memory["inner"] = {}
        times = query.memory["times"]
        fired = query.index in times
        flagged = query.flagged
        if fired and not flagged and query.nearest:
            flagged = (query.nearest,)
        triggered = any(time <= query.index for time in times)
        inner = replace(query, fired=fired, triggered=triggered, flagged=flagged, memory=query.memory["inner"])
        return self.arm.act(vla, inputs, inner)

    def times(self, unit: Unit) -> frozenset[int]:
        """The queries at which the arm acts in a unit."""
        digest = hashlib.sha256(f"sham:{self.seed}:{unit.key}".encode()).digest()
        draw = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        if self.of is None:
            return frozenset(np.flatnonzero(draw.random(LONGEST) < self.rate).tolist())
        row = self._shadow(unit)
        return frozenset(draw.permutation(row["queries"])[: row["active_queries"]].tolist())

    def _shadow(self, unit: Unit) -> dict[str, Any]:
        assert self.of is not None
        path, key = self.of / "episodes.jsonl", f"none/{unit.key}"
        found = [row for row in read_json_lines(path) if row["key"] == key] if path.exists() else []
        if not found or found[-1]["status"] != "ok":
            raise ValueError(f"{self.of} has no finished episode {key}: run the arm none first, or give rate=")
        row: dict[str, Any] = found[-1]
        return row
