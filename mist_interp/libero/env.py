"""How does a policy act in a LIBERO task?

:class:`LiberoEnv` runs one task: reset to an initial state as the OpenVLA-OFT protocol does, look, step, fork.
Physics and observations are LIBERO's, bit for bit; pictures are drawn only when :meth:`LiberoEnv.observe` is called.
"""

import hashlib
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from mist_interp.core.errors import UnknownName
from mist_interp.libero.packages import load_simulator, silenced
from mist_interp.libero.suite import DRAWN_FROM, DRAWS, SETTLING_STEPS, THROWN, Task

load_simulator()

import mujoco  # noqa: E402

from mist_interp.libero.bodies import BodyClass, BodyClasses  # noqa: E402
from mist_interp.libero.contacts import ContactEvent, ContactMonitor, ContactSample  # noqa: E402
from mist_interp.libero.fork import Fork  # noqa: E402
from mist_interp.libero.hand import Hand  # noqa: E402
from mist_interp.libero.observation import Sample, SamplingClock  # noqa: E402
from mist_interp.libero.placement import FixturePlacement  # noqa: E402
from mist_interp.libero.releases import Release  # noqa: E402
from mist_interp.libero.render import Renderer, find_profile, unblended  # noqa: E402
from mist_interp.libero.stepping import Stepper  # noqa: E402

CAMERAS = ("agentview", "robot0_eye_in_hand")
SETTLING_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


@dataclass(frozen=True)
class Step:
    """What one control step led to.

    Attributes:
        success: LIBERO's success predicate.
        contacts: the forbidden contacts of this step that reach 1 N.
    """

    success: bool
    contacts: tuple[ContactSample, ...] = ()


class LiberoEnv:
    """One LIBERO task in the simulator.

    Args:
        task: which task.
        profile: ``"fast"`` or ``"faithful"`` rendering.
        resolution: side of the square camera images in pixels (256 in the OpenVLA-OFT protocol).
        seed: seed of LIBERO's placement of fixtures (0 in the protocol).

    Raises:
        UnknownName: unknown render profile.
    """

    def __init__(self, task: Task, profile: str = "fast", resolution: int = 256, seed: int = 0) -> None:
        self.task = task
        self.resolution = resolution
        self.profile = find_profile(profile)
        self._libero = _build(task)
        self._placement = FixturePlacement(self._libero, seed)
        env = self._libero.env
        self.model = env.sim.model._model
        self.data = env.sim.data._data
        self._classes = BodyClasses.from_env(env)
        self._renderer: Renderer | None = None
        self._id_renderer: Renderer | None = None
        self._eef_body = self._id("body", env.robots[0].robot_model.eef_name)
        self._eef_site = env.robots[0].eef_site_id
        self._hand = Hand.of_env(env, self.model)
        self._fingers = list(env.robots[0]._ref_gripper_joint_pos_indexes)
        self._objects = {thing.name: env.obj_body_id[thing.name] for thing in env.objects}
        self._kinematics = mujoco.MjData(self.model)
        self._stepper: Stepper | None = None
        self.control_steps = 0
        self.init_state: int | None = None

    # Acting ------------------------------------------------------------------------------------------------------

    def reset(self, init_state: int) -> None:
        """Start from an initial state of the task, let the scene settle for 10 steps with open gripper.

        Args:
            init_state: number of one of LIBERO's own, or from 1000 on the seed of one that is drawn likewise.

        Raises:
            ValueError: there is no such initial state; says which there are.
            RuntimeError: no draw of this scene keeps its objects where they are put.
        """
        self.task.check_init_state(init_state)
        if init_state < DRAWN_FROM:
            self._placement.apply(init_state)
            self._libero.env.sim.set_state_from_flattened(self.task.init_states[init_state])
            self._settle(init_state)
            return
        for _ in islice(self._placement.draws(init_state), DRAWS):
            placed = self._object_places()
            self._settle(init_state)
            if np.abs(self._object_places() - placed)[:, :2].max() < THROWN:
                return
        raise RuntimeError(f"start state {init_state} of {self.task.name!r}: in none of {DRAWS} draws all objects stay")

    def _object_places(self) -> Float[np.ndarray, "object 3"]:
        return self.data.xpos[list(self._objects.values())].copy()

    def _settle(self, init_state: int) -> None:
        with silenced():
            self._libero.env.sim.forward()
            self._libero.env._check_success()
            self._libero.env._post_process()
        self._stepper = Stepper(self._libero.env)
        # robosuite forces one sample when it resets and LIBERO another one when it sets the state.
        period = 1.0 / self._libero.env.control_freq
        self._clock = SamplingClock(period, self._libero.env.model_timestep).forced().forced()
        self._sample = self._sample_of(self.data.qpos.copy())
        self._monitor = ContactMonitor(self.model, self._classes, hand=self._hand)
        self.init_state = init_state
        self.control_steps = -SETTLING_STEPS
        for _ in range(SETTLING_STEPS):
            self.step(SETTLING_ACTION)
        self._monitor.begin(self.data)

    def step(self, action: Float[np.ndarray, "7"]) -> Step:
        """Run one control step (0.05 s of physics); nothing is rendered.

        Args:
            action: dx dy dz droll dpitch dyaw in [-1, 1] along world axes, gripper -1 (open) or +1 (close).

        Raises:
            ValueError: not seven finite numbers.
            RuntimeError: no episode has been started.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"an action is 7 finite numbers (dx dy dz droll dpitch dyaw gripper), got {action!r}")
        stepper = self._started()
        self._clock, self._taken = self._clock.run(stepper.substeps)
        success = stepper.step(action, self._before_substep, self._after_substep)
        self.control_steps += 1
        return Step(success, tuple(self._monitor.end_control_step()) if self.control_steps > 0 else ())

    def _before_substep(self, data: Any, substep: int) -> None:
        if substep in self._taken:
            self._sampled_qpos = data.qpos.copy()

    def _after_substep(self, data: Any, substep: int) -> None:
        if substep in self._taken:
            self._sample = self._sample_of(self._sampled_qpos)
        if self.control_steps >= 0:
            self._monitor.sample(data, substep)

    # Looking -----------------------------------------------------------------------------------------------------

    def observe(self) -> dict[str, np.ndarray]:
        """LIBERO's observation dictionary of this moment, images included (drawn now).

        Returns:
            ``agentview_image`` and ``robot0_eye_in_hand_image``: (resolution, resolution, 3) uint8, first row at the
            bottom, as LIBERO stores them; ``robot0_eef_pos`` (3,) m, ``robot0_eef_quat`` (4,) xyzw,
            ``robot0_gripper_qpos`` (2,) m; ``<object>_pos`` (3,) m and ``<object>_quat`` (4,) xyzw of every movable
            object. All in world axes.
        """
        observation = self.proprioception()
        for camera in CAMERAS:
            observation[f"{camera}_image"] = self._draw(camera, self.resolution)
        return observation

    def proprioception(self) -> dict[str, np.ndarray]:
        """The observation without images: robot state and object poses."""
        self._started()
        kinematics = self._kinematics
        kinematics.qpos[:] = self._sample.qpos
        mujoco.mj_kinematics(self.model, kinematics)
        observation = {
            "robot0_eef_pos": kinematics.site_xpos[self._eef_site].copy(),
            "robot0_eef_quat": _xyzw(kinematics.xquat[self._eef_body]),
            "robot0_gripper_qpos": self._sample.gripper_qpos.copy(),
        }
        for name, body in self._objects.items():
            observation[f"{name}_pos"] = kinematics.xpos[body].copy()
            observation[f"{name}_quat"] = _xyzw(kinematics.xquat[body])
        return observation

    def frame(self, camera: str = "agentview", resolution: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """One camera image the right way up for people (the policy's 180 degree turn undone), for videos."""
        return self._draw(camera, resolution or self.resolution)[::-1]

    def segmentation(self, camera: str, resolution: int | None = None) -> Int[np.ndarray, "h w"]:
        """What each pixel of the observation's image shows: an index into :attr:`bodies`, or -1 for nothing.

        Rows and columns are those of ``observe()[f"{camera}_image"]``. Reflections are not drawn.
        """
        self._started()
        if self._id_renderer is None:
            self._id_renderer = Renderer(self.model, unblended(self.profile))
        size = resolution or self.resolution
        geoms = self._id_renderer.geoms(self._sample.qpos, camera, size, size)
        return np.where(geoms >= 0, self._classes.group_of_geom[geoms], -1)

    @property
    def bodies(self) -> tuple[str, ...]:
        """Names of the groups of bodies of the scene, root bodies' names: robot links, fingers, objects, fixtures."""
        return tuple(group.name for group in self._classes.groups)

    @property
    def bystanders(self) -> tuple[str, ...]:
        """Names of the movable objects, as in the observation, that are neither of interest nor in the goal."""
        groups = self._classes.groups
        kind = {name: groups[self._classes.group_of_body[body]].body_class for name, body in self._objects.items()}
        return tuple(name for name, it in kind.items() if it is BodyClass.DISTRACTOR)

    @property
    def events(self) -> tuple[ContactEvent, ...]:
        """Forbidden contact events (>= 1 N) since the end of settling."""
        return tuple(self._monitor.events())

    def contact_events(self, threshold: float = 1.0) -> tuple[ContactEvent, ...]:
        """Forbidden contact events of at least ``threshold`` newton since the end of settling."""
        return tuple(self._monitor.events(threshold))

    @property
    def touches(self) -> tuple[ContactEvent, ...]:
        """Allowed contact events (>= 1 N) of the robot and of what it holds, since the end of settling."""
        return tuple(self._monitor.touches())

    @property
    def releases(self) -> tuple[Release, ...]:
        """Objects that the robot held and let go since the end of settling."""
        return self._monitor.releases

    @property
    def monitor(self) -> ContactMonitor:
        """The contact monitor of the running episode."""
        return self._monitor

    # The simulator's state, for experts and labels ----------------------------------------------------------------

    def body_of(self, name: str) -> int:
        """MuJoCo body id of a movable object or fixture.

        Raises:
            UnknownName: the task has no such object.
        """
        bodies = self._libero.env.obj_body_id
        if name not in bodies:
            raise UnknownName("object", name, bodies)
        return bodies[name]

    def robot_pose(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Position (m) and rotation matrix of the end effector, world axes, as the physics has it now."""
        return self.data.site_xpos[self._eef_site].copy(), self.data.site_xmat[self._eef_site].reshape(3, 3).copy()

    def hand_motion(self) -> Float[np.ndarray, "13"]:
        """Position (m), quaternion (xyzw), velocity (m/s), angular velocity (rad/s) of the end effector, world axes."""
        self._started()
        return self._hand.motion(self.data)

    def finger_gap(self) -> float:
        """Distance between the fingers in m (0.08 = open)."""
        left, right = self.data.qpos[self._fingers]
        return float(left - right)

    # Forking -----------------------------------------------------------------------------------------------------

    def save(self) -> Fork:
        """Everything that the future depends on; :meth:`restore` continues from it bit for bit."""
        self._started()
        return Fork.take(self)

    def restore(self, fork: Fork) -> None:
        """Go back to a saved moment of this task; the fork may come from another environment of the same task.

        Raises:
            ValueError: the fork is of another task.
        """
        fork.check(self)
        if self._stepper is None:
            self.reset(0)
        fork.put_back(self)

    def state_hash(self) -> str:
        """Short hash of the physical state (positions, velocities, warm start, controller goal, gripper)."""
        digest = hashlib.blake2b(digest_size=12)
        for array in self.save().arrays():
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def close(self) -> None:
        """Free the renderer and the simulator."""
        for renderer in (self._renderer, self._id_renderer):
            if renderer is not None:
                renderer.close()
        self._renderer = self._id_renderer = None
        if self._libero is not None:
            self._libero.close()
            self._libero = self._stepper = None

    # Inside ------------------------------------------------------------------------------------------------------

    def _started(self) -> Stepper:
        if self._stepper is None:
            raise RuntimeError(f"no episode of {self.task.name!r} is running: call reset(init_state) first")
        return self._stepper

    def _draw(self, camera: str, resolution: int) -> UInt8[np.ndarray, "h w 3"]:
        self._started()
        if self._renderer is None:
            self._renderer = Renderer(self.model, self.profile)
        opacity = self.model.site_rgba[:, 3]
        now = opacity.copy()
        opacity[:] = self._sample.site_alpha
        try:
            return self._renderer.draw(self._sample.qpos, camera, resolution, resolution)
        finally:
            opacity[:] = now

    def _sample_of(self, qpos: np.ndarray) -> Sample:
        return Sample(qpos, self.data.qpos[self._fingers], self.model.site_rgba[:, 3].copy())

    def _id(self, kind: str, name: str) -> int:
        return getattr(self.model, kind)(name).id


def _build(task: Task) -> Any:
    from libero.libero.envs.env_wrapper import ControlEnv

    with silenced():
        return ControlEnv(bddl_file_name=str(task.bddl), has_offscreen_renderer=False, use_camera_obs=False)


def _xyzw(wxyz: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
    return wxyz[[1, 2, 3, 0]]
