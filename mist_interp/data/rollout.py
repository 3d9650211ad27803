"""How does a policy act in an environment for one episode?

The one closed loop of this package: look, decide, execute the chunk open loop, repeat. Data collection and
evaluation both run it and differ only in the `act` function they pass (and in what they do `on_step`), so a probe is
fitted on exactly the kind of episode that it is judged on.

    env.reset(init_state)                      10 settling steps, not counted
    while not over:
        observation = env.observe()            renders; nothing else does
        decision = act(observation, query)     -> (chunk, 7) actions in the environment's convention
        for action in decision.actions:        open loop, stops at success or at the step limit
            env.step(action)

Success, step limit and settling follow the protocol of OpenVLA-OFT's LIBERO evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from mist_interp.data.perturbation import Disturbance
from mist_interp.data.records import Array, ContactRecord, Decision, EpisodeRecord, QueryRecord, ReleaseRecord, Unit

Observation = Mapping[str, Any]
Act = Callable[[Observation, int], Decision]
OnStep = Callable[[int, Any], None]

ACTION_DIM = 7


class Environment(Protocol):
    """What the loop needs of an environment; `mist_interp.libero.LiberoEnv` has it."""

    @property
    def events(self) -> Iterable[Any]: ...

    @property
    def touches(self) -> Iterable[Any]: ...

    @property
    def releases(self) -> Iterable[Any]: ...

    def reset(self, init_state: int) -> None: ...

    def observe(self) -> Mapping[str, Any]: ...

    def step(self, action: Any) -> Any: ...

    def hand_motion(self) -> Any: ...

    def state_hash(self) -> str: ...


def rollout(
    env: Environment,
    act: Act,
    *,
    unit: Unit,
    instruction: str,
    max_steps: int,
    open_loop_steps: int | None = None,
    arm: str = "none",
    on_step: OnStep | None = None,
    provenance: Mapping[str, str] | None = None,
    after: tuple[int, int] | None = None,
) -> EpisodeRecord:
    """Run one episode from the unit's start state, or from a fork, to success or to the step limit.

    Args:
        env: an environment of the unit's task.
        act: `act(observation, query) -> Decision`; query counts from 0. `observation` is the LIBERO dictionary.
        unit: what is run: its `init_state` and its `perturbation` are used here, the rest is recorded.
        instruction: the sentence that `act` gives the policy; recorded.
        max_steps: control steps after settling; an episode that reaches it without success has failed.
        open_loop_steps: how many actions of a chunk are executed before the next look; None executes all.
        arm: name of what `act` does to the policy; recorded.
        on_step: `on_step(step, outcome)` after each control step (from 1) and once after the reset with `(0, None)`:
            videos, progress. It must not change the environment.
        provenance: recorded.
        after: (queries, control steps) that the episode in `env` has behind it: it goes on from there without a reset,
            and the record has the queries that follow, numbered on. `env` must remember its contacts, touches and
            releases.

    Returns:
        The record. Contacts, touches and releases are the environment's at the end of the episode.

    Raises:
        UnknownName: the unit has a perturbation that there is not.
        ValueError: `act` returned actions of a wrong shape or non-finite ones; the message names the query.
        Exception: whatever `env` or `act` raise; a crash is never a task failure, so nothing is swallowed here.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; an episode needs at least 1")
    if after is not None and not 0 <= after[1] < max_steps:
        raise ValueError(f"after={after}: of {max_steps} control steps none is left to run")
    if open_loop_steps is not None and open_loop_steps < 1:
        raise ValueError(
            f"open_loop_steps is {open_loop_steps}; at least 1 action must be executed before the next look"
        )
    disturbance = Disturbance.of(unit, max_steps)
    start = time.perf_counter()
    if after is None:
        env.reset(unit.init_state)
        if on_step:
            on_step(0, None)
    first, step = after or (0, 0)
    queries: list[QueryRecord] = []
    success = False
    while step < max_steps and not success:
        state_hash = env.state_hash()
        looked = time.perf_counter()
        observation = env.observe()
        seen = time.perf_counter()
        index = first + len(queries)
        decision = act(observation, index)
        decided = time.perf_counter()
        actions = _checked_actions(decision.actions, index)
        query_step = step
        executed: list[Array] = []
        hand: list[Array] = []
        for action in actions[: min(open_loop_steps or len(actions), max_steps - step)]:
            hand.append(env.hand_motion())
            driven = disturbance.added(action, step)
            outcome = env.step(driven)
            # The controller clips; the record says what really drove the arm.
            executed.append(np.clip(driven, -1.0, 1.0))
            step += 1
            success = bool(outcome.success)
            if on_step:
                on_step(step, outcome)
            if success:
                break
        queries.append(
            QueryRecord(
                index=index,
                step=query_step,
                chunk=np.full(actions.shape, np.nan)
                if decision.chunk is None
                else np.asarray(decision.chunk, dtype=float),
                executed=np.stack(executed),
                robot_state=robot_state(observation),
                objects=object_poses(observation),
                activations=decision.activations,
                scores=decision.scores,
                edits=decision.edits,
                hand=np.stack(hand),
                state_hash=state_hash,
                seconds_observe=seen - looked,
                seconds_act=decided - seen,
            )
        )
    return EpisodeRecord(
        unit=unit,
        instruction=instruction,
        success=success,
        steps=step,
        max_steps=max_steps,
        queries=tuple(queries),
        contacts=tuple(contact_record(event) for event in env.events),
        touches=tuple(contact_record(event) for event in env.touches),
        releases=tuple(release_record(release) for release in env.releases),
        arm=arm,
        seconds=time.perf_counter() - start,
        provenance=dict(provenance or {}),
    )


def robot_state(observation: Observation) -> Array:
    """(9,) end-effector position (m, world), quaternion (xyzw), two finger positions (m) of a LIBERO observation."""
    keys = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
    return np.concatenate([np.asarray(observation[key], dtype=np.float64) for key in keys])


def object_poses(observation: Observation) -> dict[str, Array]:
    """Name -> (7,) position (m, world) and quaternion (xyzw) of the objects that a LIBERO observation lists."""
    poses: dict[str, Array] = {}
    for key in observation:
        name = key.removesuffix("_pos")
        if (
            name == key
            or name.startswith("robot0")
            or name.endswith("_to_robot0_eef")
            or f"{name}_quat" not in observation
        ):
            continue
        poses[name] = np.concatenate([observation[key], observation[f"{name}_quat"]]).astype(np.float64)
    return poses


def contact_record(event: Any) -> ContactRecord:
    """Plain values of a contact event of the simulator."""
    return ContactRecord(
        start_step=int(event.start_step),
        end_step=int(event.end_step),
        body_robot=str(event.body_robot),
        body_other=str(event.body_other),
        kind=str(event.kind),
        peak_force=float(event.peak_force),
        impulse=float(event.impulse),
        point=_triple(event.point),
        normal=_triple(event.normal),
        start_force=float(event.start_force),
        eef=None if event.eef is None else _triple(event.eef),
        gain=None if event.gain is None else tuple(float(value) for value in event.gain),
        finger_speed=None if event.finger_speed is None else float(event.finger_speed),
    )


def release_record(release: Any) -> ReleaseRecord:
    """Plain values of a release of the simulator."""
    return ReleaseRecord(**{name: getattr(release, name) for name in ReleaseRecord.__dataclass_fields__})


def _triple(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _checked_actions(actions: Any, query: int) -> Array:
    array = np.asarray(actions, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != ACTION_DIM or len(array) == 0:
        raise ValueError(
            f"query {query}: act returned actions of shape {array.shape}; expected (chunk, {ACTION_DIM}), chunk >= 1"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"query {query}: act returned actions that are not finite numbers")
    return array
