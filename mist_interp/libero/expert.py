"""How would somebody who sees the simulator's state put the bowl on the plate?

A scripted expert for libero_spatial. It has no memory and no clock: each action is a function of what a policy can
see too (where hand, bowl and plate are, how wide the fingers are apart), so a policy without memory can imitate it.
Every switch has a wide margin and a direction: near the rim the hand keeps sinking while the fingers close, over the
plate the bowl keeps sinking while they open. Heights are funnels over the horizontal distance rather than phases.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

RADIANS_PER_UNIT = 0.5


@dataclass(frozen=True)
class Grip:
    """Numbers that describe a grasp on the bowl's rim and a release over the plate (metres).

    Attributes:
        rim: from the bowl's origin to the point of the rim between the fingers, world axes.
        depth: height of the hand over the bowl's origin when the rim is between the fingers.
        yaw: how far the hand is turned about the vertical, radians.
        clearance: extra height at which the hand travels towards the bowl.
        closed: the fingers hold something when they are nearer than this.
        carry: height of the bowl over the plate while it travels.
        release: the fingers open when the bowl is lower over the plate than this.
        centred: ... and nearer to the plate's axis than this.
    """

    rim: tuple[float, float] = (0.0, 0.042)
    depth: float = 0.022
    yaw: float = 0.0
    clearance: float = 0.12
    closed: float = 0.016
    carry: float = 0.12
    release: float = 0.035
    centred: float = 0.02


class Expert:
    """A state-feedback expert for "pick up the black bowl ... and place it on the plate".

    Args:
        env: a :class:`~mist_interp.libero.env.LiberoEnv` of a libero_spatial task, reset.
        grip: geometry of the grasp.
        bowl: name of the bowl to move.
        goal: name of the plate.
    """

    def __init__(self, env: Any, grip: Grip | None = None, bowl: str = "akita_black_bowl_1", goal: str = "plate_1"):
        self.env = env
        self.grip = grip or GRIPS.get(env.task.index, Grip())
        self._bowl = env.body_of(bowl)
        self._plate = env.body_of(goal)
        self._orientation = Rotation.from_euler("z", self.grip.yaw).as_matrix() @ env.robot_pose()[1]

    def act(self) -> Float[np.ndarray, "7"]:
        """The action for the present state: dx dy dz droll dpitch dyaw in [-1, 1], gripper -1 (open) or +1 (close)."""
        hand, rotation = self.env.robot_pose()
        bowl, plate = self.env.data.xpos[self._bowl], self.env.data.xpos[self._plate]
        gap = self.env.finger_gap()
        towards, gripper = self._move(hand, bowl, plate, gap)
        turn = Rotation.from_matrix(self._orientation @ rotation.T).as_rotvec()
        return np.concatenate([np.clip(towards, -1, 1), np.clip(turn / RADIANS_PER_UNIT, -0.4, 0.4), [gripper]])

    def _move(
        self, hand: np.ndarray, bowl: np.ndarray, plate: np.ndarray, gap: float
    ) -> tuple[Float[np.ndarray, "3"], float]:
        grip = self.grip
        if np.linalg.norm((bowl - plate)[:2]) < 0.03 and bowl[2] - plate[2] < grip.release and gap > grip.closed:
            return np.array([0.0, 0.0, 0.6]), -1.0  # placed: away, upwards
        rim = bowl + np.array([*grip.rim, 0.0])
        away = rim - hand
        beside = float(np.linalg.norm(away[:2]))
        height = hand[2] - bowl[2] - grip.depth
        if gap < grip.closed and beside < 0.03 and height < 0.05:
            return self._carry(bowl, plate)
        return self._reach(away, beside, height)

    def _reach(self, away: np.ndarray, beside: float, height: float) -> tuple[Float[np.ndarray, "3"], float]:
        grip = self.grip
        if beside < 0.025 and height < 0.015:
            return _velocity(np.array([away[0], away[1], -height - 0.003])), 1.0
        funnel = min(grip.clearance, max(0.0, 4.0 * (beside - 0.018)))
        sink = funnel - 0.004 - height
        if height < funnel - 0.03:  # too low for this distance: climb before going sideways
            away = away * 0.2
        return _velocity(np.array([away[0], away[1], sink])), -1.0

    def _carry(self, bowl: np.ndarray, plate: np.ndarray) -> tuple[Float[np.ndarray, "3"], float]:
        grip = self.grip
        away = plate - bowl
        beside = float(np.linalg.norm(away[:2]))
        height = bowl[2] - plate[2]
        funnel = min(grip.carry, max(0.0, 3.0 * (beside - 0.01)))
        rise = funnel - 0.01 - height
        if height < funnel - 0.03:
            away = away * 0.15
        gripper = -1.0 if beside < grip.centred and height < grip.release else 1.0
        if gripper < 0:
            rise = -0.03
        return _velocity(np.array([away[0], away[1], rise])), gripper


def _velocity(offset: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """Proportional control, stiff enough against the droop of the arm's null space: 3.3 cm away is full speed."""
    return np.clip(30.0 * offset, -1.0, 1.0)


# The drawer is turned by 25 degrees and narrow: the fingers close along its width. Drawer and cabinet are high up.
GRIPS = {4: Grip(rim=(-0.038, 0.018), yaw=1.13, carry=0.28), 9: Grip(carry=0.33)}
