"""Stand-ins that make the runner's bookkeeping testable in milliseconds; no number of theirs means anything."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.data.records import Unit
from mist_interp.libero.suite import Task


@dataclass(frozen=True)
class FakeTask:
    index: int
    instruction: str = "pick up the bowl"
    n_init_states: int = 5
    suite: str = "fake"
    check_init_state = Task.check_init_state


@dataclass(frozen=True)
class FakeSuite:
    name: str = "fake"
    max_steps: int = 20
    tasks: tuple[FakeTask, ...] = (FakeTask(0), FakeTask(1), FakeTask(2))


@dataclass(frozen=True)
class FakeStep:
    success: bool
    contacts: tuple[Any, ...] = ()


@dataclass(frozen=True)
class FakeEvent:
    start_step: int
    end_step: int
    body_robot: str
    body_other: str
    kind: str
    peak_force: float
    impulse: float
    point: tuple[float, float, float]
    normal: tuple[float, float, float]
    start_force: float = 1.0
    eef: None = None
    gain: None = None
    finger_speed: None = None


class FakeEnv:
    """A point on a line: dx moves it, the goal is at 0.5 + init / 4; passing 0.65 with odd init touches something."""

    built: ClassVar[list[int]] = []
    releases: ClassVar[tuple[Any, ...]] = ()
    touches: ClassVar[tuple[Any, ...]] = ()

    def __init__(self, task: FakeTask) -> None:
        self.task, self.closed = task, False
        FakeEnv.built.append(task.index)

    def reset(self, init_state: int) -> None:
        self.init, self.position, self.steps = init_state, 0.0, 0
        self.events: list[FakeEvent] = []

    def observe(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "robot0_eef_pos": np.array([self.position, 0, 0]),
            "robot0_eef_quat": np.array([0.0, 0, 0, 1]),
            "robot0_gripper_qpos": np.zeros(2),
        }

    def step(self, action: np.ndarray) -> FakeStep:
        delay = float(os.environ.get("FAKE_STEP_SECONDS", "0"))
        if delay:
            time.sleep(delay)
        self.position += 0.0625 * float(np.clip(action[0], -1.0, 1.0))  # as LIBERO's controller does
        if self.init % 2 and self.position > 0.65 and not self.events:
            self.events.append(
                FakeEvent(
                    self.steps, self.steps, "hand", "table", "hand-table", 4.0 * self.init, 0.2, (0, 0, 0), (0, 0, 1)
                )
            )
        self.steps += 1
        return FakeStep(self.position >= 0.5 + self.init / 4)

    def hand_motion(self) -> np.ndarray:
        return np.array([self.position, *[0.0] * 12])

    def state_hash(self) -> str:
        return hashlib.sha256(f"{self.init}{self.position}{self.steps}".encode()).hexdigest()[:12]

    def save(self) -> tuple[Any, ...]:
        return self.init, self.position, self.steps, tuple(self.events)

    def restore(self, fork: tuple[Any, ...]) -> None:
        self.init, self.position, self.steps, events = fork
        self.events = list(events)

    def frame(self, camera: str) -> np.ndarray:
        image = np.full((64, 64, 3), 90, dtype=np.uint8)
        column = int(np.clip(self.position * 40, 0, 60))
        image[28:36, column : column + 4] = (230, 120, 40)
        return image

    def close(self) -> None:
        self.closed = True


def make_fake_env(task: FakeTask, unit: Unit, render: dict[str, Any]) -> FakeEnv:
    return FakeEnv(task)


@dataclass
class FakeVLA:
    """Answers dx = 1 always; `crash_at` raises on the given (task index in the instruction, nth query)."""

    speed: float = 1.0
    model_id: str = "fake"
    crash_on: tuple[int, ...] = ()
    calls: list[float] = field(default_factory=list)

    def prepare(self, observation: Mapping[str, Any], instruction: str) -> PolicyInputs:
        return PolicyInputs(
            torch.ones(1, 2, dtype=torch.long),
            torch.ones(1, 2, dtype=torch.long),
            torch.zeros(1, 6, 2, 2),
            torch.full((1, 8), float(observation["position"])),
        )

    def __call__(self, inputs: PolicyInputs) -> ActionChunk:
        self.calls.append(float(inputs.proprio[0, 0]))
        if len(self.calls) in self.crash_on:
            raise RuntimeError("the policy crashed")
        values = torch.zeros(1, 4, 7, dtype=torch.float64)
        values[..., 0] = self.speed
        return ActionChunk(values, values)


def position_score(vla: Any, inputs: PolicyInputs) -> float:
    return float(inputs.proprio[0, 0])
