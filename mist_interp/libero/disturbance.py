"""Which objects that the goal does not name did an episode displace?

An object is disturbed if it moved by more than 1 cm or turned by more than 10 degrees, *minus* the drift of a run from
the same state in which the robot holds still. The drift is taken off as a motion (vector and rotation), not as a
length: an object that slides 6 mm by itself and is pushed back 6 mm by the robot was pushed by 6 mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Float

from mist_interp.core.errors import UnknownName
from mist_interp.libero.bodies import BodyClass, BodyClasses

MOVED = 0.01  # m
TURNED = float(np.deg2rad(10))  # rad


@dataclass(frozen=True, eq=False)
class Pose:
    """Pose of a body in the world frame: position in m, unit quaternion (w, x, y, z)."""

    position: Float[np.ndarray, "3"]
    quaternion: Float[np.ndarray, "4"]


@dataclass(frozen=True, eq=False)
class Motion:
    """Change of a pose: translation in m, and the rotation as a unit quaternion applied on the left, world frame."""

    translation: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "4"]

    @classmethod
    def between(cls, before: Pose, after: Pose) -> Motion:
        """Return the motion that leads from one pose to the other."""
        return cls(after.position - before.position, _times_inverse(after.quaternion, before.quaternion))


@dataclass(frozen=True)
class Disturbance:
    """Net motion of one object: ``moved`` in m, ``turned`` in rad, and whether that is beyond the limits."""

    body: str
    moved: float
    turned: float
    disturbed: bool


def object_poses(data: mujoco.MjData, classes: BodyClasses) -> dict[str, Pose]:
    """Return the pose of each movable object that the goal does not name, by root body."""
    return {
        group.name: Pose(data.xpos[group.bodies[0]].copy(), data.xquat[group.bodies[0]].copy())
        for group in classes.of_class(BodyClass.DISTRACTOR)
        if group.movable
    }


def object_drift(before: Mapping[str, Pose], after: Mapping[str, Pose]) -> dict[str, Motion]:
    """Return the motion of each object over a run in which the robot holds still."""
    return {body: Motion.between(before[body], after[body]) for body in _same_bodies(before, after)}


def object_disturbance(
    before: Mapping[str, Pose], after: Mapping[str, Pose], drift: Mapping[str, Motion] | None = None
) -> list[Disturbance]:
    """Compare the poses before and after an episode.

    Args:
        before: poses at the end of settling (``object_poses``).
        after: poses at the end of the episode.
        drift: motion of the same objects over as many control steps with the robot held still; None: no drift.

    Raises:
        UnknownName: if the three do not speak of the same objects.
    """
    found = []
    for body in _same_bodies(before, after):
        motion = Motion.between(before[body], after[body])
        translation, rotation = motion.translation, motion.rotation
        if drift is not None:
            if body not in drift:
                raise UnknownName("object in the drift", body, drift)
            translation = translation - drift[body].translation
            rotation = _times_inverse(rotation, drift[body].rotation)
        moved = float(np.linalg.norm(translation))
        turned = float(2 * np.arctan2(np.linalg.norm(rotation[1:]), abs(rotation[0])))
        found.append(Disturbance(body, moved, turned, moved > MOVED or turned > TURNED))
    return found


def _same_bodies(first: Mapping[str, Pose], second: Mapping[str, Pose]) -> list[str]:
    for body in first.keys() ^ second.keys():
        raise UnknownName("object in the poses", body, first.keys() & second.keys())
    return list(first)


def _times_inverse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the quaternion ``a * b^-1`` of two unit quaternions (w, x, y, z)."""
    inverse, product = np.empty(4), np.empty(4)
    mujoco.mju_negQuat(inverse, np.asarray(b, dtype=float))
    mujoco.mju_mulQuat(product, np.asarray(a, dtype=float), inverse)
    return product
