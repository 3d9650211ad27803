"""Which episodes make up a run, and which of them belong to this process?

A *unit* u = (suite, task, init state, perturbation, simulator seed, policy-noise seed) is one situation; an
*arm* is one intervention. Every arm runs the same units, so a plan is the product arms x units. Units are
ordered by task (an environment costs seconds to build and is reused), and the arms of a unit follow each other,
so an interrupted run is still paired.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mist_interp.data.perturbation import parse_perturbation
from mist_interp.data.plan import whole_numbers
from mist_interp.data.records import Unit

REFERENCE_ARM = "none"
_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]*")


@dataclass(frozen=True, order=True)
class PlannedEpisode:
    """One unit under one arm: the thing that is run once, stored as one row and never run again."""

    unit: Unit
    arm: str

    @property
    def key(self) -> str:
        """Identity of the row, unique in a results folder."""
        return f"{self.arm}/{self.unit.key}"

    def as_row(self) -> dict[str, Any]:
        """Flat columns: `key`, `arm` and the fields of the unit."""
        return {"key": self.key, "arm": self.arm, **asdict(self.unit)}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> PlannedEpisode:
        """The episode that a row of `plan.jsonl` or `episodes.jsonl` is about."""
        return cls(unit=Unit(**{name: row[name] for name in Unit.__dataclass_fields__}), arm=row["arm"])


def make_plan(
    suite: str,
    tasks: Sequence[int],
    inits: Sequence[int],
    arms: Sequence[str],
    *,
    perturbations: Sequence[str] = ("none",),
    simulator_seeds: Sequence[int] = (0,),
    policy_seeds: Sequence[int] = (0,),
) -> list[PlannedEpisode]:
    """All arms on all units, ordered task by task and unit by unit.

    Raises:
        UnknownName: a perturbation that there is not.
        ValueError: nothing to run, something named twice, an index or seed that is not a whole number, or an arm name
            that cannot be a folder.
    """
    tasks, inits = whole_numbers("tasks", tasks), whole_numbers("inits", inits)
    simulator_seeds = whole_numbers("simulator_seeds", simulator_seeds)
    policy_seeds = whole_numbers("policy_seeds", policy_seeds)
    for perturbation in perturbations:
        parse_perturbation(perturbation)
    axes = {
        "tasks": tasks,
        "inits": inits,
        "arms": arms,
        "perturbations": perturbations,
        "simulator_seeds": simulator_seeds,
        "policy_seeds": policy_seeds,
    }
    for axis, values in axes.items():
        if not len(values):
            raise ValueError(f"nothing to run: {axis} is empty")
        twice = sorted({str(v) for v in values if list(values).count(v) > 1})
        if twice:
            raise ValueError(f"{axis} names {', '.join(twice)} twice; every episode is run once")
    for arm in arms:
        if not _ARM_NAME.fullmatch(arm):
            raise ValueError(f"arm name {arm!r} cannot be a folder name: use letters, digits and . _ + @ -")
    units = [
        Unit(suite, task, init, perturbation, simulator_seed, policy_seed)
        for task in sorted(tasks)
        for perturbation in perturbations
        for init in sorted(inits)
        for simulator_seed in simulator_seeds
        for policy_seed in policy_seeds
    ]
    return [PlannedEpisode(unit, arm) for unit in units for arm in arms]


def units_of(plan: Iterable[PlannedEpisode]) -> list[Unit]:
    """The units of a plan in its order, each once."""
    return list(dict.fromkeys(episode.unit for episode in plan))


def first_units(plan: Sequence[PlannedEpisode], limit: int) -> list[PlannedEpisode]:
    """The first `limit` units with all their arms.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit={limit}: give the number of units to run, at least 1")
    kept = set(units_of(plan)[:limit])
    return [episode for episode in plan if episode.unit in kept]


def shard_of(plan: Sequence[PlannedEpisode], shard: str) -> list[PlannedEpisode]:
    """Part `"i/n"` (i from 0) of a plan: whole units, neighbours together so that few environments are built.

    Raises:
        ValueError: the text is not `i/n` with 0 <= i < n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not int(match[1]) < int(match[2]):
        raise ValueError(f"shard {shard!r}: write i/n with i from 0 to n-1, such as 0/4")
    index, count = int(match[1]), int(match[2])
    units = units_of(plan)
    kept = set(units[len(units) * index // count : len(units) * (index + 1) // count])
    return [episode for episode in plan if episode.unit in kept]
