"""How is one control step computed, bit for bit as LIBERO computes it, at a fraction of its cost?

robosuite 1.4 runs, for each of the 25 physics sub-steps of a control step, ``mj_forward`` (environment), ``mj_forward``
(controller) and ``mj_step``. The three differ only in what they do *after* the position and velocity stage, so one
``mj_step1``, two constraint solves (they advance the solver's warm start) and one ``mj_step2`` give the same bits. The
controller computes robosuite's torques from the running step (``controller.py``).
"""

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

from mist_interp.libero.controller import ArmController

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
        self.controller = ArmController(env)
        self.substeps = int(env.control_timestep / env.model_timestep)

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
            self.controller.control(action, first=substep == 0)
            mujoco.mj_step2(self.model, self.data)
            if after_substep is not None:
                after_substep(self.data, substep)
        self.env._post_process()
        return bool(self.env._check_success())

    def _advance_warm_start(self) -> None:
        mujoco.mj_fwdActuation(self.model, self.data)
        mujoco.mj_fwdAcceleration(self.model, self.data)
        mujoco.mj_fwdConstraint(self.model, self.data)
        if not self.controller.up_to_date:  # robosuite's controller runs an mj_forward of its own
            mujoco.mj_fwdConstraint(self.model, self.data)
