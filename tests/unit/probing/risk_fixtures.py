"""Courses of episodes whose labels can be told by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.closing import hand_gain
from mist_interp.data.records import ContactRecord, EpisodeRecord, QueryRecord, ReleaseRecord, Unit
from mist_interp.probing.attribution import Course

HAND = (0.0, 0.0, 1.0)
UP, BACK, LEFT = (0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


def touch(
    step: int = 10,
    normal: Sequence[float] = UP,
    lever: Sequence[float] = (0.0, 0.0, -0.1),
    *,
    last: int | None = None,
    kind: str = "hand-table",
    force: float = 5.0,
    finger_speed: float | None = None,
    gain: Sequence[float] | None = None,
    geometry: bool = True,
) -> ContactRecord:
    """A contact with the hand at `HAND`."""
    robot, other = kind.split("-")
    known = tuple(hand_gain(np.array(normal), np.array(lever)) if gain is None else gain)
    return ContactRecord(
        step,
        step if last is None else last,
        robot,
        other,
        kind,
        force,
        0.1,
        tuple(np.add(HAND, lever)),
        tuple(normal),
        start_force=force if geometry else None,
        eef=HAND if geometry else None,
        gain=known if geometry else None,
        finger_speed=finger_speed,
    )


def still(steps: int) -> np.ndarray:
    """A hand that never moves or turns."""
    return np.tile([*HAND, 0, 0, 0, 1, *[0] * 6], (steps, 1)).astype(float)


def constant(steps: int = 32, **commands: float) -> np.ndarray:
    """The same action at every step, by names of dimensions; gripper closed."""
    actions = np.zeros((steps, 7))
    actions[:, 6] = 1.0
    for name, value in commands.items():
        actions[:, ACTION_NAMES.index(name)] = value
    return actions


def course(actions: np.ndarray, *contacts: ContactRecord, hand: Any = None, releases: Any = ()) -> Course:
    return Course(actions, still(len(actions)) if hand is None else hand, contacts, tuple(releases))


def turning(steps: int, axis: Sequence[float], per_step: float) -> np.ndarray:
    """A hand that turns on the spot, rad per step, and is not turned at the last one."""
    path = still(steps)
    angles = per_step * (np.arange(steps) - (steps - 1))
    path[:, 3:7] = Rotation.from_rotvec(angles[:, None] * np.array(axis)).as_quat()
    return path


def recorded(
    actions: np.ndarray,
    *contacts: ContactRecord,
    releases: tuple[ReleaseRecord, ...] = (),
    hand: np.ndarray | None = None,
    task: int = 0,
    init_state: int = 0,
    success: bool = True,
    max_steps: int = 220,
) -> EpisodeRecord:
    """An episode of chunks of 8."""
    path = still(len(actions)) if hand is None else hand
    queries = tuple(
        QueryRecord(
            number,
            start,
            np.zeros((8, 7)),
            actions[start : start + 8],
            np.zeros(9),
            hand=path[start : start + 8],
        )
        for number, start in enumerate(range(0, len(actions), 8))
    )
    return EpisodeRecord(
        Unit("libero_spatial", task, init_state), "go", success, len(actions), max_steps, queries, contacts, releases
    )
