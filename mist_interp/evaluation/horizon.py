"""What would still have been touched, had a finished episode lasted as long as every other?

An arm that succeeds early has less time to collide. Over the *full horizon* the robot holds its pose after the
episode's end, the gripper keeps its last command, no policy acts, the unit's disturbance goes on, and contacts are
counted up to the step limit. The held steps are physics without pictures: per step about half of a whole episode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from mist_interp.data.perturbation import Disturbance
from mist_interp.data.records import ContactRecord, EpisodeRecord
from mist_interp.data.rollout import contact_record

LOW_FORCE, HIGH_FORCE = 1.0, 10.0
FULL_COLUMNS = ("collision_1n_full", "collision_10n_full", "events_1n_full", "events_10n_full", "impulse_full")


def hold_to_the_limit(env: Any, record: EpisodeRecord) -> tuple[ContactRecord, ...]:
    """Hold the pose until the episode's step limit and return all its contacts; `env` stands at the episode's end."""
    disturbance = Disturbance.of(record.unit, record.max_steps)
    hold = np.zeros(7)
    hold[6] = record.queries[-1].executed[-1][6]
    for step in range(record.steps, record.max_steps):
        env.step(disturbance.added(hold, step))
    return tuple(contact_record(event) for event in env.events)


def contact_columns(contacts: Iterable[ContactRecord], suffix: str = "") -> dict[str, Any]:
    """Counts of forbidden contacts: `collision_1n`, `collision_10n`, `events_1n`, `events_10n`, `impulse` (N s)."""
    events = [contact for contact in contacts if contact.peak_force >= LOW_FORCE]
    strong = sum(contact.peak_force >= HIGH_FORCE for contact in events)
    return {
        f"collision_1n{suffix}": bool(events),
        f"collision_10n{suffix}": bool(strong),
        f"events_1n{suffix}": len(events),
        f"events_10n{suffix}": strong,
        f"impulse{suffix}": math.fsum(event.impulse for event in events),
    }
