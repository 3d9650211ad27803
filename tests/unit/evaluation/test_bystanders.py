"""An object counts as disturbed by what the robot did to it, not by what it does by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mist_interp.data.records import Unit
from mist_interp.evaluation.bystanders import HOLD, Motion, disturbed, motions
from mist_interp.evaluation.metrics import estimate as estimated
from mist_interp.evaluation.metrics import metric
from mist_interp.evaluation.summary import summarize
from mist_interp.report.tables import main_table
from tests.unit.evaluation.tables import episode, table

UNIT = Unit("s", 0, 3)


class Room:
    """A cup and a plate; by itself the cup slides by `slide` and turns by `spin` degrees per control step."""

    bystanders = ("cup",)

    def __init__(self, slide: float = 0.0, spin: float = 0.0) -> None:
        self.slide, self.spin = slide, spin
        self.place(0.0, 0.0)
        self.sent: list[Any] = []

    def place(self, moved: float, turned: float) -> None:
        self.moved, self.turned = moved, turned

    def reset(self, init_state: int) -> None:
        assert init_state == UNIT.init_state
        self.place(0.0, 0.0)

    def step(self, action: Any) -> None:
        self.sent.append(action)
        self.place(self.moved + self.slide, self.turned + self.spin)

    def proprioception(self) -> dict[str, Any]:
        quat = Rotation.from_euler("z", self.turned, degrees=True).as_quat()
        cup = {"cup_pos": np.array([0.1 + self.moved, 0, 0.9]), "cup_quat": quat}
        return cup | {"plate_pos": np.array([self.moved, 0.5, 0.9]), "plate_quat": quat}


START = {"cup": [0.1, 0, 0.9, 0, 0, 0, 1], "plate": [0, 0.5, 0.9, 0, 0, 0, 1]}


def after(room: Room, moved: float, turned: float, steps: int = 10) -> str | None:
    room.place(moved, turned)
    return disturbed(room, UNIT, motions(room, START), steps)


@pytest.mark.parametrize(
    ("moved", "turned", "expected"),
    [(0.0, 0.0, ""), (0.0099, 9.9, ""), (0.0101, 0.0, "cup"), (0.0, 10.1, "cup"), (0.0, -10.1, "cup")],
)
def test_a_centimetre_or_ten_degrees_is_a_disturbance(moved: float, turned: float, expected: str) -> None:
    assert after(Room(), moved, turned) == expected


def test_what_the_object_does_by_itself_is_taken_away() -> None:
    assert after(Room(slide=0.001), 0.015, 0.0, steps=10) == ""
    assert after(Room(slide=0.001), 0.021, 0.0, steps=10) == "cup"
    assert after(Room(spin=1.0), 0.0, 15.0, steps=10) == ""


def test_the_robot_that_holds_still_is_run_only_where_something_moved_and_as_long_as_the_episode() -> None:
    still, moved = Room(), Room()
    after(still, 0.001, 0.0)
    after(moved, 0.1, 0.0, steps=7)
    assert still.sent == [] and len(moved.sent) == 7 and np.array_equal(moved.sent[0], HOLD)


def test_objects_of_the_task_and_unknown_worlds_do_not_count() -> None:
    room = Room()
    room.place(0.0, 0.0)
    assert set(motions(room, START) or {}) == {"cup"}
    assert motions(object(), START) is None and disturbed(object(), UNIT, None, 5) is None


def test_a_motion_is_a_distance_and_an_angle() -> None:
    quat = Rotation.from_euler("x", 30, degrees=True).as_quat()
    motion = Motion.between(np.array([0, 0, 0, 0, 0, 0, 1.0]), np.array([0.03, 0, 0.04, *quat]))
    assert motion.moved == pytest.approx(0.05) and motion.turned == pytest.approx(30)


def test_the_rate_counts_units_whose_objects_are_known() -> None:
    rows = table(*(episode("none", 0, k, disturbed=text) for k, text in enumerate(["cup", "", "cup, box", None])))
    rate = estimated(rows, metric("disturbance_rate"))
    assert (rate.value, rate.n) == (pytest.approx(2 / 3), 3)
    assert "disturbance" in main_table(summarize(rows, ["none"], draws=10))
    assert "disturbance" not in main_table(summarize(table(episode("none", 0, 0)), ["none"], draws=10))
