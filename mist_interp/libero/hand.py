"""Where is the end effector, how does it move, and how do the arm's joints move it and the links?

The end effector is the site that the controller steers. Everything is in the world's axes, of the moment of the last
position stage of the physics, to which contacts belong too (`ContactMonitor.sample`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Hand:
    """The end effector of a robot.

    Attributes:
        model: the compiled model.
        site: id of the site that the controller steers.
        dofs: degrees of freedom of the arm, fingers not included.
    """

    model: Any
    site: int
    dofs: Int[np.ndarray, " joints"]

    @classmethod
    def of_env(cls, env: Any, model: Any) -> Hand:
        """The hand of the robot of a robosuite environment with one robot."""
        robot = env.robots[0]
        return cls(model, int(robot.eef_site_id), np.asarray(robot._ref_joint_vel_indexes, dtype=np.intp))

    def position(self, data: Any) -> Float[np.ndarray, "3"]:
        """Position in m."""
        return data.site_xpos[self.site].copy()

    def motion(self, data: Any) -> Float[np.ndarray, "13"]:
        """Position (m), quaternion (xyzw), velocity (m/s) and angular velocity (rad/s)."""
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, data.site_xmat[self.site])
        velocity = self._jacobian(data, None, self.site) @ data.qvel
        return np.concatenate([data.site_xpos[self.site], quaternion[[1, 2, 3, 0]], velocity])

    def jacobian(self, data: Any) -> Float[np.ndarray, "6 joints"]:
        """How the arm's joints move the end effector: translation over rotation."""
        return self._jacobian(data, None, self.site)[:, self.dofs]

    def point_jacobian(self, data: Any, body: int, point: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 joints"]:
        """How the arm's joints move a point of a body; zero for bodies of the scene."""
        return self._jacobian(data, point, body)[:3, self.dofs]

    def _jacobian(self, data: Any, point: np.ndarray | None, index: int) -> Float[np.ndarray, "6 nv"]:
        full = np.zeros((6, self.model.nv))
        if point is None:
            mujoco.mj_jacSite(self.model, data, full[:3], full[3:], index)
        else:
            mujoco.mj_jac(self.model, data, full[:3], full[3:], point, index)
        return full


def own_dofs(model: Any, bodies: tuple[int, ...]) -> Int[np.ndarray, " dofs"]:
    """Degrees of freedom of the joints of some bodies, those of the bodies above them not included."""
    dofs = [
        dof
        for body in bodies
        for dof in range(model.body_dofadr[body], model.body_dofadr[body] + model.body_dofnum[body])
    ]
    return np.array(dofs, dtype=np.intp)


def own_velocity(
    model: Any, data: Any, body: int, point: Float[np.ndarray, "3"], dofs: Int[np.ndarray, " dofs"], qvel: np.ndarray
) -> Float[np.ndarray, "3"]:
    """Velocity (m/s) that some joints alone give to a point of a body.

    Args:
        model: the compiled model.
        data: positions of the moment.
        body: which body the point belongs to.
        point: where it is, m.
        dofs: the joints' degrees of freedom.
        qvel: joint velocities of the moment before contact forces acted.
    """
    jacobian = np.zeros((3, model.nv))
    mujoco.mj_jac(model, data, jacobian, None, point, body)
    velocity: np.ndarray = jacobian[:, dofs] @ qvel[dofs]
    return velocity
