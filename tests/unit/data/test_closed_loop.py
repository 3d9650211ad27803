"""The closed loop: who is asked when, what is executed, what is recorded."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist_interp.data.records import Decision, ReleaseRecord, Unit
from mist_interp.data.rollout import object_poses, rollout

UNIT = Unit("libero_spatial", 3, 12)


@dataclass
class CountingWorld:
    """Succeeds once `succeed_at` control steps were made; its state is the sum of its actions."""

    succeed_at: int = 10**9
    state: np.ndarray = field(default_factory=lambda: np.zeros(7))
    looks: list[int] = field(default_factory=list)
    sent: list[np.ndarray] = field(default_factory=list)
    events: tuple[Any, ...] = ()
    touches: tuple[Any, ...] = ()
    releases: tuple[Any, ...] = ()

    def reset(self, init_state: int) -> None:
        self.state = np.full(7, float(init_state))
        self.sent, self.looks = [], []

    def observe(self) -> dict[str, np.ndarray]:
        self.looks.append(len(self.sent))
        return {
            "robot0_eef_pos": self.state[:3].copy(),
            "robot0_eef_quat": np.array([0.0, 0, 0, 1]),
            "robot0_gripper_qpos": np.array([0.04, -0.04]),
            "bowl_pos": np.ones(3),
            "bowl_quat": np.array([0.0, 0, 0, 1]),
            "bowl_to_robot0_eef_pos": np.zeros(3),
            "bowl_to_robot0_eef_quat": np.zeros(4),
        }

    def step(self, action: np.ndarray) -> SimpleNamespace:
        self.sent.append(np.array(action))
        self.state = self.state + action
        return SimpleNamespace(success=len(self.sent) >= self.succeed_at)

    def hand_motion(self) -> np.ndarray:
        return np.append(self.state, np.zeros(6))

    def state_hash(self) -> str:
        return str(self.state.tobytes())


def constant(value: float, chunk: int = 8) -> Any:
    return lambda observation, query: Decision(np.full((chunk, 7), value), chunk=np.full((chunk, 7), value))


@given(
    max_steps=st.integers(1, 60),
    chunk=st.integers(1, 10),
    open_loop=st.none() | st.integers(1, 12),
    succeed_at=st.integers(1, 80),
)
def test_every_step_is_executed_once_and_counted(
    max_steps: int, chunk: int, open_loop: int | None, succeed_at: int
) -> None:
    world = CountingWorld(succeed_at)
    record = rollout(
        world, constant(0.5, chunk), unit=UNIT, instruction="go", max_steps=max_steps, open_loop_steps=open_loop
    )
    stride = min(chunk, open_loop or chunk)
    assert record.steps == len(world.sent) == min(max_steps, succeed_at)
    assert record.success == (succeed_at <= max_steps)
    assert [query.step for query in record.queries] == world.looks == list(range(0, record.steps, stride))
    assert sum(len(query.executed) for query in record.queries) == record.steps
    assert [query.index for query in record.queries] == list(range(len(record.queries)))


def test_actions_are_sent_as_they_are_and_recorded_as_the_controller_clips_them() -> None:
    world = CountingWorld()
    record = rollout(world, constant(1.7), unit=UNIT, instruction="go", max_steps=4)
    assert np.all(world.sent[0] == 1.7)
    assert np.all(record.queries[0].executed == 1.0) and np.all(record.queries[0].chunk == 1.7)


def test_the_record_shows_the_world_at_the_query_and_not_after_it() -> None:
    record = rollout(CountingWorld(), constant(1.0), unit=UNIT, instruction="go", max_steps=16)
    assert record.queries[0].robot_state[0] == UNIT.init_state
    assert record.queries[1].robot_state[0] == UNIT.init_state + 8
    assert record.queries[0].state_hash != record.queries[1].state_hash


def test_the_path_of_the_hand_has_the_moment_before_every_executed_action() -> None:
    record = rollout(CountingWorld(succeed_at=11), constant(1.0), unit=UNIT, instruction="go", max_steps=16)
    paths = [query.hand for query in record.queries]
    assert [path.shape for path in paths if path is not None] == [(8, 13), (3, 13)]
    np.testing.assert_array_equal(np.concatenate([p[:, 0] for p in paths if p is not None]), 12 + np.arange(11))


def test_equal_worlds_and_policies_give_equal_hashes() -> None:
    a, b = (rollout(CountingWorld(), constant(0.1), unit=UNIT, instruction="go", max_steps=20) for _ in range(2))
    assert [query.state_hash for query in a.queries] == [query.state_hash for query in b.queries]


def test_an_episode_goes_on_from_a_fork_as_it_would_have_gone_on() -> None:
    """Disturbed, cut inside its second chunk's end, numbered on: only the beginning is missing."""
    unit, forks = replace(UNIT, perturbation="noise0.5"), []
    settings: dict[str, Any] = {"unit": unit, "instruction": "go", "max_steps": 30}

    def forking(observation: Any, query: int) -> Decision:
        if query == 2:
            forks.append(deepcopy(world))
        return constant(0.1)(observation, query)

    world = CountingWorld(27)
    whole = rollout(world, forking, **settings)
    steps: list[int] = []
    part = rollout(forks[0], constant(0.1), after=(2, 16), on_step=lambda step, outcome: steps.append(step), **settings)
    assert steps == list(range(17, 28)) and part.success and part.steps == whole.steps == 27
    assert [query.index for query in part.queries] == [2, 3]
    for mine, other in zip(part.queries, whole.queries[2:], strict=True):
        assert (mine.state_hash, mine.step) == (other.state_hash, other.step)
        np.testing.assert_array_equal(mine.executed, other.executed)
    with pytest.raises(ValueError, match="none is left"):
        rollout(forks[0], constant(0.1), after=(3, 30), **settings)


def test_only_whole_poses_of_objects_are_kept() -> None:
    assert list(object_poses(CountingWorld().observe())) == ["bowl"]


def test_on_step_sees_the_reset_and_every_step_in_order() -> None:
    seen: list[int] = []
    rollout(
        CountingWorld(succeed_at=11),
        constant(0.0),
        unit=UNIT,
        instruction="go",
        max_steps=30,
        on_step=lambda step, outcome: seen.append(step),
    )
    assert seen == list(range(12))


@pytest.mark.parametrize("actions", [np.zeros(7), np.zeros((8, 6)), np.zeros((0, 7)), np.full((8, 7), np.nan)])
def test_a_bad_chunk_is_an_error_that_names_the_query(actions: np.ndarray) -> None:
    with pytest.raises(ValueError, match="query 0"):
        rollout(CountingWorld(), lambda o, q: Decision(actions), unit=UNIT, instruction="go", max_steps=8)


def test_a_crash_is_not_a_failure() -> None:
    def crash(observation: Any, query: int) -> Decision:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        rollout(CountingWorld(), crash, unit=UNIT, instruction="go", max_steps=8)


def test_contacts_become_plain_records() -> None:
    event = SimpleNamespace(
        start_step=4,
        end_step=6,
        body_robot="hand",
        body_other="table",
        kind="hand-table",
        peak_force=np.float64(12.5),
        impulse=0.3,
        point=np.array([0.1, 0.2, 0.9]),
        normal=np.array([0.0, 0.0, 1.0]),
        start_force=np.float64(3.5),
        eef=np.array([0.0, 0.0, 1.0]),
        gain=np.arange(6.0),
        finger_speed=None,
    )
    release = SimpleNamespace(
        step=5, body="bowl", lifted=True, landed_step=7, landed_on="table", at_goal=False, more="not recorded"
    )
    touch = SimpleNamespace(**{**vars(event), "kind": "finger-interest", "eef": None, "gain": None})
    world = CountingWorld(events=(event,), touches=(touch, touch), releases=(release,))
    record = rollout(world, constant(0), unit=UNIT, instruction="go", max_steps=8)
    assert record.contacts[0].normal == (0.0, 0.0, 1.0)
    assert record.contacts[0].gain == (0, 1, 2, 3, 4, 5) and record.contacts[0].finger_speed is None
    expected = replace(record.contacts[0], kind="finger-interest", eef=None, gain=None)
    assert len(record.contacts) == 1 and record.touches == (expected, expected)
    assert record.releases == (ReleaseRecord(5, "bowl", True, 7, "table", False),)
    assert record.collided() and record.collided(10.0) and not record.collided(20.0)
