"""Scripted pushes and grasps in real LIBERO, recorded as a rollout would record them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from mist_interp.data.records import EpisodeRecord, QueryRecord, Unit
from mist_interp.data.rollout import contact_record, release_record
from mist_interp.libero.env import LiberoEnv
from mist_interp.libero.suite import LiberoSuite

BOWL, PLATE, BOX = "akita_black_bowl_1_main", "plate_1_main", "cookies_1_main"
OPEN, CLOSE = -1.0, 1.0


@cache
def environment(suite: str, name: str) -> LiberoEnv:
    """Build each scene once; every test resets it."""
    (task,) = [task for task in LiberoSuite(suite).tasks if name in task.name]
    return LiberoEnv(task)


class Script:
    """Drives the hand by positions."""

    def __init__(self, suite: str = "libero_spatial", name: str = "between_the_plate_and_the_ramekin") -> None:
        self.env = environment(suite, name)
        self.env.reset(0)
        self.actions: list[np.ndarray] = []
        self.hands: list[np.ndarray] = []

    def hand(self) -> np.ndarray:
        return self.env.data.site_xpos[self.env.model.site("gripper0_grip_site").id].copy()

    def at(self, body: str) -> np.ndarray:
        return self.env.data.body(body).xpos.copy()

    def go(self, goal: object, grip: float, steps: int = 60) -> None:
        for _ in range(steps):
            error = np.asarray(goal) - self.hand()
            if np.linalg.norm(error) < 0.006:
                break
            self.step([*np.clip(18 * error, -1, 1), 0, 0, 0, grip])

    def grip(self, grip: float, steps: int) -> None:
        self.hold([0, 0, 0, 0, 0, 0, grip], steps)

    def hold(self, action: Sequence[float], steps: int) -> None:
        """Command the same for some steps."""
        for _ in range(steps):
            self.step(action)

    def until_contact(self, action: Sequence[float], steps: int = 60) -> None:
        """Command the same until something forbidden is touched."""
        for _ in range(steps):
            self.step(action)
            if self.env.events:
                return

    def step(self, action: Sequence[float]) -> None:
        self.hands.append(self.env.hand_motion())
        self.actions.append(np.asarray(action, dtype=float))
        self.env.step(self.actions[-1])

    def record(self) -> EpisodeRecord:
        """What a rollout would have recorded of these actions, in chunks of 8."""
        actions, hands = np.stack(self.actions), np.stack(self.hands)
        queries = tuple(
            QueryRecord(number, at, np.zeros((8, 7)), actions[at : at + 8], np.zeros(9), hand=hands[at : at + 8])
            for number, at in enumerate(range(0, len(actions), 8))
        )
        return EpisodeRecord(
            unit=Unit(self.env.task.suite, self.env.task.index, 0),
            instruction=self.env.task.instruction,
            success=False,
            steps=len(actions),
            max_steps=len(actions),
            queries=queries,
            contacts=tuple(contact_record(event) for event in self.env.events),
            touches=tuple(contact_record(touch) for touch in self.env.touches),
            releases=tuple(release_record(release) for release in self.env.releases),
        )

    def pick(self, height: float = 0.15) -> None:
        """Take the bowl by its rim and lift it."""
        bowl = self.at(BOWL)
        self.go(np.add(bowl, (0, 0.042, 0.13)), OPEN)
        self.go(np.add(bowl, (0, 0.042, -0.013)), OPEN, 30)
        self.grip(CLOSE, 10)
        self.go(np.add(self.hand(), (0, 0, height)), CLOSE)
        assert self.env.monitor.held == (BOWL,)

    def carry(self, goal: np.ndarray, steps: int = 60) -> None:
        """Move so that the bowl arrives at the goal."""
        self.go(goal + self.hand() - self.at(BOWL), CLOSE, steps)

    def found(self) -> list[tuple[str, str]]:
        return sorted({(event.kind, event.body_other) for event in self.env.events})
