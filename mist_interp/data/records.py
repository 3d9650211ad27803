"""What is one unit of work, one policy query, one episode?

A *unit* says what is to be run, independent of what is done to the policy: all arms of a comparison run the same
units. A *query* is one look of the policy at the world: it returns a chunk of actions of which several are executed
open loop, so every per-query quantity exists once per chunk and never eight times. An *episode* is the queries of
one unit in order, with its outcome.

Records hold numpy arrays on the CPU and plain values; nothing in them refers to a live simulator or model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, order=True)
class Unit:
    """One thing to run: a start state of a task under a perturbation and seeds.

    Attributes:
        suite: e.g. `libero_spatial`.
        task: index of the task in its suite, from 0.
        init_state: index of the start state of that task, from 0.
        perturbation: name of the perturbation, `none` for LIBERO as published.
        simulator_seed: seed of whatever the simulator draws.
        policy_seed: seed of whatever the policy draws (nothing, for an L1 head).
    """

    suite: str
    task: int
    init_state: int
    perturbation: str = "none"
    simulator_seed: int = 0
    policy_seed: int = 0

    @property
    def key(self) -> str:
        """Unique, stable and fit for a file name: `libero_spatial-t03-i012-none-s0-p0`."""
        return (
            f"{self.suite}-t{self.task:02d}-i{self.init_state:03d}-{self.perturbation}"
            f"-s{self.simulator_seed}-p{self.policy_seed}"
        )


@dataclass(frozen=True)
class Decision:
    """Answer of an `act` function to one observation.

    Attributes:
        actions: (chunk, 7) what to execute, in order, in the environment's convention: six pose deltas in controller
            units, sent as they are (the controller clips them to +-1), then the gripper, -1 open and +1 close.
        chunk: (chunk, 7) the policy's own un-normalised output before gripper post-processing; None when no policy
            was asked.
        activations: column name -> (width,) vector to be kept with the query.
        scores: name -> value of every detector that looked at this query.
        edits: the edits that were live during the forward pass, one JSON text each, with the norm of what it changed
            (`mist_interp.tracing.changes.Change.to_dict`), or a name; empty means that none was.
    """

    actions: Float[Array, "chunk 7"]
    chunk: Float[Array, "chunk 7"] | None = None
    activations: Mapping[str, Array] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    edits: tuple[str, ...] = ()


@dataclass(frozen=True)
class QueryRecord:
    """One policy query and what was executed of it.

    Attributes:
        index: number of the query in its episode, from 0.
        step: control step at which it was made, from 0; settling steps are not counted.
        chunk: (chunk, 7) the policy's un-normalised output before gripper post-processing, NaN where no policy was
            asked.
        executed: (n, 7) actions that were executed, clipped to +-1 as the controller does; n is smaller than the
            chunk when the episode ended inside it.
        robot_state: (9,) at the query: end-effector position (m, world), its quaternion (xyzw), the two finger
            positions (m).
        objects: name -> (7,) position (m, world) and quaternion (xyzw) of every object that the observation lists.
        activations: column name -> (width,) vector.
        scores: detector name -> value.
        edits: the edits that were live during this forward pass.
        hand: (n, 13) the end effector at the start of each executed action: position (m, world), quaternion (xyzw),
            velocity (m/s), angular velocity (rad/s), as the physics has them; None where that was not recorded.
        state_hash: hash of the simulator state at the query; equal hashes mean equal states, bit for bit.
        seconds_observe: wall time of rendering and reading the observation.
        seconds_act: wall time from observation to actions.
    """

    index: int
    step: int
    chunk: Float[Array, "chunk 7"]
    executed: Float[Array, "n 7"]
    robot_state: Float[Array, "9"]
    objects: Mapping[str, Float[Array, "7"]] = field(default_factory=dict)
    activations: Mapping[str, Array] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    edits: tuple[str, ...] = ()
    hand: Float[Array, "n 13"] | None = None
    state_hash: str = ""
    seconds_observe: float = 0.0
    seconds_act: float = 0.0


@dataclass(frozen=True)
class ContactRecord:
    """One contact event, forbidden or allowed, as plain values (mirrors the simulator's contact event).

    Attributes:
        start_step: control step in which the contact began, from 0.
        end_step: control step in which it was last seen.
        body_robot: part of the robot, or of what it holds.
        body_other: what it touched.
        kind: class of the pair, e.g. `hand-table`, `finger-interest`.
        peak_force: largest normal force (N).
        impulse: integral of the normal force (N s).
        point: (3,) contact point at the beginning (m, world).
        normal: (3,) unit normal at the beginning, from the obstacle to the robot.
        start_force: largest normal force in the control step in which the contact began (N).
        eef: (3,) where the end effector was at the beginning (m, world); None where that was not recorded.
        gain: (6,) by how much (m) one unit of each pose dimension closes the gap, see `mist_interp.core.closing`; None
            where that was not recorded.
        finger_speed: at which the finger's own joint closed the gap just before the contact (m/s); None for what is
            not a finger.
    """

    start_step: int
    end_step: int
    body_robot: str
    body_other: str
    kind: str
    peak_force: float
    impulse: float
    point: tuple[float, float, float]
    normal: tuple[float, float, float]
    start_force: float | None = None
    eef: tuple[float, float, float] | None = None
    gain: tuple[float, ...] | None = None
    finger_speed: float | None = None


@dataclass(frozen=True)
class ReleaseRecord:
    """One object that the robot held and let go (mirrors the simulator's release).

    Attributes:
        step: control step in which it was last held, from 0.
        body: root body of the object.
        lifted: whether it had been lifted off what it stood on when it was grasped.
        landed_step: control step in which it touched the scene; None if it did not before the episode's end.
        landed_on: what it touched.
        at_goal: whether that is where the goal wants it; None if the goal does not name it, or it did not land.
    """

    step: int
    body: str
    lifted: bool
    landed_step: int | None = None
    landed_on: str | None = None
    at_goal: bool | None = None


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished episode.

    Attributes:
        unit: what was run.
        instruction: the sentence that the policy was given.
        success: the task's own success test held before the step limit.
        steps: control steps executed, settling steps excluded.
        max_steps: the step limit of the run.
        queries: in order.
        contacts: forbidden contact events, in order of their start.
        releases: what was held and let go, in order.
        touches: all other contact events of the robot and of what it held (fingers on what they grasp, a held object
            at its goal or on what it rested on), in order of their start; None where they were not recorded. They
            have no `eef`, `gain` and `finger_speed`.
        arm: what was done to the policy; `none` when nothing was.
        seconds: wall time of the whole episode.
        provenance: versions, model, render profile: everything needed to say which software made this.
    """

    unit: Unit
    instruction: str
    success: bool
    steps: int
    max_steps: int
    queries: tuple[QueryRecord, ...]
    contacts: tuple[ContactRecord, ...] = ()
    releases: tuple[ReleaseRecord, ...] = ()
    touches: tuple[ContactRecord, ...] | None = None
    arm: str = "none"
    seconds: float = 0.0
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The unit's key and the arm."""
        return episode_key(self.unit, self.arm)

    def collided(self, force: float = 1.0) -> bool:
        """Whether a forbidden contact of at least `force` (N) happened."""
        return any(contact.peak_force >= force for contact in self.contacts)


def episode_key(unit: Unit, arm: str = "none") -> str:
    """Key of the episode of a unit under an arm."""
    return f"{unit.key}-{arm}"
