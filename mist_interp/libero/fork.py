"""What must be saved so that two futures of one moment can be compared?

The integration state of MuJoCo (with the solver's warm start), the controller's goal and state, the gripper's running
command, the observation clock and its last sample, where the fixtures stand, which sites are shown, and the contact
record. Action queues belong to whoever drives the episode.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from mist_interp.libero.observation import Sample, SamplingClock

if TYPE_CHECKING:
    from mist_interp.libero.env import LiberoEnv

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


@dataclass(frozen=True)
class Fork:
    """A saved moment of one task; immutable, restore it as often as you like."""

    task: str
    init_state: int | None
    control_steps: int
    physics: np.ndarray
    controller: dict[str, Any]
    gripper: np.ndarray
    fixtures: tuple[np.ndarray, np.ndarray]
    site_alpha: np.ndarray
    clock: SamplingClock
    sample: Sample
    monitor: Any

    @classmethod
    def take(cls, env: LiberoEnv) -> Fork:
        """Save the present moment of ``env``."""
        physics = np.empty(mujoco.mj_stateSize(env.model, _STATE))
        mujoco.mj_getState(env.model, env.data, physics, _STATE)
        robot = env._libero.env.robots[0]
        return cls(
            task=_name(env),
            init_state=env.init_state,
            control_steps=env.control_steps,
            physics=physics,
            controller=_controller_state(robot.controller),
            gripper=np.array(robot.gripper.current_action),
            fixtures=(env.model.body_pos.copy(), env.model.body_quat.copy()),
            site_alpha=env.model.site_rgba[:, 3].copy(),
            clock=env._clock,
            sample=env._sample,
            monitor=env._monitor.state(),
        )

    def check(self, env: LiberoEnv) -> None:
        """Refuse an environment of another task.

        Raises:
            ValueError: ``env`` runs another task.
        """
        if self.task != _name(env):
            raise ValueError(f"this fork is of task {self.task!r}, the environment runs {_name(env)!r}")

    def put_back(self, env: LiberoEnv) -> None:
        """Restore this moment in ``env``, an environment of the same task in which an episode has been started."""
        env.model.body_pos[:], env.model.body_quat[:] = self.fixtures
        env.model.site_rgba[:, 3] = self.site_alpha
        mujoco.mj_setState(env.model, env.data, self.physics, _STATE)
        mujoco.mj_forward(env.model, env.data)
        # mj_forward has advanced the solver's warm start; the next step must start from the saved one.
        mujoco.mj_setState(env.model, env.data, self.physics, _STATE)
        robot = env._libero.env.robots[0]
        for name, value in self.controller.items():
            setattr(robot.controller, name, copy.copy(value))
        robot.gripper.current_action = self.gripper.copy()
        env.init_state, env.control_steps = self.init_state, self.control_steps
        env._clock, env._sample = self.clock, self.sample
        env._monitor.set_state(self.monitor)

    def arrays(self) -> Iterator[np.ndarray]:
        """The arrays that determine the physical future, in a fixed order."""
        yield self.physics
        yield self.gripper
        for name in sorted(self.controller):
            if isinstance(self.controller[name], np.ndarray):
                yield self.controller[name]


def _name(env: LiberoEnv) -> str:
    return f"{env.task.suite}/{env.task.name}"


def _controller_state(controller: Any) -> dict[str, Any]:
    """Everything numeric that the controller carries from one step to the next."""
    return {
        name: copy.copy(value)
        for name, value in vars(controller).items()
        if isinstance(value, (np.ndarray, bool, float, int)) or value is None
    }
