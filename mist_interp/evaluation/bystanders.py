"""Which objects that are none of the task's business were moved?

An object is *disturbed* if, from the start of an episode to its end, it moved by more than 1 cm or turned by more than
10 degrees, minus what it does by itself in as many control steps while the robot holds still. That is run only where it
could matter: when something has moved so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from mist_interp.data.records import Array, Unit
from mist_interp.data.rollout import object_poses

MOVED = 0.01  # m
TURNED = 10.0  # degrees
HOLD = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])

Poses = Mapping[str, Any]


class Motion(NamedTuple):
    """How far something moved (m) and turned (degrees)."""

    moved: float
    turned: float

    @classmethod
    def between(cls, before: Float[Array, "7"], after: Float[Array, "7"]) -> Motion:
        """From one pose to another."""
        turn = Rotation.from_quat(after[3:]) * Rotation.from_quat(before[3:]).inv()
        return cls(float(np.linalg.norm(after[:3] - before[:3])), float(np.degrees(turn.magnitude())))

    @property
    def is_far(self) -> bool:
        """Whether that is a disturbance."""
        return self.moved > MOVED or self.turned > TURNED

    def beyond(self, other: Motion) -> Motion:
        """What is left when the lengths of another motion are taken away."""
        return Motion(self.moved - other.moved, self.turned - other.turned)


def motions(env: Any, start: Poses) -> dict[str, Motion] | None:
    """Name -> how far each object that the task leaves alone is from where it was; None if `env` knows of no such.

    Args:
        env: a `LiberoEnv`.
        start: name -> (7,) position (m) and quaternion (xyzw) of every object.
    """
    if not hasattr(env, "bystanders"):
        return None
    now = object_poses(env.proprioception())
    return {name: Motion.between(np.asarray(start[name]), now[name]) for name in env.bystanders}


def disturbed(env: Any, unit: Unit, moved: Mapping[str, Motion] | None, steps: int) -> str | None:
    """Names of the disturbed objects, separated by commas; None where that is not known.

    Args:
        env: is run again from the unit's start state if something has moved far.
        unit: what was run.
        moved: `motions` at the episode's end.
        steps: control steps of the episode.
    """
    if moved is None or not any(motion.is_far for motion in moved.values()):
        return None if moved is None else ""
    env.reset(unit.init_state)
    start = object_poses(env.proprioception())
    for _ in range(steps):
        env.step(HOLD)
    alone = motions(env, start) or {}
    return ", ".join(name for name, motion in moved.items() if motion.beyond(alone[name]).is_far)
