"""A world whose contacts follow from the actions by hand; forks are copies of its sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np


@dataclass(frozen=True)
class Bump:
    """Touches while what `how` makes of the sums of some dimensions of the actions lies in low..high (exclusive)."""

    dims: tuple[int, ...]
    low: float
    high: float = np.inf
    how: Callable[..., float] = min
    robot: str = "left"
    kind: str = "finger-table"
    other: str = "table"
    force: float = 5.0


@dataclass
class Bumps:
    bumps: tuple[Bump, ...]
    sums: np.ndarray = field(default_factory=lambda: np.zeros(7))
    steps: int = 0

    def reset(self, init_state: int) -> None:
        self.sums = np.zeros(7)

    def save(self) -> np.ndarray:
        return self.sums.copy()

    def restore(self, fork: np.ndarray) -> None:
        self.sums = fork.copy()

    def step(self, action: np.ndarray) -> SimpleNamespace:
        self.steps += 1
        self.sums = self.sums + action
        touching = [bump for bump in self.bumps if bump.low <= bump.how(self.sums[d] for d in bump.dims) < bump.high]
        return SimpleNamespace(
            contacts=[
                SimpleNamespace(kind=b.kind, body_robot=b.robot, body_other=b.other, peak_force=b.force)
                for b in touching
            ]
        )
