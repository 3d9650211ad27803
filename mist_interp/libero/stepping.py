"""How is one control step computed, bit for bit as LIBERO computes it, at less than half its cost?

robosuite 1.4 runs, for each of the 25 physics sub-steps of a control step, ``mj_forward`` (environment), ``mj_forward``
(controller) and ``mj_step``. The three differ only in what they do *after* the position and velocity stage, so one
``mj_step1``, two constraint solves (they advance the solver's warm start) and one ``mj_step2`` give the same bits. The
controller itself stays robosuite's: only its state is filled in from the running step instead of from another
``mj_forward``. ``tests/sim/test_stepping.py`` compares both loops bit for bit.
"""

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

SubStepHook = Callable[[Any, int], None]


class Stepper:
    """Advances one robosuite environment by control steps without rendering or updating observables.

    Args:
        env: the robosuite environment (LIBERO's ``ControlEnv.env``), freshly reset.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.model = env.sim.model._model
        self.data = env.sim.data._data
        self.robot = env.robots[0]
        self.controller = self.robot.controller
        self.substeps = int(env.control_timestep / env.model_timestep)
        self._site = env.sim.model.site_name2id(self.controller.eef_name)
        self._jacobian = np.zeros((6, self.model.nv))
        self._mass = np.zeros((self.model.nv, self.model.nv))

    def step(
        self,
        action: Float[np.ndarray, "7"],
        before_substep: SubStepHook | None = None,
        after_substep: SubStepHook | None = None,
    ) -> bool:
        """Run one control step (0.05 s).

        Args:
            action: dx dy dz droll dpitch dyaw in [-1, 1] (world axes, 0.05 m and 0.5 rad per unit; clipped by the
                controller) and the gripper (-1 opens, +1 closes).
            before_substep: called as ``hook(data, substep)`` when kinematics, contacts and velocities of the sub-step's
                start are known.
            after_substep: called as ``hook(data, substep)`` after integration; ``data.contact`` and ``data.efc_force``
                are those that acted during the sub-step.

        Returns:
            LIBERO's success predicate after the step.
        """
        action = np.asarray(action, dtype=np.float64)
        for substep in range(self.substeps):
            mujoco.mj_step1(self.model, self.data)
            self._advance_warm_start()
            if before_substep is not None:
                before_substep(self.data, substep)
            if self.controller.new_update:
                self._fill_controller()
            self.robot.control(action, policy_step=substep == 0)
            mujoco.mj_step2(self.model, self.data)
            if after_substep is not None:
                after_substep(self.data, substep)
        self.env._post_process()
        return bool(self.env._check_success())

    def _advance_warm_start(self) -> None:
        mujoco.mj_fwdActuation(self.model, self.data)
        mujoco.mj_fwdAcceleration(self.model, self.data)
        mujoco.mj_fwdConstraint(self.model, self.data)
        # Right after a reset the controller is up to date, so robosuite skips its own mj_forward once.
        if self.controller.new_update:
            mujoco.mj_fwdConstraint(self.model, self.data)

    def _fill_controller(self) -> None:
        """What ``Controller.update`` reads after its ``mj_forward``; memory layouts matter to the last bit."""
        controller, data, dofs = self.controller, self.data, self.controller.qvel_index
        jacobian_position, jacobian_rotation = self._jacobian[:3], self._jacobian[3:]
        mujoco.mj_jacSite(self.model, data, jacobian_position, jacobian_rotation, self._site)
        mujoco.mj_fullM(self.model, self._mass, data.qM)
        controller.ee_pos = np.array(data.site_xpos[self._site])
        controller.ee_ori_mat = np.array(data.site_xmat[self._site].reshape(3, 3))
        controller.ee_pos_vel = np.dot(jacobian_position, data.qvel)
        controller.ee_ori_vel = np.dot(jacobian_rotation, data.qvel)
        controller.joint_pos = np.array(data.qpos[controller.qpos_index])
        controller.joint_vel = np.array(data.qvel[dofs])
        controller.J_pos = np.array(jacobian_position[:, dofs])
        controller.J_ori = np.array(jacobian_rotation[:, dofs])
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        controller.mass_matrix = self._mass[dofs, :][:, dofs]
        controller.new_update = False
