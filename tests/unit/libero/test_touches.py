"""Are the allowed contacts of the robot and of what it holds recorded, apart from the forbidden ones?"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations_with_replacement

import pytest

pytest.importorskip("mujoco")

import mujoco
import numpy as np
from gantry import SUBSTEPS, Gantry
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.libero.bodies import ROBOT
from mist_interp.libero.contact_events import MERGED_BREAK, ContactSample
from mist_interp.libero.contacts import ContactMonitor
from mist_interp.libero.touches import normal_forces, touch_loads

CUP, DISH, PEBBLE = "gripper0_cup", "robot0_dish", "hand_pebble"
ON_DISH = ("on", "cup_1", "dish_1")
LEAST = 1e-6  # N: the jaws are light


def touched(gantry: Gantry) -> set[tuple[str, str, str]]:
    return {(touch.kind, touch.body_robot, touch.body_other) for touch in gantry.monitor.touches(LEAST)}


def hold(gantry: Gantry, thing: str, height: float = 0.8, steps: int = 1) -> None:
    gantry.hand_to(0, 0, height)
    gantry.grasp(thing)
    gantry.control_step(steps)


def test_fingers_touch_what_they_grasp() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    hold(gantry, "cup", steps=3)
    touches = gantry.monitor.touches(LEAST)
    assert [(t.kind, t.body_robot, t.body_other) for t in touches] == [
        ("finger-interest", "jaw_a", CUP),
        ("finger-interest", "jaw_b", CUP),
    ]
    for touch, side in zip(touches, (1, -1), strict=True):
        assert (touch.start_step, touch.end_step, touch.start_substep) == (0, 2, 0)
        assert touch.normal == pytest.approx((0, side, 0), abs=1e-6)
        assert touch.point == pytest.approx((0, side * 0.0295, 0.73), abs=6e-3)
        assert touch.impulse == pytest.approx(touch.peak_force * 3 * SUBSTEPS * 0.002)
        assert touch.eef is None and touch.gain is None and touch.finger_speed is None
    assert gantry.monitor.samples == ()


def test_a_distractor_is_touched_by_no_right() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    hold(gantry, "pebble")
    assert gantry.kinds() == {"finger-distractor"} and not gantry.monitor.touch_samples


def test_a_held_object_touches_its_goal() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    hold(gantry, "cup")
    gantry.put("dish", 0.056, 0, 0.73)
    gantry.control_step()
    (sample,) = (one for one in gantry.monitor.touch_samples if one.body_other == DISH)
    assert (sample.step, sample.body_robot, sample.kind) == (1, CUP, "held-interest")
    assert sample.normal == pytest.approx((-1, 0, 0), abs=1e-3) and not gantry.monitor.samples


def test_two_objects_held_together_touch_once() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    gantry.hand_to(0, 0, 0.8)
    gantry.jaws(0.058)
    gantry.put("cup", -0.0295, 0, 0.73)
    gantry.put("dish", 0.0295, 0, 0.73)
    gantry.model.geom_size[gantry.model.body_geomadr[gantry.model.body("jaw_a").id]][0] = 0.05
    gantry.model.geom_size[gantry.model.body_geomadr[gantry.model.body("jaw_b").id]][0] = 0.05
    gantry.control_step()
    assert set(gantry.monitor.held) == {CUP, DISH}
    between = [one for one in gantry.monitor.touch_samples if {one.body_robot, one.body_other} == {CUP, DISH}]
    assert len(between) == 1


def test_what_an_object_rested_on_is_touched_until_it_breaks_and_forbidden_afterwards() -> None:
    gantry = Gantry([ON_DISH])
    gantry.put("cup", 0, 0, 0.43 - 0.001)
    gantry.hand_to(0, 0, 0.8)
    gantry.begin()
    gantry.control_step(2)
    assert not gantry.monitor.touch_samples, "nothing holds it yet"
    hold(gantry, "cup", 0.499, 3)
    assert ("held-table", CUP, "bench") in touched(gantry) and "held-table" not in gantry.kinds()
    hold(gantry, "cup", 0.6, MERGED_BREAK + 1)
    hold(gantry, "cup", 0.499, 2)
    (touch,) = (one for one in gantry.monitor.touches(LEAST) if one.kind == "held-table")
    (event,) = (one for one in gantry.monitor.events(LEAST) if one.kind == "held-table")
    assert (touch.start_step, touch.end_step) == (2, 4) and (event.start_step, event.end_step) == (9, 10)


def test_contacts_of_the_end_of_settling_are_touches_until_they_break() -> None:
    gantry = Gantry()
    gantry.hand_to(0, 0, 0.499)
    gantry.begin()
    gantry.control_step(2)
    assert touched(gantry) == {("finger-table", "jaw_a", "bench"), ("finger-table", "jaw_b", "bench")}
    gantry.hand_to(0, 0, 0.8)
    gantry.control_step(MERGED_BREAK + 1)
    gantry.hand_to(0, 0, 0.499)
    gantry.control_step()
    assert {touch.end_step for touch in gantry.monitor.touches(LEAST)} == {1}
    assert {event.start_step for event in gantry.monitor.events(LEAST)} == {MERGED_BREAK + 3}


def test_an_empty_grasp_is_a_touch_of_the_two_fingers() -> None:
    gantry = Gantry()
    gantry.hand_to(0, 0, 0.8)
    gantry.begin()
    gantry.jaws(-0.002)
    gantry.control_step()
    assert {kind for kind, *_ in touched(gantry)} == {"finger-self"} and not gantry.monitor.samples


def test_every_pair_of_the_robot_is_forbidden_or_allowed_or_joined() -> None:
    classes = Gantry().classes
    joined = {frozenset(pair) for pair in classes.adjacent}
    for a, b in combinations_with_replacement(range(len(classes.groups)), 2):
        verdicts = [classes.robot_contact_forbidden(a, b), classes.robot_contact_allowed(a, b)]
        robot = bool({classes.groups[index].body_class for index in (a, b)} & ROBOT)
        assert sum(verdicts) == (robot and a != b and frozenset((a, b)) not in joined)
        assert classes.robot_contact_allowed(b, a) == verdicts[1]


def test_contact_in_some_substeps_only() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    hold(gantry, "cup")
    gantry.control_step(substeps=range(7, 12))
    whole, half = ([one for one in gantry.monitor.touch_samples if one.step == step] for step in (0, 1))
    assert [one.substep for one in half] == [7, 7] and [one.substep for one in whole] == [0, 0]
    for part, full in zip(half, whole, strict=True):
        assert part.peak_force == pytest.approx(full.peak_force)
        assert part.impulse == pytest.approx(full.impulse * 5 / SUBSTEPS)


def test_a_fork_goes_back_to_the_touches_it_had() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    hold(gantry, "cup", steps=2)
    saved, before = gantry.monitor.state(), gantry.monitor.touch_samples

    def future() -> tuple[ContactSample, ...]:
        gantry.put("dish", 0.056, 0, 0.73)
        gantry.control_step(2)
        return gantry.monitor.touch_samples

    first = future()
    assert len(first) > len(before) == 4
    gantry.monitor.set_state(saved)
    assert gantry.monitor.touch_samples == before
    again = future()
    # The pose is solved from where the solver was, so its forces agree to its tolerance only.
    assert [(one.step, one.kind, one.body_robot, one.body_other) for one in again] == [
        (one.step, one.kind, one.body_robot, one.body_other) for one in first
    ]
    assert again[:4] == before
    assert [one.peak_force for one in again] == pytest.approx([one.peak_force for one in first], rel=0.1)
    gantry.monitor.set_state(saved)
    assert gantry.monitor.touch_samples == before
    gantry.begin()
    assert gantry.monitor.touch_samples == ()


def test_a_fork_in_the_middle_of_a_control_step_keeps_its_first_half() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    gantry.hand_to(0, 0, 0.8)
    gantry.grasp("cup")
    mujoco.mj_forward(gantry.model, gantry.data)
    gantry.monitor.sample(gantry.data, 0)
    saved = gantry.monitor.state()
    gantry.monitor.end_control_step()
    once = gantry.monitor.touch_samples
    gantry.monitor.set_state(saved)
    gantry.monitor.end_control_step()
    assert gantry.monitor.touch_samples == once and len(once) == 2


def test_thresholds_filter_the_same_touches() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    hold(gantry, "cup")
    peak = max(one.peak_force for one in gantry.monitor.touch_samples)
    assert gantry.monitor.touches(1.01 * peak) == [] and gantry.monitor.touches(0.99 * peak)
    with pytest.raises(ValueError, match="positive"):
        gantry.monitor.touches(0.0)


def test_without_points_there_is_no_load() -> None:
    assert touch_loads([]) == {}


@pytest.mark.parametrize("cone", [mujoco.mjtCone.mjCONE_ELLIPTIC, mujoco.mjtCone.mjCONE_PYRAMIDAL])
def test_forces_are_those_of_mujoco(cone: mujoco.mjtCone) -> None:
    gantry = Gantry()
    gantry.model.opt.cone = cone
    gantry.hand_to(0, 0, 0.499)
    gantry.put("cup", 0.5, 0, 0.429)
    mujoco.mj_forward(gantry.model, gantry.data)
    wrenches = np.zeros((gantry.data.ncon, 6))
    for contact, wrench in enumerate(wrenches):
        mujoco.mj_contactForce(gantry.model, gantry.data, contact, wrench)
    assert wrenches[:, 0].max() > 1
    np.testing.assert_array_equal(normal_forces(gantry.model, gantry.data, np.arange(gantry.data.ncon)), wrenches[:, 0])


POSES = st.fixed_dictionaries(
    {
        "height": st.sampled_from([0.499, 0.6, 0.8]),
        "grasps": st.sampled_from([None, "cup", "dish", "pebble"]),
        "beside": st.sampled_from([None, "cup", "dish", "pebble"]),
        "resting": st.booleans(),
        "steps": st.integers(1, MERGED_BREAK + 2),
    }
)


@settings(max_examples=10, deadline=None)
@given(st.lists(POSES, min_size=1, max_size=6), st.booleans())
def test_every_contact_is_in_one_of_the_two_streams(poses: list[dict[str, object]], settled: bool) -> None:
    """Brute force over all contacts of all sub-steps: what the robot or a held object touches, and with which force."""
    gantry = Gantry([ON_DISH])
    gantry.hand_to(0, 0, 0.499 if settled else 0.8)
    gantry.begin()
    monitor = gantry.monitor
    for pose in poses:
        for number, thing in enumerate(("cup", "dish", "pebble")):
            gantry.put(thing, 2, 0.3 * number, 0.429 if pose["resting"] else 0.7)
        height = float(pose["height"])  # type: ignore[arg-type]
        gantry.hand_to(0, 0, height)
        gantry.jaws(0.2)
        if pose["grasps"]:
            gantry.grasp(str(pose["grasps"]))
        if pose["beside"] not in (None, pose["grasps"]):
            gantry.put(str(pose["beside"]), 0.056, 0, height - 0.07)
        for _ in range(int(pose["steps"])):  # type: ignore[call-overload]
            expected: dict[frozenset[str], float] = {}
            for substep in range(6):
                gantry.data.qvel[:] = 0
                mujoco.mj_forward(gantry.model, gantry.data)
                monitor.sample(gantry.data, substep)
                for pair, force in forces_of(gantry).items():
                    expected[pair] = max(expected.get(pair, 0.0), force)
            monitor.end_control_step()
            contacts, touches = last_step(monitor.samples, monitor), last_step(monitor.touch_samples, monitor)
            assert not contacts.keys() & touches.keys(), "in both"
            found: dict[frozenset[str], float] = {}
            for pair, force in [*contacts.items(), *touches.items()]:
                found[frozenset(pair)] = max(found.get(frozenset(pair), 0.0), force)
            assert found == pytest.approx(expected)
    spans = [
        {(e.body_robot, e.body_other, step) for e in events for step in range(e.start_step, e.end_step + 1)}
        for events in (monitor.events(LEAST), monitor.touches(LEAST))
    ]
    assert not spans[0] & spans[1]


def last_step(samples: Iterable[ContactSample], monitor: ContactMonitor) -> dict[tuple[str, str], float]:
    """Peak force (N) by pair. Of two objects one may be held, then the other one: these are two pairs."""
    return {(one.body_robot, one.body_other): one.peak_force for one in samples if one.step == monitor.step - 1}


def forces_of(gantry: Gantry) -> dict[frozenset[str], float]:
    """Force (N) of each pair of the robot with something else, or of a held object with the scene, at this sub-step."""
    found: dict[frozenset[str], float] = {}
    classes, wrench = gantry.classes, np.zeros(6)
    for contact in range(gantry.data.ncon):
        geoms = gantry.data.contact.geom[contact]
        pair = [int(classes.group_of_geom[geom]) for geom in geoms]
        robots = [classes.groups[index].body_class in ROBOT for index in pair]
        names = frozenset(classes.groups[index].name for index in pair)
        counts = (any(robots) and pair[0] != pair[1] and tuple(pair) not in classes.adjacent) or (
            not any(robots) and bool(names & set(gantry.monitor.held))
        )
        mujoco.mj_contactForce(gantry.model, gantry.data, contact, wrench)
        if counts and gantry.data.contact.dist[contact] <= 0 and wrench[0] > 0:
            found[names] = found.get(names, 0.0) + wrench[0]
    return found
