"""Do the classes follow the kinematic tree and the task, whatever the bodies are called?"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

pytest.importorskip("mujoco")

import mujoco
from gantry import SCENE, Gantry, scene_names

from mist_interp.core.errors import UnknownName
from mist_interp.libero.bodies import BodyClass, BodyClasses, SceneNames


def class_by_body(classes: BodyClasses, model: mujoco.MjModel) -> dict[str, str]:
    return {
        model.body(body).name: classes.groups[classes.group_of_body[body]].body_class.value
        for body in range(model.nbody)
    }


def test_classes_follow_the_tree_and_not_the_names() -> None:
    gantry = Gantry()
    assert class_by_body(gantry.classes, gantry.model) == {
        "world": "floor",
        "bench": "table",
        "stand": "mount",
        "column": "arm",
        "beam": "arm",
        "trolley": "arm",
        "ram": "arm",
        "wrist": "arm",
        "palm": "hand",
        "jaw_a": "finger",
        "table_pad": "finger",
        "jaw_b": "finger",
        "floor_pad": "finger",
        "gripper0_cup": "interest",
        "robot0_dish": "distractor",
        "hand_pebble": "distractor",
        "chest": "fixture",
        "chest_frame": "fixture",
        "drawer": "goal",
        "drawer_handle": "goal",
        "heater": "fixture",
        "knob": "goal",
    }


def test_groups_join_what_is_rigid_and_keep_links_apart() -> None:
    classes = Gantry().classes
    bodies = {group.name: len(group.bodies) for group in classes.groups}
    assert bodies["ram"] == 2 and bodies["jaw_a"] == 2 and bodies["drawer"] == 2 and bodies["chest"] == 2
    assert {"beam", "trolley", "palm", "jaw_b", "knob", "heater", "world"} <= set(bodies)
    assert [group.finger for group in classes.of_class(BodyClass.FINGER)] == [0, 1]
    assert [group.name for group in classes.groups if group.movable] == ["gripper0_cup", "robot0_dish", "hand_pebble"]
    assert sum(bodies.values()) == len(classes.group_of_body)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ([("open", "drawer_region")], {"drawer", "drawer_handle"}),
        ([("close", "chest_1")], {"drawer", "drawer_handle"}),
        ([("on", "cup_1", "lid_region")], {"chest", "chest_frame"}),
        ([("on", "cup_1", "heater_1")], {"heater", "knob"}),
        ([("turnon", "heater_1")], {"knob"}),
        ([("on", "cup_1", "dish_1")], set()),
    ],
)
def test_the_goal_names_a_part_of_a_fixture(goal: list[tuple[str, ...]], expected: set[str]) -> None:
    gantry = Gantry(goal)
    found = class_by_body(gantry.classes, gantry.model)
    assert {body for body, body_class in found.items() if body_class == "goal"} == expected


def test_objects_that_the_goal_or_the_task_file_names_are_of_interest() -> None:
    classes = Gantry([("on", "cup_1", "dish_1")], interest=("pebble_1",)).classes
    assert len(classes.of_class(BodyClass.INTEREST)) == 3 and not classes.of_class(BodyClass.DISTRACTOR)


FORBIDDEN = {
    "arm": {"interest", "goal", "fixture", "distractor", "table", "floor", "mount"},
    "hand": {"goal", "fixture", "distractor", "table", "floor", "mount"},
    "finger": {"fixture", "distractor", "table", "floor", "mount"},
}


def test_what_the_robot_may_touch() -> None:
    classes = Gantry().classes
    for (i, a), (j, b) in itertools.product(enumerate(classes.groups), repeat=2):
        forbidden = classes.robot_contact_forbidden(i, j)
        assert forbidden == classes.robot_contact_forbidden(j, i)
        robots = [group.body_class.value in FORBIDDEN for group in (a, b)]
        if robots == [True, False]:
            assert forbidden == (b.body_class.value in FORBIDDEN[a.body_class.value]), (a.name, b.name)
        if robots == [False, False]:
            assert not forbidden


def test_robot_with_itself_beyond_adjacent_links() -> None:
    classes = Gantry().classes

    def forbidden(a: str, b: str) -> bool:
        return classes.robot_contact_forbidden(classes.index(a), classes.index(b))

    chain = ["column", "beam", "trolley", "ram"]
    assert not any(forbidden(a, b) for a, b in itertools.pairwise(chain))
    assert forbidden("column", "trolley") and forbidden("beam", "ram") and forbidden("palm", "beam")
    assert not forbidden("palm", "ram") and not forbidden("palm", "trolley")
    assert not forbidden("jaw_a", "jaw_b") and not forbidden("jaw_a", "palm") and forbidden("jaw_a", "trolley")


@pytest.mark.parametrize(
    ("goal", "held", "allowed"),
    [
        ([("on", "cup_1", "dish_1")], "gripper0_cup", {"robot0_dish"}),
        ([("on", "cup_1", "dish_1")], "robot0_dish", {"gripper0_cup"}),
        ([("on", "cup_1", "dish_1")], "hand_pebble", set()),
        ([("in", "cup_1", "drawer_region")], "gripper0_cup", {"drawer"}),
        ([("on", "cup_1", "lid_region"), ("open", "drawer_region")], "gripper0_cup", {"chest"}),
        ([("on", "cup_1", "dish_1"), ("in", "dish_1", "drawer_region")], "gripper0_cup", {"robot0_dish", "drawer"}),
        ([("in", "cup_1", "drawer_region"), ("in", "dish_1", "drawer_region")], "dish", {"gripper0_cup", "drawer"}),
        ([("turnon", "heater_1")], "gripper0_cup", set()),
    ],
)
def test_what_a_held_object_may_touch(goal: list[tuple[str, ...]], held: str, allowed: set[str]) -> None:
    classes = Gantry(goal).classes
    index = classes.index("robot0_dish" if held == "dish" else held)
    scene = [other for other, group in enumerate(classes.groups) if group.body_class not in {"arm", "hand", "finger"}]
    found = {classes.groups[j].name for j in scene if j != index and not classes.held_contact_forbidden(index, j)}
    assert found == allowed


def test_regions_of_the_table_do_not_join_objects() -> None:
    model = mujoco.MjModel.from_xml_string(
        SCENE.replace(
            '<body name="bench" pos="0 0 .2">', '<body name="bench" pos="0 0 .2"><site name="l"/><site name="r"/>'
        )
    )
    classes = BodyClasses.from_model(model, scene_names([("on", "cup_1", "l"), ("on", "dish_1", "r")]))
    cup, dish, table = (classes.index(name) for name in ("gripper0_cup", "robot0_dish", "bench"))
    assert not classes.held_contact_forbidden(cup, table) and not classes.held_contact_forbidden(dish, table)
    assert classes.held_contact_forbidden(cup, dish)
    assert classes.groups[table].body_class is BodyClass.TABLE
    assert classes.robot_contact_forbidden(classes.index("jaw_a"), table)


@pytest.mark.parametrize("names", [{"goal": [("on", "cup_2", "dish_1")]}, {"interest": ("cup_2",)}])
def test_an_unknown_name_is_an_error_with_the_nearest_one(names: dict[str, object]) -> None:
    with pytest.raises(UnknownName, match="cup_1"):
        Gantry(**names)


def test_a_missing_root_body_is_an_error() -> None:
    model = mujoco.MjModel.from_xml_string(SCENE)
    names = scene_names()
    wrong = SceneNames(**{**vars(names), "gripper_root": "plam"})
    with pytest.raises(UnknownName, match="palm"):
        BodyClasses.from_model(model, wrong)


def test_names_are_read_from_an_environment_and_its_wrapper() -> None:
    thing = SimpleNamespace
    robot = thing(
        robot_model=thing(root_body="column", mount=thing(root_body="stand")), gripper=thing(root_body="palm")
    )
    env = thing(
        robots=[robot],
        objects_dict={"cup_1": thing(root_body="gripper0_cup"), "dish_1": thing(root_body="robot0_dish")},
        fixtures_dict={"chest_1": thing(root_body="chest")},
        obj_of_interest=["cup_1"],
        parsed_problem={"goal_state": [["on", "cup_1", "dish_1"]]},
        sim=thing(model=thing(_model=mujoco.MjModel.from_xml_string(SCENE))),
    )
    plain, wrapped = BodyClasses.from_env(env), BodyClasses.from_env(thing(env=env))
    assert [group.name for group in plain.groups] == [group.name for group in wrapped.groups]
    assert plain.groups[plain.index("robot0_dish")].body_class is BodyClass.INTEREST
    assert plain.groups[plain.index("hand_pebble")].body_class is BodyClass.DISTRACTOR  # loose, though not in the task
    with pytest.raises(ValueError, match="one robot"):
        BodyClasses.from_env(thing(**{**vars(env), "robots": [robot, robot]}))


def test_groups_by_class() -> None:
    classes = Gantry().classes
    assert classes.of_class("hand") == classes.of_class(BodyClass.HAND) != ()
    with pytest.raises(UnknownName, match="finger"):
        classes.of_class("fingers")
    with pytest.raises(UnknownName, match="jaw_a"):
        classes.index("jaw_c")
