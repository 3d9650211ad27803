"""Does a contact still happen when some dimensions of the actions are set to zero?

From a saved moment (a fork) the same actions are executed again with some of the seven dimensions at zero. A zero pose
dimension asks for no motion; a zero gripper command leaves the fingers where the last command sent them. The event is
the same one if a part of the robot of the same class touches the same thing: either finger, with the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import product
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float

DIMENSIONS = 7

Contact = tuple[str, str]  # kind, name of the other body


class Forkable(Protocol):
    """What knocking out needs of an environment; `LiberoEnv` has it."""

    def save(self) -> Any: ...

    def restore(self, fork: Any) -> None: ...

    def step(self, action: Any) -> Any: ...


def happens(
    env: Forkable,
    fork: Any,
    actions: Float[np.ndarray, "steps 7"],
    contacts: Collection[Contact],
    active: Bool[np.ndarray, "7"],
    force: float = 1.0,
) -> bool:
    """Whether one of some contacts happens when only the active dimensions of the actions are executed.

    Args:
        env: an environment of the fork's task.
        fork: the moment before the first action.
        actions: executed actions up to the end of the window.
        contacts: kind and other body of the events that count.
        active: (7,) False sets the dimension to zero.
        force: least normal force (N).
    """
    env.restore(fork)
    for action in np.where(active, actions, 0.0):
        for sample in env.step(action).contacts:
            if (sample.kind, sample.body_other) in contacts and sample.peak_force >= force:
                return True
    return False


def necessary(
    env: Forkable, fork: Any, actions: Float[np.ndarray, "steps 7"], contacts: Collection[Contact], force: float = 1.0
) -> Bool[np.ndarray, "7"]:
    """For each dimension, whether the contacts disappear when it alone is set to zero (7 replays)."""
    return np.array(
        [
            not happens(env, fork, actions, contacts, ~np.eye(DIMENSIONS, dtype=bool)[dim], force)
            for dim in range(DIMENSIONS)
        ]
    )


def all_subsets(
    env: Forkable, fork: Any, actions: Float[np.ndarray, "steps 7"], contacts: Collection[Contact], force: float = 1.0
) -> Bool[np.ndarray, "128"]:
    """Whether the contacts happen for every subset of active dimensions; bit d of the index says that d is active.

    Dimensions that the actions do not use are not run twice.
    """
    used = np.any(actions != 0, axis=0)
    known: dict[tuple[bool, ...], bool] = {}
    values = []
    for active in _subsets():
        effective = tuple(bool(value) for value in active & used)
        if effective not in known:
            known[effective] = happens(env, fork, actions, contacts, np.array(effective), force)
        values.append(known[effective])
    return np.array(values)


def _subsets() -> Iterator[Bool[np.ndarray, "7"]]:
    bits: Iterable[tuple[int, ...]] = product((0, 1), repeat=DIMENSIONS)
    return (np.array(each[::-1], dtype=bool) for each in bits)
