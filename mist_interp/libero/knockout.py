"""Which contacts still happen when some dimensions of the actions are set to zero?

From a saved moment (a fork) the same actions are executed again with some of the seven dimensions at zero. A zero pose
dimension asks for no motion; a zero gripper command leaves the fingers where the last command sent them.

What happens are *runs* of contact: a part of the robot of one class touches one thing (either finger, with the table),
breaks of at most `MERGED_BREAK` control steps included. One pair may touch several times in a window, and without a
dimension a contact may come sooner or later, so it is not known again by its step. Of each pair the runs of both worlds
are matched one to one such that their first steps differ least in sum; a run that is left without a partner has
disappeared. A pair that touched once is still there however late it touches, up to the end of the window.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment

from mist_interp.libero.contact_events import merged

DIMENSIONS = 7

Pair = tuple[str, str]  # kind, name of the other body


class Forkable(Protocol):
    """What knocking out needs of an environment; `LiberoEnv` has it."""

    def save(self) -> Any: ...

    def restore(self, fork: Any) -> None: ...

    def step(self, action: Any) -> Any: ...


@dataclass(frozen=True, order=True)
class Run:
    """Contact of one pair without a longer break, in control steps from the fork on.

    Attributes:
        start: first step with contact.
        end: last one (inclusive).
        pair: kind and other body.
    """

    start: int
    end: int
    pair: Pair


def touches(
    env: Forkable, fork: Any, actions: Float[np.ndarray, "steps 7"], active: Bool[np.ndarray, "7"], force: float = 1.0
) -> tuple[Run, ...]:
    """What touches when only the active dimensions of the actions are executed.

    Args:
        env: an environment of the fork's task.
        fork: the moment before the first action.
        actions: executed actions up to the end of the window.
        active: (7,) False sets the dimension to zero.
        force: a run counts from this peak force (N) on; like a recorded contact it begins with what the environment
            tells at all.

    Returns:
        Runs of forbidden contact by their first step.
    """
    env.restore(fork)
    samples: dict[Pair, list[tuple[int, float]]] = {}
    for step, action in enumerate(np.where(active, actions, 0.0)):
        for sample in env.step(action).contacts:
            samples.setdefault((sample.kind, sample.body_other), []).append((step, sample.peak_force))
    return tuple(
        sorted(
            Run(run[0][0], run[-1][0], pair)
            for pair, found in samples.items()
            for run in merged(found, lambda sample: sample[0])
            if max(peak for _, peak in run) >= force
        )
    )


def surviving(before: Iterable[Run], after: Iterable[Run]) -> frozenset[Run]:
    """Which runs of one world are still there in another one; between equally near partners the earlier run is."""
    left, found = sorted(before), sorted(after)
    survivors: set[Run] = set()
    for pair in {run.pair for run in left}:
        ours, theirs = ([run for run in runs if run.pair == pair] for runs in (left, found))
        distances = np.abs(np.subtract.outer([run.start for run in ours], [run.start for run in theirs]))
        # Less than one step in sum, so that it decides between equal sums only.
        later = np.arange(len(ours))[:, None] / len(ours) ** 2
        places, _ = linear_sum_assignment(distances + later)
        survivors |= {ours[place] for place in places}
    return frozenset(survivors)


class Knockouts:
    """What becomes of the contacts of one window without some dimensions.

    Every world is run once, when it is first asked for; without a dimension that the actions do not use it is the same.

    Args:
        env: an environment of the fork's task.
        fork: the moment before the first action.
        actions: (steps, 7) executed actions up to the end of the window.
        force: a run counts from this peak force (N) on.

    Attributes:
        original: the runs when nothing is changed.
    """

    def __init__(self, env: Forkable, fork: Any, actions: Float[np.ndarray, "steps 7"], force: float = 1.0) -> None:
        self._world = env, fork, actions
        self._force = force
        self._used = np.any(actions != 0, axis=0)
        self.original = touches(env, fork, actions, np.ones(DIMENSIONS, dtype=bool), force)
        self._known = {tuple(self._used.tolist()): frozenset(self.original)}

    def survivors(self, active: Bool[np.ndarray, "7"]) -> frozenset[Run]:
        """Which of the original runs are still there when only the active dimensions are executed."""
        effective = active & self._used
        name = tuple(effective.tolist())
        if name not in self._known:
            self._known[name] = surviving(self.original, touches(*self._world, effective, self._force))
        return self._known[name]

    def necessary(self, runs: Collection[Run]) -> Bool[np.ndarray, "7"]:
        """For each dimension, whether all of some original runs disappear when it alone is set to zero (7 replays)."""
        without = ~np.eye(DIMENSIONS, dtype=bool)
        return np.array([self.survivors(active).isdisjoint(runs) for active in without])

    def all_subsets(self, runs: Collection[Run]) -> Bool[np.ndarray, "128"]:
        """Whether one of some original runs is still there for every subset of active dimensions (128 replays).

        Bit d of the index says that d is active.
        """
        subsets = (np.array(bits[::-1], dtype=bool) for bits in product((0, 1), repeat=DIMENSIONS))
        return np.array([not self.survivors(active).isdisjoint(runs) for active in subsets])
