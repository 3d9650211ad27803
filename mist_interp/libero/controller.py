"""Which torques does robosuite's OSC_POSE controller ask for, bit for bit, without its overhead?

Operational space control (O. Khatib, "A unified approach for motion and force control of robot manipulators", 1987):
torques = J^T [Lambda_pos f; Lambda_ori m] + bias + N^T posture, where f and m pull the hand to its goal as a
critically damped spring, and the posture is held in the null space N. Goals are set by robosuite's own controller once
per control step. At the 25 physics sub-steps in between, robosuite spends half of the time of a control step on looking
up names, limits and copies; here are the same operations, in the same order, on arrays of the same memory layout (which
decides the last bit of a product), and nothing else. The matrices are robosuite's own compiled functions.
"""

from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error


class ArmController:
    """Turns actions into the controls of arm and gripper.

    Args:
        env: the robosuite environment (LIBERO's ``ControlEnv.env``), freshly reset.

    Raises:
        ValueError: the robot is not controlled as LIBERO's is (OSC_POSE, fixed gains, uncoupled, no interpolation).
    """

    def __init__(self, env: Any) -> None:
        robot = env.robots[0]
        osc = robot.controller
        if (osc.name, osc.impedance_mode, osc.uncoupling) != ("OSC_POSE", "fixed", True) or osc.interpolator_pos:
            raise ValueError(
                f"LIBERO's robots have a controller OSC_POSE with fixed gains, uncoupled, without interpolation; got "
                f"{osc.name}, {osc.impedance_mode}, uncoupling={osc.uncoupling}, {osc.interpolator_pos}"
            )
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._osc, self._gripper = osc, robot.gripper
        self._dofs, self._joints = _range(osc.qvel_index), _range(osc.qpos_index)
        self._entries = _mass_entries(self._model, np.arange(self._model.nv)[self._dofs])
        self._jacobian = np.zeros((6, self._model.nv))
        self._site = env.sim.model.site_name2id(osc.eef_name)
        self._position = self._data.site_xpos[self._site]
        self._rotation = self._data.site_xmat[self._site].reshape(3, 3)
        self._motors = _range(robot._ref_joint_actuator_indexes)
        self._limits = self._model.actuator_ctrlrange[self._motors].T.copy()
        names = [env.sim.model.actuator_name2id(name) for name in robot.gripper.actuators]
        self._finger_motors = _range(names)
        low, high = self._model.actuator_ctrlrange[self._finger_motors].T
        self._finger_middle, self._finger_half = 0.5 * (high + low), 0.5 * (high - low)
        self._stiffness = np.array(osc.kp[:3]), np.array(osc.kp[3:6])
        self._damping = np.array(osc.kd[:3]), np.array(osc.kd[3:6])

    @property
    def up_to_date(self) -> bool:
        """Whether robosuite's controller still holds the state that it read when it was reset.

        It then skips its update at the next sub-step, even if the simulator was set to another state meanwhile.
        """
        return not self._osc.new_update

    def control(self, action: Float[np.ndarray, "7"], first: bool) -> None:
        """Set ``data.ctrl`` for the physics sub-step whose position and velocity stages have been computed.

        Args:
            action: of the running control step, as :meth:`Stepper.step` takes it.
            first: whether this is the first sub-step of the control step, in which the goals change.
        """
        data, osc = self._data, self._osc
        if self.up_to_date:
            position, rotation, linear, angular = osc.ee_pos, osc.ee_ori_mat, osc.ee_pos_vel, osc.ee_ori_vel
            joints, speeds, mass = osc.joint_pos, osc.joint_vel, osc.mass_matrix
            jacobian, upper, lower = osc.J_full, osc.J_pos, osc.J_ori
        else:
            position, rotation = self._position, self._rotation
            mujoco.mj_jacSite(self._model, data, self._jacobian[:3], self._jacobian[3:], self._site)
            linear, angular = np.dot(self._jacobian[:3], data.qvel), np.dot(self._jacobian[3:], data.qvel)
            joints, speeds = data.qpos[self._joints], data.qvel[self._dofs]
            mass = data.qM[self._entries].T  # symmetric; robosuite's is in Fortran order
            upper = np.asfortranarray(self._jacobian[:3, self._dofs])
            lower = np.asfortranarray(self._jacobian[3:, self._dofs])
            jacobian = np.concatenate((upper, lower))
        if first:
            osc.ee_pos, osc.ee_ori_mat, osc.new_update = position.copy(), rotation.copy(), False
            osc.set_goal(action[:6])
            self._opening = np.array([-1.0, 1.0]) * self._gripper.speed * np.sign(action[6:])
        force = (osc.goal_pos - position) * self._stiffness[0] + -linear * self._damping[0]
        moment = orientation_error(osc.goal_ori, rotation) * self._stiffness[1] + -angular * self._damping[1]
        _, lambda_pos, lambda_ori, null_space = opspace_matrices(mass, jacobian, upper, lower)
        wrench = np.concatenate((np.dot(lambda_pos, force), np.dot(lambda_ori, moment)))
        torques = np.dot(jacobian.T, wrench) + data.qfrc_bias[self._dofs]
        torques += nullspace_torques(mass, null_space, osc.initial_joint, joints, speeds)
        data.ctrl[self._motors] = np.minimum(np.maximum(torques, self._limits[0]), self._limits[1])
        fingers = np.minimum(np.maximum(self._gripper.current_action + self._opening, -1.0), 1.0)
        self._gripper.current_action = fingers
        data.ctrl[self._finger_motors] = self._finger_middle + self._finger_half * fingers
        osc.new_update = True


def _range(indices: Any) -> Any:
    """Consecutive indices as a slice, which gives a view; others as they are."""
    indices = np.asarray(indices)
    first, count = int(indices[0]), len(indices)
    return slice(first, first + count) if (indices == np.arange(first, first + count)).all() else indices


def _mass_entries(model: Any, dofs: Any) -> np.ndarray:
    """Where MuJoCo's sparse mass matrix ``qM`` holds M[i, j], for degrees of freedom that form one chain."""
    entries = np.zeros((len(dofs), len(dofs)), dtype=np.int64)
    for row, dof in enumerate(dofs):
        address, ancestor = int(model.dof_Madr[dof]), int(dof)
        while ancestor >= 0:
            entries[row, dofs == ancestor] = entries[dofs == ancestor, row] = address
            address, ancestor = address + 1, int(model.dof_parentid[ancestor])
    return entries
