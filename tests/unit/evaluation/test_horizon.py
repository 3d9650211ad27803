"""Equal exposure: the pose is held to the limit, under the unit's own disturbance, and what happens there counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mist_interp.data.perturbation import Disturbance
from mist_interp.data.records import ContactRecord, EpisodeRecord, QueryRecord, Unit
from mist_interp.evaluation.horizon import contact_columns, hold_to_the_limit
from tests.unit.evaluation.fakes import FakeEvent


class Recorder:
    """Touches something at the third step that it is held."""

    def __init__(self) -> None:
        self.sent: list[np.ndarray] = []
        self.events: list[Any] = []

    def step(self, action: np.ndarray) -> None:
        self.sent.append(np.array(action))
        if len(self.sent) == 3:
            self.events.append(FakeEvent(9, 9, "hand", "table", "hand-table", 12.0, 0.2, (0, 0, 0), (0, 0, 1)))


def ended(steps: int, perturbation: str = "none") -> EpisodeRecord:
    executed = np.zeros((steps, 7))
    executed[-1, 6] = 1.0
    query = QueryRecord(0, 0, executed, executed, np.zeros(9))
    return EpisodeRecord(Unit("s", 0, 0, perturbation), "go", True, steps, 10, (query,))


def test_the_pose_is_held_with_the_last_gripper_command() -> None:
    env = Recorder()
    contacts = hold_to_the_limit(env, ended(7))
    np.testing.assert_array_equal(env.sent, [[0, 0, 0, 0, 0, 0, 1.0]] * 3)
    assert [contact.peak_force for contact in contacts] == [12.0]


def test_the_disturbance_goes_on_where_the_episode_left_it() -> None:
    env, record = Recorder(), ended(7, "noise0.5")
    hold_to_the_limit(env, record)
    course = Disturbance.of(record.unit, 10).course
    np.testing.assert_allclose(np.stack(env.sent)[:, :6], course[7:])


def test_an_episode_that_lasted_to_the_limit_is_not_held() -> None:
    env = Recorder()
    assert hold_to_the_limit(env, ended(10)) == () and env.sent == []


@pytest.mark.parametrize(
    ("forces", "expected"),
    [
        ((), (False, False, 0, 0, 0.0)),
        ((0.9,), (False, False, 0, 0, 0.0)),
        ((1.0, 9.9), (True, False, 2, 0, 1.0)),
        ((0.5, 10.0), (True, True, 1, 1, 0.5)),
    ],
)
def test_contacts_are_counted_from_one_and_from_ten_newton(forces: tuple[float, ...], expected: tuple) -> None:
    contacts = [ContactRecord(0, 0, "hand", "table", "k", force, 0.5, (0, 0, 0), (0, 0, 1)) for force in forces]
    columns = contact_columns(contacts, "_full")
    names = ("collision_1n", "collision_10n", "events_1n", "events_10n", "impulse")
    assert tuple(columns[f"{name}_full"] for name in names) == expected
