"""Which eight numbers tell the policy where the robot is?

End effector position (m), its orientation as axis times angle (rad), and the two finger positions (m), in the frame of
LIBERO's observations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from mist_interp.core.errors import listing

STATE_KEYS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}


def axis_angle(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3"]:
    """Orientation as rotation axis times angle.

    The sign of the quaternion is kept, so the angle is in [0, 2 pi]; a scalar part outside [-1, 1] is clipped. The
    array is not modified.

    Args:
        quaternion: x, y, z, w, with the scalar last.
    """
    x, y, z, w = (float(number) for number in quaternion)
    w = min(1.0, max(-1.0, w))
    sine = math.sqrt(1.0 - w * w)
    if math.isclose(sine, 0.0):
        return np.zeros(3)
    return np.array([x, y, z]) * 2.0 * math.acos(w) / sine


def robot_state(obs: Mapping[str, Any]) -> Float[np.ndarray, "8"]:
    """Read the state off a LIBERO observation, float64.

    Raises:
        ValueError: if the observation lacks a part of it, or a part has another length.
    """
    for key, length in STATE_KEYS.items():
        if key not in obs:
            raise ValueError(f"the observation lacks {key!r}, which proprio needs; it holds {listing(obs)}")
        if np.shape(obs[key]) != (length,):
            raise ValueError(f"{key!r} has shape {np.shape(obs[key])}; expected ({length},)")
    position, quaternion, fingers = (np.asarray(obs[key], dtype=np.float64) for key in STATE_KEYS)
    return np.concatenate([position, axis_angle(quaternion), fingers])
