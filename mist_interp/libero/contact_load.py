"""What is left of the contact points of one pair of bodies when a control step is over?

Sums over all contact points and physics sub-steps, each weighted by its normal force: point, normal, where the end
effector was, and how fast each unit of an action closes the gap. Only the speed at which a finger's own joint closed it
is that of the first sub-step: afterwards the contact itself stops the finger.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from mist_interp.core.closing import POSE_DIMENSIONS, hand_gain
from mist_interp.libero.contact_events import Gain, Vector


@dataclass
class Load:
    """Sums over the contact of one pair in one control step: what a ``ContactSample`` is made of.

    Attributes:
        substep: physics sub-step of the first contact.
        peak: largest force of a sub-step, N.
        total: sum of the forces over points and sub-steps, N.
        point: sum of force times point.
        normal: sum of force times normal.
        strongest: largest force of one point at one sub-step, N.
        strongest_normal: its normal.
        eef: sum of force times the end effector's position; None where the monitor does not know the hand.
        gain: sum of force times closing gain, for links of the arm; None for what moves with the hand.
        finger: sum over the first sub-step of force times the velocity that the finger's own joint gives the point.
        finger_weight: the forces of that sum; 0 for what is not a finger.
    """

    substep: int
    peak: float = 0.0
    total: float = 0.0
    point: np.ndarray = field(default_factory=lambda: np.zeros(3))
    normal: np.ndarray = field(default_factory=lambda: np.zeros(3))
    strongest: float = 0.0
    strongest_normal: np.ndarray = field(default_factory=lambda: np.zeros(3))
    eef: np.ndarray | None = None
    gain: np.ndarray | None = None
    finger: np.ndarray = field(default_factory=lambda: np.zeros(3))
    finger_weight: float = 0.0

    def add(self, force: float, point: np.ndarray, normal: np.ndarray) -> None:
        """Add one contact point at one sub-step."""
        self.total += force
        self.point += force * point
        self.normal += force * normal
        if force > self.strongest:
            self.strongest, self.strongest_normal = force, normal

    def add_hand(self, force: float, eef: Float[np.ndarray, "3"]) -> None:
        """Add where the end effector was (m) when the contact point carried this force (N)."""
        self.eef = force * eef if self.eef is None else self.eef + force * eef

    def add_gain(self, force: float, gain: Float[np.ndarray, "6"]) -> None:
        """Add the closing gain of a contact point of a link."""
        self.gain = force * gain if self.gain is None else self.gain + force * gain

    def add_finger(self, force: float, velocity: Float[np.ndarray, "3"]) -> None:
        """Add the velocity (m/s) that a finger's own joint gives a contact point."""
        self.finger += force * velocity
        self.finger_weight += force

    def direction(self) -> np.ndarray:
        """Return the mean unit normal; where normals cancel (a wedged link) that of the strongest contact."""
        length = float(np.linalg.norm(self.normal))
        return self.normal / length if length > 0.1 * self.total else self.strongest_normal

    def geometry(self) -> tuple[Vector | None, Gain | None, float | None]:
        """End effector (m), closing gain (m per unit), closing speed of the finger's own joint (m/s)."""
        speed = float(-self.direction() @ self.finger / self.finger_weight) if self.finger_weight else None
        if self.eef is None:
            return None, None, speed
        eef = self.eef / self.total
        if self.gain is None:
            gain = hand_gain(self.direction(), self.point / self.total - eef)
        else:
            gain = self.gain / self.total
        assert len(gain) == POSE_DIMENSIONS
        return vector(eef), tuple(float(value) for value in gain), speed


def vector(values: np.ndarray) -> Vector:
    """Three plain numbers."""
    x, y, z = (float(value) for value in values)
    return x, y, z
