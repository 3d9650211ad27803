"""Are scripted pushes in real LIBERO seen as what they are, and is a clean pick and place free of events?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("libero.libero")

import mujoco
from scripted import BOWL, BOX, CLOSE, OPEN, PLATE, Script

from mist_interp.data.records import Unit
from mist_interp.data.rollout import object_poses
from mist_interp.evaluation.bystanders import disturbed, motions
from mist_interp.libero.env import LiberoEnv

pytestmark = pytest.mark.sim


def push_table(script: Script) -> None:
    script.go([-0.02, -0.05, 1.0], CLOSE)
    script.go([-0.02, -0.05, 0.88], CLOSE, 15)


def push_cabinet(script: Script) -> None:
    x = script.at("wooden_cabinet_1_base")[0]
    script.go([x, -0.02, 1.15], CLOSE)
    script.go([x, -0.02, 0.97], CLOSE)
    script.go([x, -0.35, 0.97], CLOSE, 12)


def push_stove(script: Script) -> None:
    stove = script.at("flat_stove_1_burner")
    script.go(np.add(stove, (0, 0, 0.15)), CLOSE)
    script.go(np.add(stove, (0, 0, -0.05)), CLOSE, 12)


def push_box(script: Script) -> None:
    box = script.at(BOX)
    script.go(np.add(box, (-0.12, 0, 0.15)), CLOSE)
    script.go(np.add(box, (-0.12, 0, 0.01)), CLOSE)
    script.go(np.add(box, (0, 0, 0.01)), CLOSE, 15)


@pytest.mark.parametrize(
    ("push", "kind", "other", "normal", "height"),
    [
        (push_table, "finger-table", "table", (0, 0, 1), (0.89, 0.91)),
        (push_cabinet, "hand-fixture", "wooden_cabinet_1_main", (0, 1, 0), (0.97, 1.13)),
        (push_stove, "finger-fixture", "flat_stove_1_main", (0, 0, 1), (0.92, 0.94)),
        (push_box, "finger-distractor", BOX, (-1, 0, 0), (0.89, 0.94)),
    ],
)
def test_the_hand_pushes_something(
    push: Callable[[Script], None],
    kind: str,
    other: str,
    normal: tuple[float, float, float],
    height: tuple[float, float],
) -> None:
    script = Script()
    push(script)
    events = script.env.events
    assert script.found() == [(kind, other)]
    assert all(event.body_robot.startswith("gripper0_") for event in events)
    assert all(np.dot(event.normal, normal) > 0.9 for event in events)
    assert all(height[0] < event.point[2] < height[1] for event in events)
    assert all(0 <= event.start_step <= event.end_step < script.env.control_steps for event in events)
    assert all(
        0 < event.impulse < event.peak_force * 0.05 * (event.end_step - event.start_step + 1) for event in events
    )
    hard = script.env.contact_events(10.0)
    assert bool(hard) == (other != BOX)  # the box slides away at less than 10 N


def test_a_box_pushed_by_a_closed_gripper_is_not_held() -> None:
    script = Script()
    push_box(script)
    assert not script.env.monitor.held


def test_a_held_bowl_hits_a_distractor() -> None:
    script = Script()
    script.pick()
    assert not script.env.events
    box = script.at(BOX)
    script.carry(np.add(box, (-0.18, 0, 0.12)))
    script.carry(np.add(box, (-0.18, 0, 0.01)))
    assert not script.env.events
    script.carry(np.add(box, (0, 0, 0.01)), 20)
    assert script.found() == [("held-distractor", BOX)]
    event = script.env.events[0]
    assert event.body_robot == BOWL and event.normal[0] < 0 and 0.89 < event.point[2] < 0.95


def test_a_held_bowl_is_put_down_beside_its_goal() -> None:
    script = Script()
    script.pick()
    table = script.at(BOWL) * (1, 1, 0) + (0, -0.08, 0.88)
    script.carry(np.add(table, (0, 0, 0.1)))
    assert not script.env.events
    script.carry(table, 20)
    assert ("held-table", "table") in script.found()


def test_a_clean_pick_and_place_has_no_event() -> None:
    """Grasping the bowl, lifting it off the table, putting it on the plate, and the plate touched by the way."""
    script = Script()
    script.pick()
    plate = script.at(PLATE)
    script.carry(np.add(plate, (0, 0, 0.15)))
    script.carry(np.add(plate, (0, 0, -0.01)), 45)
    touching = {frozenset(pair) for pair in body_contacts(script.env)}
    assert frozenset((BOWL, PLATE)) in touching and script.env.monitor.held == (BOWL,)
    script.grip(OPEN, 8)
    script.go(np.add(script.hand(), (0, 0, 0.15)), OPEN)
    assert script.env.step(np.array([0, 0, 0, 0, 0, 0, OPEN])).success
    assert script.env.events == () and script.env.contact_events(0.01) == ()


def test_a_grasp_is_seen_as_touches_of_both_fingers() -> None:
    """Before the lift, with forces of a grasp; the table until the bowl leaves it, the plate when it arrives."""
    script = Script()
    bowl = script.at(BOWL)
    script.go(np.add(bowl, (0, 0.042, 0.13)), OPEN)
    assert script.env.touches == () and script.env.monitor.touches(0.01) == []
    script.go(np.add(bowl, (0, 0.042, -0.013)), OPEN, 30)
    script.grip(CLOSE, 10)
    lift = script.env.control_steps
    held = script.env.monitor.held
    script.go(np.add(script.hand(), (0, 0, 0.15)), CLOSE)
    up = script.env.control_steps
    fingers = {touch.body_robot: touch for touch in script.env.touches if touch.kind == "finger-interest"}
    assert held == (BOWL,) and set(fingers) == {"gripper0_leftfinger", "gripper0_rightfinger"}
    for touch in fingers.values():
        assert touch.body_other == BOWL and touch.start_step < lift and touch.end_step == up - 1
        assert 1 < touch.peak_force < 100 and touch.impulse < touch.peak_force * 0.05 * (up - touch.start_step)
        assert np.linalg.norm(touch.normal) == pytest.approx(1) and np.linalg.norm(touch.point - bowl) < 0.1
    assert last_forces(script.env, "finger", BOWL) == pytest.approx(
        {one.body_robot: one.peak_force for one in script.env.monitor.touch_samples if one.step == up - 1}, rel=0.3
    )
    (table,) = (touch for touch in script.env.monitor.touches(0.01) if touch.kind == "held-table")
    assert table.body_robot == BOWL and table.normal[2] > 0.9 and table.end_step < up - 10
    fork, before = script.env.save(), script.env.touches
    plate = script.at(PLATE)
    script.carry(np.add(plate, (0, 0, 0.15)))
    script.carry(np.add(plate, (0, 0, -0.01)), 45)
    (arrived,) = (touch for touch in script.env.touches if touch.body_other == PLATE)
    assert (arrived.body_robot, arrived.kind) == (BOWL, "held-interest") and arrived.start_step > up
    assert script.env.monitor.samples == ()
    after, steps = script.env.touches, script.actions[up:]
    script.env.restore(fork)
    assert script.env.touches == before != after
    for action in steps:
        script.env.step(action)
    assert script.env.touches == after


def test_a_bowl_may_leave_what_it_stood_on_from_the_start() -> None:
    """It stands on the ramekin, a distractor, and scrapes over it while it is lifted; coming back is a collision."""
    script = Script(name="on_the_ramekin")
    ramekin = "glazed_rim_porcelain_ramekin_1_main"
    assert frozenset((BOWL, ramekin)) in {frozenset(pair) for pair in body_contacts(script.env)}
    start = script.at(BOWL)
    script.pick(0.08)
    assert not script.env.events
    script.carry(np.add(start, (0, 0, -0.02)), 25)
    assert script.found() == [("held-distractor", ramekin)]


def test_an_empty_gripper_may_close() -> None:
    script = Script()
    script.grip(CLOSE, 20)
    assert script.env.data.joint("gripper0_finger_joint1").qpos[0] < 0.002
    assert script.env.contact_events(0.01) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("open_the_middle_drawer", [("finger-fixture", "wooden_cabinet_1_main")]),
        ("open_the_top_drawer", []),
    ],
)
def test_fingers_may_touch_the_drawer_that_the_goal_names(name: str, expected: list[tuple[str, str]]) -> None:
    """The same press on the handle of the top drawer in two tasks."""
    script = Script("libero_goal", name)
    handle = np.add(script.at("wooden_cabinet_1_cabinet_top"), (0.002, 0.115, 0))
    script.go([*handle[:2], 1.2], CLOSE)
    script.go([*handle[:2], 1.06], CLOSE, 18)
    pressed = [pair for pair in body_contacts(script.env) if "wooden_cabinet_1_cabinet_top" in pair]
    assert any("finger" in name for pair in pressed for name in pair)
    assert script.found() == expected


def test_no_control_step_with_gripper_contact_is_missed() -> None:
    """Brute force over the names of bodies at the end of each control step, against the monitor's samples."""
    script = Script()
    seen, steps = set(), []
    for step in range(30):
        script.env.step(np.array([0, 0, -1, 0, 0, 0, CLOSE]))
        for a, b in body_contacts(script.env):
            if "gripper0" in a + b and ("table" in (a, b) or "flat_stove" in a + b):
                seen.add(step)
    steps = {sample.step for sample in script.env.monitor.samples}
    assert len(seen) > 5 and seen <= steps


def test_classes_of_a_living_room() -> None:
    """Floor and table are bodies of their own here, and the basket is both object of interest and goal."""
    classes = Script("libero_10", "put_both_the_alphabet_soup_and_the_tomato_sauce").env.monitor.classes
    names = {group.name: group.body_class.value for group in classes.groups}
    assert names["floor"] == "floor" and names["living_room_table"] == "table" and names["mount0_base"] == "mount"
    assert names["basket_1_main"] == names["tomato_sauce_1_main"] == "interest" and names["milk_1_main"] == "distractor"
    soup, sauce, basket, milk = (
        classes.index(f"{name}_1_main") for name in ("alphabet_soup", "tomato_sauce", "basket", "milk")
    )
    assert not classes.held_contact_forbidden(soup, basket) and not classes.held_contact_forbidden(soup, sauce)
    assert classes.held_contact_forbidden(soup, milk)


def body_contacts(env: LiberoEnv) -> set[tuple[str, str]]:
    """Names of the bodies of all touching pairs of geoms now."""
    name = [env.model.body(env.model.geom_bodyid[geom]).name for geom in range(env.model.ngeom)]
    return {(name[contact.geom1], name[contact.geom2]) for contact in env.data.contact if contact.dist <= 0}


def last_forces(env: LiberoEnv, part: str, thing: str) -> dict[str, float]:
    """Normal force (N) on a thing at the last sub-step, by the bodies that touch it and have a part in their name."""
    forces: dict[str, float] = {}
    wrench = np.zeros(6)
    for index, contact in enumerate(env.data.contact):
        roots = [env.monitor.classes.groups[env.monitor.classes.group_of_geom[geom]].name for geom in contact.geom]
        if thing in roots and contact.dist <= 0 and (other := next(root for root in roots if root != thing)):
            mujoco.mj_contactForce(env.model, env.data, index, wrench)
            if part in other:
                forces[other] = forces.get(other, 0.0) + wrench[0]
    return forces


def test_a_pushed_box_is_disturbed_and_a_bowl_of_the_task_is_not() -> None:
    script, unit = Script(), Unit("libero_spatial", 0, 0)
    start = object_poses(script.env.proprioception())
    box, bowl = (name.removesuffix("_main") for name in (BOX, BOWL))
    assert box in script.env.bystanders and not {bowl, PLATE.removesuffix("_main")} & {*script.env.bystanders}
    script.hold([0, 0, 0, 0, 0, 0, OPEN], 20)
    assert disturbed(script.env, unit, motions(script.env, start), 20) == ""
    script = Script()
    push_box(script)
    moved = motions(script.env, start)
    assert moved and moved[box].moved > 0.02
    assert disturbed(script.env, unit, moved, len(script.actions)) == box
    script = Script()
    script.pick()
    lifted = motions(script.env, start)
    assert disturbed(script.env, unit, lifted, len(script.actions)) == ""
