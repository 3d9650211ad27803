"""What does a contact monitor remember between two sub-steps, and what must a fork of the simulator save of it?"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import numpy as np

from mist_interp.libero.contact_events import MERGED_BREAK, ContactSample
from mist_interp.libero.contact_load import Load
from mist_interp.libero.releases import ReleaseLog
from mist_interp.libero.touches import TouchPoints

Pair = tuple[int, int]  # group of the robot or of the held object, group of what it touches


@dataclass
class MonitorState:
    """All that changes while a monitor runs, which is what a fork of the simulator has to save.

    Attributes:
        step: finished control steps.
        clock: sub-steps so far.
        touched: clock of the last touch, by object and finger.
        held: groups held at the last sub-step.
        excluded: control step in which an excluded pair was last seen.
        resting: control step in which a pair of scene groups was last seen.
        collided: control step in which a pair was last recorded.
        loads: what the current control step has collected.
        samples: what the finished control steps have recorded.
        touch_points: allowed contact points of all sub-steps.
        releases: what was let go.
        speeds: joint velocities after the last sub-step, that is, before the forces of the next one.
    """

    step: int = 0
    clock: int = 0
    touched: dict[int, dict[int, int]] = field(default_factory=dict)
    held: frozenset[int] = frozenset()
    excluded: dict[Pair, int] = field(default_factory=dict)
    resting: dict[Pair, int] = field(default_factory=dict)
    collided: dict[Pair, int] = field(default_factory=dict)
    loads: dict[Pair, Load] = field(default_factory=dict)
    samples: list[ContactSample] = field(default_factory=list)
    touch_points: list[TouchPoints] = field(default_factory=list)
    releases: ReleaseLog = field(default_factory=ReleaseLog)
    speeds: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def copy(self) -> MonitorState:
        """Return an independent copy."""
        rest = copy.deepcopy(replace(self, samples=[], touch_points=[]))
        return replace(rest, samples=list(self.samples), touch_points=list(self.touch_points))

    def exclude_resting(self, thing: int, touching: set[Pair]) -> None:
        """Exclude what an object touches, or has just touched, when it becomes held."""
        since = self.step - 1 - MERGED_BREAK
        rested = {(thing, a + b - thing) for (a, b), seen in self.resting.items() if thing in (a, b) and seen >= since}
        for pair in touching | rested:
            if pair not in self.loads and self.collided.get(pair, since - 1) < since:
                self.excluded[pair] = self.step
