"""What is each body of a LIBERO scene to the task: arm, finger, object of interest, distractor, table ...?

The classes follow from the kinematic tree and the task file, never from how a body or geom happens to be called: all
that hangs below the robot's root is robot, all that hangs below the gripper's root is hand, and the subtrees below the
gripper's own joints are its fingers. Objects and fixtures are the subtrees below the roots that the task names; a goal
such as ``(open wooden_cabinet_1_middle_region)`` leads through the region's site to the drawer that carries it.

Bodies are joined into groups, the partners of a contact event: one per moving robot link, the hand, each finger (with
its pad), each object, each fixture without the parts that the goal names, each such part, the mount, each piece of
arena furniture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Int

from mist_interp.core.errors import UnknownName


class BodyClass(StrEnum):
    """The ten classes of bodies of a scene. The values are the words used in the kind of a contact event."""

    ARM = "arm"
    HAND = "hand"
    FINGER = "finger"
    INTEREST = "interest"  # a movable object that the task file lists as of interest or names in its goal
    GOAL = "goal"  # the part of a fixture that the goal names
    FIXTURE = "fixture"
    DISTRACTOR = "distractor"
    TABLE = "table"
    FLOOR = "floor"
    MOUNT = "mount"


ROBOT = frozenset({BodyClass.ARM, BodyClass.HAND, BodyClass.FINGER})
GRIPPER = frozenset({BodyClass.HAND, BodyClass.FINGER})


@dataclass(frozen=True)
class Group:
    """Bodies that count as one partner of a contact.

    Attributes:
        name: name of the topmost body (``"world"`` where the floor is a geom of the world body).
        body_class: what the group is to the task.
        bodies: body ids in the model, ascending.
        movable: True if the group hangs on a free joint, so that the robot can hold it.
        finger: number of the finger in tree order for fingers, else None.
    """

    name: str
    body_class: BodyClass
    bodies: tuple[int, ...]
    movable: bool = False
    finger: int | None = None


@dataclass(frozen=True)
class SceneNames:
    """What the task and the robot say about the bodies of a model.

    Attributes:
        robot_root: root body of the robot.
        gripper_root: root body of its gripper.
        mount_root: root body of what the robot stands on, None if it stands on nothing.
        objects: root body of each object, by its name in the task file.
        fixtures: root body of each fixture, by its name in the task file.
        interest: names of objects, fixtures or regions that the task file lists as of interest.
        goal: goal predicates such as ``("on", "akita_black_bowl_1", "plate_1")``. Regions are names of sites.
    """

    robot_root: str
    gripper_root: str
    mount_root: str | None
    objects: Mapping[str, str]
    fixtures: Mapping[str, str]
    interest: Sequence[str]
    goal: Sequence[Sequence[str]]

    @classmethod
    def from_env(cls, env: Any) -> SceneNames:
        """Read the names from a robosuite environment of LIBERO (or LIBERO's wrapper around it)."""
        task = env if hasattr(env, "parsed_problem") else env.env
        if len(task.robots) != 1:
            raise ValueError(f"contacts are classified for one robot, the environment has {len(task.robots)}")
        robot = task.robots[0]
        mount = robot.robot_model.mount
        return cls(
            robot_root=robot.robot_model.root_body,
            gripper_root=robot.gripper.root_body,
            mount_root=None if mount is None else mount.root_body,
            objects={name: thing.root_body for name, thing in task.objects_dict.items()},
            fixtures={name: thing.root_body for name, thing in task.fixtures_dict.items()},
            interest=tuple(task.obj_of_interest),
            goal=tuple(tuple(predicate) for predicate in task.parsed_problem["goal_state"]),
        )


@dataclass(frozen=True, eq=False)
class BodyClasses:
    """The groups of a scene, and which of them may touch.

    Attributes:
        groups: all groups.
        group_of_body: index of the group of each body.
        group_of_geom: index of the group of each geom.
        adjacent: pairs of groups (both orders) of robot links that the kinematic chain joins.
        companions: pairs of groups (both orders) that the goal brings together: see ``held_contact_forbidden``.
    """

    groups: tuple[Group, ...]
    group_of_body: Int[np.ndarray, " nbody"]
    group_of_geom: Int[np.ndarray, " ngeom"]
    adjacent: frozenset[tuple[int, int]]
    companions: frozenset[tuple[int, int]]

    @classmethod
    def from_env(cls, env: Any) -> BodyClasses:
        """Classify the bodies of a robosuite environment of LIBERO.

        A hard reset compiles a new model: classify again after it.

        Args:
            env: LIBERO's environment (``BDDLBaseDomain``) or its wrapper (``OffScreenRenderEnv``).
        """
        task = env if hasattr(env, "parsed_problem") else env.env
        return cls.from_model(getattr(task.sim.model, "_model", task.sim.model), SceneNames.from_env(task))

    @classmethod
    def from_model(cls, model: mujoco.MjModel, scene: SceneNames) -> BodyClasses:
        """Classify the bodies of a compiled model.

        Raises:
            UnknownName: if a root body is not in the model, or a name of the goal or of the objects of interest is
                neither object, fixture nor site.
        """
        parts = goal_parts(model, scene)
        groups = tuple(_groups(model, scene, parts))
        group_of_body = np.zeros(model.nbody, dtype=np.intp)
        for index, group in enumerate(groups):
            group_of_body[list(group.bodies)] = index
        return cls(
            groups=groups,
            group_of_body=group_of_body,
            group_of_geom=group_of_body[model.geom_bodyid],
            adjacent=_adjacent_links(model, groups),
            companions=_companions(groups, group_of_body, [[bodies[0] for bodies in part] for part in parts]),
        )

    def index(self, body: str) -> int:
        """Return the index of the group with this name."""
        names = [group.name for group in self.groups]
        if body not in names:
            raise UnknownName("body group", body, names)
        return names.index(body)

    def of_class(self, body_class: BodyClass | str) -> tuple[Group, ...]:
        """Return all groups of a class; ``UnknownName`` if there is no such class."""
        if body_class not in list(BodyClass):
            raise UnknownName("body class", body_class, list(BodyClass))
        return tuple(group for group in self.groups if group.body_class == body_class)

    def robot_contact_forbidden(self, first: int, second: int) -> bool:
        """Say whether a contact of two groups is a collision of the robot, whatever it holds.

        Arm: with anything. Hand or finger: with all but objects of interest, and, for fingers, the fixture part that
        the goal names. Robot with itself: beyond links that the chain joins; hand and fingers are one gripper, so an
        empty gripper may close.
        """
        a, b = self.groups[first].body_class, self.groups[second].body_class
        if a in ROBOT and b in ROBOT:
            return not self._joined(first, second) and not (a in GRIPPER and b in GRIPPER)
        if b in ROBOT:
            a, b = b, a
        if a not in ROBOT:
            return False
        if a is BodyClass.ARM:
            return True
        if a is BodyClass.FINGER and b is BodyClass.GOAL:
            return False
        return b is not BodyClass.INTEREST

    def robot_contact_allowed(self, first: int, second: int) -> bool:
        """Say whether a contact of two groups is one that the robot may make.

        That is: one of them is of the robot, and it is not forbidden. Links that the chain joins make none: whether
        their geoms overlap is a matter of how the robot was modelled. Of the robot with itself that leaves the two
        fingers on each other.
        """
        robot = {self.groups[index].body_class for index in (first, second)} & ROBOT
        return bool(robot) and not self._joined(first, second) and not self.robot_contact_forbidden(first, second)

    def _joined(self, first: int, second: int) -> bool:
        return first == second or (first, second) in self.adjacent

    def held_contact_forbidden(self, held: int, other: int) -> bool:
        """Say whether a contact of a held object with another group of the scene is a collision.

        Allowed are the goal region of the object and what the goal puts into the same place: for "bowl 2 on bowl 1,
        bowl 1 in the tray" all three may touch, and two objects whose goal is the same basket may touch. Two regions of
        the table have nothing to do with one another. Contacts with the robot follow ``robot_contact_forbidden``.
        """
        return self.groups[other].body_class not in ROBOT and held != other and (held, other) not in self.companions


def body_id(model: mujoco.MjModel, name: str) -> int:
    """Return the id of a named body; ``UnknownName`` if there is none."""
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)
    if index < 0:
        raise UnknownName("body", name, [model.body(body).name for body in range(model.nbody)])
    return int(index)


def subtree(model: mujoco.MjModel, root: int) -> list[int]:
    """Return a body and all bodies below it, ascending. MuJoCo numbers parents before children."""
    inside = {root}
    for body in range(root + 1, model.nbody):
        if int(model.body_parentid[body]) in inside:
            inside.add(body)
    return sorted(inside)


def goal_parts(model: mujoco.MjModel, scene: SceneNames) -> list[list[list[int]]]:
    """Find the bodies that each argument of each goal predicate stands for.

    An object stands for its subtree. A region stands for the rigid part of the fixture (or for the object, the table or
    the floor) that carries its site: a drawer, the body of a cabinet without its drawers. A fixture as a whole stands
    for its moving parts in predicates of one argument (the knob in ``(turnon flat_stove_1)``, the door in
    ``(close microwave_1)``), else for its subtree.

    Returns:
        For each predicate, for each argument, body ids in ascending order.

    Raises:
        UnknownName: for an argument that is neither object, fixture nor site; likewise in the objects of interest.
    """
    for name in scene.interest:
        _named_bodies(model, scene, name, moving_only=False)
    return [
        [_named_bodies(model, scene, name, moving_only=len(predicate) == 2) for name in predicate[1:]]
        for predicate in scene.goal
    ]


def _named_bodies(model: mujoco.MjModel, scene: SceneNames, name: str, moving_only: bool) -> list[int]:
    if name in scene.objects:
        return subtree(model, body_id(model, scene.objects[name]))
    if name in scene.fixtures:
        root = body_id(model, scene.fixtures[name])
        bodies = subtree(model, root)
        moving = [body for body in bodies if model.body_weldid[body] != model.body_weldid[root]]
        return moving if moving_only and moving else bodies
    site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, name)
    if site < 0:
        sites = [model.site(index).name for index in range(model.nsite)]
        raise UnknownName("object, fixture or region", name, [*scene.objects, *scene.fixtures, *sites])
    carrier = int(model.site_bodyid[site])
    for root_name in (*scene.objects.values(), *scene.fixtures.values()):
        bodies = subtree(model, body_id(model, root_name))
        if carrier in bodies:
            return [body for body in bodies if model.body_weldid[body] == model.body_weldid[carrier]]
    return [carrier]


def _groups(model: mujoco.MjModel, scene: SceneNames, parts: list[list[list[int]]]) -> Iterator[Group]:
    """Yield the groups: robot, mount, objects, fixtures and their goal parts, then what is left of the arena."""
    left = set(range(model.nbody))

    def take(body_class: BodyClass, bodies: Sequence[int], finger: int | None = None) -> Iterator[Group]:
        mine = sorted(left & set(bodies))
        left.difference_update(mine)
        if mine:
            yield Group(model.body(mine[0]).name, body_class, tuple(mine), _floats(model, mine), finger)

    gripper = subtree(model, body_id(model, scene.gripper_root))
    for finger, root in enumerate(_finger_roots(model, gripper)):
        yield from take(BodyClass.FINGER, subtree(model, root), finger)
    yield from take(BodyClass.HAND, gripper)
    if scene.mount_root is not None:
        yield from take(BodyClass.MOUNT, subtree(model, body_id(model, scene.mount_root)))
    arm = subtree(model, body_id(model, scene.robot_root))
    for link in sorted({int(model.body_weldid[body]) for body in arm}):
        yield from take(BodyClass.ARM, [body for body in arm if model.body_weldid[body] == link])

    named_by_goal = {body for part in parts for bodies in part for body in bodies}
    for name, root_name in scene.objects.items():
        bodies = subtree(model, body_id(model, root_name))
        wanted = name in scene.interest or bool(named_by_goal & set(bodies))
        yield from take(BodyClass.INTEREST if wanted else BodyClass.DISTRACTOR, bodies)
    for root_name in scene.fixtures.values():
        fixture = subtree(model, body_id(model, root_name))
        for part in parts:
            for bodies in part:
                yield from take(BodyClass.GOAL, sorted(set(bodies) & set(fixture)))
        yield from take(BodyClass.FIXTURE, fixture)

    yield from take(BodyClass.FLOOR, [0])
    for root in sorted(body for body in left if model.body_parentid[body] == 0):
        bodies = subtree(model, root)
        if _floats(model, bodies):
            yield from take(BodyClass.DISTRACTOR, bodies)
        else:
            yield from take(BodyClass.FLOOR if _all_planes(model, bodies) else BodyClass.TABLE, bodies)


def _finger_roots(model: mujoco.MjModel, gripper: list[int]) -> list[int]:
    """Return the topmost bodies below the gripper's root that move against it."""
    return [
        body
        for body in gripper[1:]
        if model.body_jntnum[body] and model.body_weldid[model.body_parentid[body]] == model.body_weldid[gripper[0]]
    ]


def _floats(model: mujoco.MjModel, bodies: Sequence[int]) -> bool:
    joints = [
        joint
        for body in bodies
        for joint in range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body])
    ]
    return any(model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE for joint in joints)


def _all_planes(model: mujoco.MjModel, bodies: Sequence[int]) -> bool:
    solid = [geom for geom in range(model.ngeom) if model.geom_contype[geom] or model.geom_conaffinity[geom]]
    types = [model.geom_type[geom] for geom in solid if model.geom_bodyid[geom] in set(bodies)]
    return bool(types) and all(kind == mujoco.mjtGeom.mjGEOM_PLANE for kind in types)


def _adjacent_links(model: mujoco.MjModel, groups: Sequence[Group]) -> frozenset[tuple[int, int]]:
    """Pairs of robot groups that are rigidly joined or joined by one joint."""
    robot = [index for index, group in enumerate(groups) if group.body_class in ROBOT]
    weld = {index: int(model.body_weldid[groups[index].bodies[0]]) for index in robot}
    above = {index: int(model.body_weldid[model.body_parentid[weld[index]]]) for index in robot}
    return frozenset(
        pair
        for a in robot
        for b in robot
        if a != b and (weld[a] == weld[b] or above[a] == weld[b])
        for pair in ((a, b), (b, a))
    )


def _companions(
    groups: Sequence[Group], group_of_body: np.ndarray, arguments: list[list[int]]
) -> frozenset[tuple[int, int]]:
    """Pairs of groups that the goal joins, directly or through a third one that is not arena furniture."""
    relations = [[int(group_of_body[body]) for body in predicate] for predicate in arguments if len(predicate) == 2]
    furniture = {BodyClass.TABLE, BodyClass.FLOOR}
    allowed: set[tuple[int, int]] = set()
    places: list[set[int]] = []
    for a, b in relations:
        if groups[a].body_class in furniture or groups[b].body_class in furniture:
            allowed |= {(a, b), (b, a)}
            continue
        joined = [place for place in places if a in place or b in place]
        places = [place for place in places if place not in joined] + [set.union({a, b}, *joined)]
    for place in places:
        allowed |= {(a, b) for a in place for b in place if a != b}
    return frozenset(allowed)
