"""What disturbs the robot in a unit, beside the policy?

A policy that is left alone in LIBERO's own scenes fails and collides in few ways. A perturbation adds to the pose part
of every action before the controller clips it, so that the record still holds what was really executed and an episode
can be replayed without knowing of the perturbation. The policy is not told; it sees where it has been taken.

    none         LIBERO as published
    noise0.5     correlated noise: e(t+1) = 0.7 e(t) + sqrt(1 - 0.49) 0.5 xi(t), xi normal
    bias0.3      one constant vector per episode, normal with standard deviation 0.3: a badly calibrated arm
    push1.5      one constant vector during 12 control steps that begin at a step drawn from 0..79: a bump
    noise0.3+push1    both

Sizes are in the controller's units: 1 is 0.05 m of translation or 0.5 rad of rotation per control step; rotations get a
fifth of the size (a finger's length, 0.1 m, times 0.1 rad is then a fifth of 0.05 m). All that is drawn depends on the
unit and on the control step alone: every arm of a unit meets the same disturbance.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mist_interp.core.errors import UnknownName
from mist_interp.data.records import Array, Unit

NONE = "none"
ROTATION_SHARE = 0.2
MEMORY = 0.7
PUSH_STEPS = 12
PUSH_BEGINS_BEFORE = 80
_POSE = np.array([1.0, 1.0, 1.0, ROTATION_SHARE, ROTATION_SHARE, ROTATION_SHARE])

Course = Float[Array, "steps 6"]


def _noise(rng: np.random.Generator, size: float, steps: int) -> Course:
    course = rng.normal(size=(steps, 6)) * size
    for step in range(1, steps):
        course[step] = MEMORY * course[step - 1] + np.sqrt(1 - MEMORY**2) * course[step]
    return course


def _bias(rng: np.random.Generator, size: float, steps: int) -> Course:
    return np.tile(rng.normal(size=6) * size, (steps, 1))


def _push(rng: np.random.Generator, size: float, steps: int) -> Course:
    course, start = np.zeros((steps, 6)), int(rng.integers(PUSH_BEGINS_BEFORE))
    course[start : start + PUSH_STEPS] = rng.normal(size=6) * size
    return course


KINDS: Mapping[str, Callable[[np.random.Generator, float, int], Course]] = {
    "noise": _noise,
    "bias": _bias,
    "push": _push,
}


@dataclass(frozen=True)
class Disturbance:
    """What is added to the actions of one episode.

    Attributes:
        course: (steps, 6) added to the pose part of the action of each control step.
    """

    course: Course

    @classmethod
    def of(cls, unit: Unit, max_steps: int) -> Disturbance:
        """The disturbance of a unit, the same at every call.

        Raises:
            UnknownName: there is no such perturbation.
            ValueError: it has no size.
        """
        course = np.zeros((max_steps, 6))
        for kind, size in parse_perturbation(unit.perturbation):
            seed = int.from_bytes(hashlib.sha256(f"{kind}:{unit.key}".encode()).digest()[:8], "big")
            course += KINDS[kind](np.random.default_rng(seed), size, max_steps) * _POSE
        return cls(course)

    def added(self, action: Float[Array, "7"], step: int) -> Float[Array, "7"]:
        """The action that reaches the controller at a control step (from 0), which will clip it to +-1."""
        disturbed = np.array(action, dtype=np.float64)
        disturbed[:6] += self.course[step]
        return disturbed


def parse_perturbation(text: str) -> tuple[tuple[str, float], ...]:
    """`noise0.3+push1` -> (("noise", 0.3), ("push", 1.0)); `none` -> ().

    Raises:
        UnknownName: there is no perturbation of this kind.
        ValueError: it has no size above 0, or stands there twice.
    """
    if text == NONE:
        return ()
    parts = []
    for part in text.split("+"):
        kind, size = re.fullmatch(r"([a-z]*)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
        if kind not in KINDS:
            raise UnknownName("perturbation", part, [NONE, *(f"{name}0.5" for name in KINDS)])
        if not re.fullmatch(r"\d+(\.\d+)?", size) or float(size) == 0:
            raise ValueError(f"perturbation {part!r}: write a size above 0 behind it, such as {kind}0.5")
        parts.append((kind, float(size)))
    kinds = [kind for kind, _ in parts]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"perturbation {text!r} names a kind twice; once is enough")
    return tuple(parts)
