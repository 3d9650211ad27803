"""Is a displaced object counted, and the drift of a still run taken off?"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco")

import mujoco
from gantry import Gantry

from mist_interp.core.errors import UnknownName
from mist_interp.libero.disturbance import Motion, Pose, object_disturbance, object_drift, object_poses

IDENTITY = np.array([1.0, 0, 0, 0])


def turn(degrees: float, axis: tuple[float, float, float] = (0, 0, 1)) -> np.ndarray:
    half = np.deg2rad(degrees) / 2
    return np.array([np.cos(half), *(np.sin(half) * np.array(axis))])


def poses(x: float = 0.0, quaternion: np.ndarray = IDENTITY) -> dict[str, Pose]:
    return {"pebble": Pose(np.array([x, 0.0, 0.0]), quaternion)}


@pytest.mark.parametrize(("x", "expected"), [(0.0, False), (0.0099, False), (0.0101, True), (-0.02, True)])
def test_moved_by_more_than_a_centimetre(x: float, expected: bool) -> None:
    (found,) = object_disturbance(poses(), poses(x))
    assert found.disturbed is expected and found.moved == pytest.approx(abs(x))


@pytest.mark.parametrize(("degrees", "expected"), [(0, False), (9.9, False), (10.1, True), (-30, True), (359, False)])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 0.6, 0.8)])
def test_turned_by_more_than_ten_degrees(degrees: float, expected: bool, axis: tuple[float, float, float]) -> None:
    start = turn(70, (0, 1, 0))
    after = np.empty(4)
    mujoco.mju_mulQuat(after, turn(degrees, axis), start)
    for quaternion in (after, -after):  # both stand for the same rotation
        (found,) = object_disturbance(poses(0, start), poses(0, quaternion))
        assert found.disturbed is expected
        assert np.rad2deg(found.turned) == pytest.approx(min(abs(degrees), 360 - abs(degrees)), abs=1e-6)


def test_drift_is_taken_off_as_a_motion() -> None:
    drift = object_drift(poses(), poses(0.009, turn(8)))
    (same,) = object_disturbance(poses(), poses(0.009, turn(8)), drift)
    assert same.moved == pytest.approx(0) and same.turned == pytest.approx(0) and not same.disturbed
    (against,) = object_disturbance(poses(), poses(-0.009, turn(-8)), drift)
    assert against.moved == pytest.approx(0.018) and np.rad2deg(against.turned) == pytest.approx(16)
    assert against.disturbed


def test_only_objects_that_the_task_does_not_name() -> None:
    gantry = Gantry()
    gantry.put("pebble", 0.5, 0.0, 1.0)
    gantry.begin()
    found = object_poses(gantry.data, gantry.classes)
    assert list(found) == ["robot0_dish", "hand_pebble"]
    gantry.put("pebble", 0.6, 0.0, 1.0)
    gantry.begin()
    assert found["hand_pebble"].position[0] == 0.5  # a copy, not a view


def test_objects_must_agree() -> None:
    with pytest.raises(UnknownName):
        object_disturbance(poses(), {})
    with pytest.raises(UnknownName):
        object_disturbance(poses(), poses(), {"cup": Motion(np.zeros(3), IDENTITY)})
