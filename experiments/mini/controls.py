"""Does the small policy use its inputs? Two arms that take one of them away and leave everything else alone.

If a policy drove by memory of ten scenes, neither would matter. Both are arms like any other: they run on the same
units as the untouched policy and are compared with it pair by pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.evaluation.arms import ArmLog, Query
from mist_interp.models.processor import CAMERA_KEYS

GREY = 128


@dataclass(frozen=True)
class OtherInstruction:
    """The policy is told another task of the suite; the scene and the goal that is scored stay.

    Attributes:
        instructions: of all tasks, in the order of the suite.
        shift: task i gets the instruction of task i + shift, counted in a circle.
        name: name in tables and folders.
    """

    instructions: tuple[str, ...]
    shift: int = 3
    name: str = "other-instruction"

    def __post_init__(self) -> None:
        if self.shift % len(self.instructions) == 0:
            raise ValueError(f"shift={self.shift} gives each of the {len(self.instructions)} tasks its own instruction")

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        return {"kind": self.name, "shift": self.shift}

    def instruction(self, task: int) -> str:
        """What the policy is told in a task."""
        return self.instructions[(task + self.shift) % len(self.instructions)]

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        told = self.instruction(query.unit.task)
        return _answer(vla, query.observation, told), ArmLog(self.name, details={"instruction": told})


@dataclass(frozen=True)
class GreyCameras:
    """Both camera pictures are one even grey; instruction and robot state stay.

    Attributes:
        level: 0 (black) to 255 (white).
        name: name in tables and folders.
    """

    level: int = GREY
    name: str = "grey-cameras"

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        return {"kind": self.name, "level": self.level}

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        grey = {key: np.full_like(query.observation[key], self.level) for key in CAMERA_KEYS}
        return _answer(vla, {**query.observation, **grey}, query.instruction), ArmLog(self.name)


def _answer(vla: Any, observation: Mapping[str, Any], instruction: str) -> ActionChunk:
    with torch.no_grad():
        chunk: ActionChunk = vla(vla.prepare(observation, instruction))
    return chunk
