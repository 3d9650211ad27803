"""When do contacts make one event?

Per control step and pair of body groups there is one ``ContactSample``: the largest force, the impulse, where and in
which direction. An event is a run of samples of one pair whose force reaches the threshold, breaks of at most
``MERGED_BREAK`` control steps included. Since samples keep the largest force of all physics sub-steps, events at any
threshold follow exactly from the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Sample = TypeVar("Sample")
Vector = tuple[float, float, float]
Gain = tuple[float, ...]  # m per unit of dx, dy, dz, droll, dpitch, dyaw

MERGED_BREAK = 3  # control steps


@dataclass(frozen=True)
class ContactSample:
    """Contact of one pair of body groups in one control step, forbidden or a touch (``contacts.py``).

    Attributes:
        step: control step, 0 = the first after settling.
        substep: physics sub-step of the first contact in this control step.
        body_robot: the robot link, or the held object.
        body_other: what it touches (for robot with itself the link nearer to the base).
        kind: ``"<arm|hand|finger|held>-<class of the other body>"``, ``"...-self"`` for robot with itself.
        peak_force: largest normal force of a sub-step, summed over the contact points of the pair, N.
        impulse: time integral of the normal force over the control step, N s.
        point: contact point in the world frame, weighted by force, m.
        normal: unit normal in the world frame from ``body_other`` to ``body_robot``, weighted by force.
        eef: where the end effector was, weighted by force, m; None for touches, and where the monitor does not know
            the hand.
        gain: how much one unit of each pose dimension closes the gap (``core/closing.py``), weighted by force; None
            where ``eef`` is.
        finger_speed: at which the finger's own joint closed the gap just before the first contact, m/s; negative if it
            opened it; None for touches, and for what is not a finger.
    """

    step: int
    substep: int
    body_robot: str
    body_other: str
    kind: str
    peak_force: float
    impulse: float
    point: Vector
    normal: Vector
    eef: Vector | None = None
    gain: Gain | None = None
    finger_speed: float | None = None


@dataclass(frozen=True)
class ContactEvent:
    """A run of contact of one pair of body groups, forbidden or a touch.

    Attributes:
        start_step: first control step with the force at or above the threshold, 0 = the first after settling.
        end_step: last such control step (inclusive).
        body_robot: the robot link, or the held object.
        body_other: what it touches.
        kind: as in ``ContactSample``; of the first control step.
        peak_force: largest force of a sub-step, N.
        impulse: impulse of the pair from ``start_step`` to ``end_step``, what is below the threshold included, N s.
        point: contact point in the first control step, world frame, m.
        normal: unit normal from ``body_other`` to ``body_robot`` in the first control step, world frame.
        start_substep: physics sub-step of the first contact in the first control step.
        start_force: largest force of a sub-step of the first control step, N.
        eef: as in ``ContactSample``, of the first control step; likewise the next two.
        gain: how much one unit of each pose dimension closes the gap, m.
        finger_speed: at which the finger's own joint closed it, m/s.
    """

    start_step: int
    end_step: int
    body_robot: str
    body_other: str
    kind: str
    peak_force: float
    impulse: float
    point: Vector
    normal: Vector
    start_substep: int = 0
    start_force: float = 0.0
    eef: Vector | None = None
    gain: Gain | None = None
    finger_speed: float | None = None


def group_events(samples: Iterable[ContactSample], threshold: float) -> list[ContactEvent]:
    """Join samples into events.

    Args:
        samples: at most one per control step and pair of bodies, in any order.
        threshold: least force that counts, N.

    Returns:
        Events by start, then by the names of the bodies.

    Raises:
        ValueError: if the threshold is not positive (a resting contact without force is none).
    """
    if not threshold > 0:
        raise ValueError(f"the force threshold must be positive (N), got {threshold!r}")
    by_pair: dict[tuple[str, str], list[ContactSample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.step):
        by_pair.setdefault((sample.body_robot, sample.body_other), []).append(sample)
    events = [
        _event(run, pair_samples)
        for pair_samples in by_pair.values()
        for run in merged([s for s in pair_samples if s.peak_force >= threshold], lambda sample: sample.step)
    ]
    return sorted(events, key=lambda event: (event.start_step, event.body_robot, event.body_other))


def merged(samples: Iterable[Sample], step: Callable[[Sample], int]) -> list[list[Sample]]:
    """Samples of one pair, by their control step, cut where the pair is apart for more than `MERGED_BREAK` of them."""
    runs: list[list[Sample]] = []
    for sample in samples:
        if runs and step(sample) - step(runs[-1][-1]) - 1 <= MERGED_BREAK:
            runs[-1].append(sample)
        else:
            runs.append([sample])
    return runs


def _event(run: list[ContactSample], pair_samples: list[ContactSample]) -> ContactEvent:
    first, last = run[0], run[-1]
    within = [sample for sample in pair_samples if first.step <= sample.step <= last.step]
    return ContactEvent(
        start_step=first.step,
        end_step=last.step,
        body_robot=first.body_robot,
        body_other=first.body_other,
        kind=first.kind,
        peak_force=max(sample.peak_force for sample in within),
        impulse=sum(sample.impulse for sample in within),
        point=first.point,
        normal=first.normal,
        start_substep=first.substep,
        start_force=first.peak_force,
        eef=first.eef,
        gain=first.gain,
        finger_speed=first.finger_speed,
    )
