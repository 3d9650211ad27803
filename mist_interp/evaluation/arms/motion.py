"""Which arms change the action itself, and no activation?

    safe-stop         no motion from the trigger on, the gripper as it was
    generic-slow      all translations and rotations scaled
    failsafe-style    a script: up and back for some steps, then the policy tries again

The last is a stand-in for methods that generate a recovery with a second large model (FailSafe, 2025), and named so: it
is open loop, looks at the robot's own fingers and at nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.evaluation.arms.protocol import ArmLog, Query, check_when, clean_answer, is_live

GRIPPER = 6
# m, of each finger from the middle; nothing in LIBERO that is held is thinner than twice this.
EMPTY = 0.002


@dataclass(frozen=True)
class SafeStop:
    """Hold the pose: a zero change of it, the gripper as it was commanded last.

    Attributes:
        when: `triggered` (from the first alarm on) or `fired` (while the alarm is on) or `always`.
        name: name in tables and folders.
    """

    when: str = "triggered"
    name: str = "safe-stop"

    def __post_init__(self) -> None:
        check_when(self.name, self.when)

    @property
    def gated(self) -> bool:
        """See `Arm`."""
        return self.when != "always"

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        return {"kind": "safe-stop", "when": self.when}

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        clean = clean_answer(vla, inputs, query)
        if not is_live(self.when, query):
            return clean, ArmLog()
        values = torch.zeros_like(clean.values)
        values[..., GRIPPER] = as_it_was(query)
        return chunk_of(vla, clean, values), ArmLog(self.name)


@dataclass(frozen=True)
class GenericSlow:
    """Scale every translation and rotation; the gripper is the policy's.

    Attributes:
        factor: 0 stops, 1 changes nothing.
        when: as in `Steer`.
        name: name in tables and folders.
    """

    factor: float = 0.5
    when: str = "fired"
    name: str = "generic-slow"

    def __post_init__(self) -> None:
        check_when(self.name, self.when)
        if not 0 <= self.factor <= 1:
            raise ValueError(f"arm {self.name!r}: factor={self.factor}; give a number from 0 to 1")

    @property
    def gated(self) -> bool:
        """See `Arm`."""
        return self.when != "always"

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        return {"kind": "generic-slow", "factor": float(self.factor), "when": self.when}

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        clean = clean_answer(vla, inputs, query)
        if not is_live(self.when, query) or self.factor == 1:
            return clean, ArmLog()
        values = clean.values.clone()
        values[..., :GRIPPER] *= self.factor
        return chunk_of(vla, clean, values), ArmLog(self.name)


@dataclass(frozen=True)
class FailsafeStyle:
    """A stand-in for scripted or generated recoveries: retreat up and back, then let the policy try again.

    The script begins when the alarm goes on, lasts `queries` chunks whatever the alarm says meanwhile, and does not
    begin again in the `pause` queries after it. The fingers stay as they were, unless they closed on nothing.

    Attributes:
        up: dz of every step, in the controller's unit (1 is its largest step).
        back: -dx of every step: towards the robot's base.
        queries: chunks that the script lasts.
        pause: chunks in which the policy has the robot to itself afterwards.
        name: name in tables and folders.
    """

    up: float = 0.4
    back: float = 0.2
    queries: int = 2
    pause: int = 4
    name: str = "failsafe-style"

    def __post_init__(self) -> None:
        if self.queries < 1 or self.pause < 0 or not np.isfinite([self.up, self.back]).all():
            raise ValueError(f"arm {self.name!r}: needs queries >= 1, pause >= 0 and finite numbers: {self}")

    @property
    def gated(self) -> bool:
        """See `Arm`."""
        return True

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        keys = ("up", "back", "queries", "pause")
        return {"kind": "failsafe-style", "stand_in": True, **{key: getattr(self, key) for key in keys}}

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        clean = clean_answer(vla, inputs, query)
        began = query.memory.get("began")
        if query.fired and (began is None or query.index >= began + self.queries + self.pause):
            began = query.memory["began"] = query.index
            query.memory["gripper"] = 1.0 if _fingers_empty(query) else as_it_was(query)
        if began is None or query.index >= began + self.queries:
            return clean, ArmLog()
        values = torch.zeros_like(clean.values)
        values[..., 0], values[..., 2] = -self.back, self.up
        values[..., GRIPPER] = query.memory["gripper"]
        return chunk_of(vla, clean, values), ArmLog(self.name, details={"script": query.index - began})


def as_it_was(query: Query) -> float:
    """The gripper's last command in the policy's convention, 1 open and 0 closed; open at the start of an episode."""
    return 1.0 if query.last_action is None or query.last_action[GRIPPER] < 0 else 0.0


def chunk_of(vla: Any, like: ActionChunk, values: Float[Tensor, "batch chunk dim"]) -> ActionChunk:
    """A chunk with other values, in the normalised unit of the policy too, where it has one."""
    scale, zero = action_scale(vla, like)
    normalized = values / scale.to(values) + zero.to(values)
    return ActionChunk(normalized.to(like.normalized), values, like.names)


def action_scale(vla: Any, like: ActionChunk) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """Values per normalised unit, and the normalised number that means value 0: values = scale (normalized - zero)."""
    policy: Any = getattr(vla, "policy", None)
    dims = like.values.shape[-1]
    scale, zero = torch.ones(dims, dtype=torch.float64), torch.zeros(dims, dtype=torch.float64)
    if not hasattr(policy, "bounds"):
        return scale, zero
    bounds = policy.bounds("action")
    low, high, mask = (torch.tensor(part) for part in (bounds.low, bounds.high, bounds.mask))
    half = (high.double() - low.double() + 1e-8) / 2
    return torch.where(mask, half, scale), torch.where(mask, -low.double() / half - 1, zero)


def _fingers_empty(query: Query) -> bool:
    fingers = query.observation.get("robot0_gripper_qpos")
    return fingers is not None and bool(np.abs(fingers).max() < EMPTY)
