"""By how much does one unit of each pose action close the gap of a contact?

An action of LIBERO's controller moves the end effector by 0.05 m per unit along the *world's* axes and turns it by
0.5 rad per unit about them. A point p of the robot at r = p - p_eef, carried along like a rigid part of the hand, then
moves by d = 0.05 (dx, dy, dz) + 0.5 (droll, dpitch, dyaw) x r. With the unit normal n from obstacle to robot, the gap
shrinks by -n . d, so per unit of each dimension by

    g_xyz = -0.05 n        g_rot = -0.5 (r x n)                  hand, fingers and what they hold

A link of the arm does not move like the hand. With the Jacobian J_p (3 x joints) of its point and that of the end
effector J_eef (6 x joints), of all joint motions that give the end effector its motion the smallest is taken:

    g = -n' J_p J_eef^+ S,    S = diag(0.05, 0.05, 0.05, 0.5, 0.5, 0.5)

Where two links of the robot touch each other, J_p is that of the one minus that of the other. Where J_p is the hand's,
both formulas agree. Positive closes, negative opens; metres per unit of action.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

METRES_PER_UNIT = 0.05
RADIANS_PER_UNIT = 0.5
SCALES = np.array([METRES_PER_UNIT] * 3 + [RADIANS_PER_UNIT] * 3)
POSE_DIMENSIONS = 6


def hand_gain(normal: Float[Array, "*rows 3"], lever: Float[Array, "*rows 3"]) -> Float[Array, "*rows 6"]:
    """Closing gain of a point that moves with the hand.

    Args:
        normal: unit normal from the obstacle to the robot, world axes.
        lever: contact point minus end effector, m, world axes.

    Returns:
        Metres by which the gap shrinks per unit of dx, dy, dz, droll, dpitch, dyaw.
    """
    normal, lever = np.broadcast_arrays(normal, lever)
    return np.concatenate([-METRES_PER_UNIT * normal, -RADIANS_PER_UNIT * np.cross(lever, normal)], axis=-1)


def link_gain(
    normal: Float[Array, "3"], of_point: Float[Array, "3 joints"], of_hand: Float[Array, "6 joints"]
) -> Float[Array, "6"]:
    """Closing gain of a point of an arm link.

    Args:
        normal: unit normal from the obstacle to the robot, world axes.
        of_point: Jacobian of the contact point.
        of_hand: Jacobian of the end effector, translation over rotation, world axes.

    Returns:
        Metres by which the gap shrinks per unit of dx, dy, dz, droll, dpitch, dyaw.
    """
    gain: Array = -(normal @ of_point @ np.linalg.pinv(of_hand)) * SCALES
    return gain
