"""Are force, impulse, point and normal of a contact what mechanics says they are?"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

pytest.importorskip("mujoco")

import mujoco
import numpy as np

from mist_interp.libero.bodies import BodyClasses, SceneNames
from mist_interp.libero.contacts import ContactMonitor

GRAVITY = 9.81
SUBSTEPS = 25

ROBOT = """
<body name="column" pos="{at}">
  <body name="ram"><joint name="slide" type="slide" axis="{axis}" damping="{damping}"/>
    <geom type="box" size=".01 .01 .01" mass="1" contype="0" conaffinity="0"/>
    <body name="palm"><geom name="palm" type="{shape}" size=".05 .05 .05" mass="1" condim="{condim}"/></body>
  </body>
</body>"""

WORLD = """
<mujoco>
  <option timestep="0.002" cone="{cone}" gravity="{gravity}"/>
  <worldbody>{bodies}</worldbody>
  <actuator><motor joint="slide" ctrllimited="false"/></actuator>
</mujoco>"""


class Press:
    """A hand of 2 kg on one slide, and an obstacle."""

    def __init__(
        self,
        obstacle: str,
        at: str,
        axis: str = "0 0 1",
        shape: str = "sphere",
        robot_first: bool = True,
        cone: str = "elliptic",
        condim: int = 3,
        gravity: str = f"0 0 -{GRAVITY}",
        damping: float = 200,
        allowed: bool = False,
    ) -> None:
        robot = ROBOT.format(at=at, axis=axis, shape=shape, condim=condim, damping=damping)
        bodies = robot + obstacle if robot_first else obstacle + robot
        self.model = mujoco.MjModel.from_xml_string(WORLD.format(cone=cone, gravity=gravity, bodies=bodies))
        self.data = mujoco.MjData(self.model)
        objects = {"bench_1": "bench"} if allowed else {}
        names = SceneNames("column", "palm", None, objects, {}, tuple(objects), ())
        self.monitor = ContactMonitor(self.model, BodyClasses.from_model(self.model, names))
        mujoco.mj_forward(self.model, self.data)
        self.monitor.begin(self.data)

    def settle(self, seconds: float = 3.0) -> None:
        for _ in range(round(seconds / self.model.opt.timestep)):
            mujoco.mj_step(self.model, self.data)

    def run(self, control_steps: int) -> None:
        for _ in range(control_steps):
            for substep in range(SUBSTEPS):
                mujoco.mj_step(self.model, self.data)
                self.monitor.sample(self.data, substep)
            self.monitor.end_control_step()


BENCH = '<body name="bench" pos="0 0 .2"><geom type="{shape}" size=".5 .5 .2" {more}/></body>'


@pytest.mark.parametrize("robot_first", [True, False])
@pytest.mark.parametrize("cone", ["elliptic", "pyramidal"])
@pytest.mark.parametrize("shape", ["sphere", "box"])
def test_a_resting_hand_presses_with_its_weight(robot_first: bool, cone: str, shape: str) -> None:
    """Sphere or box, whichever geom MuJoCo takes as the first one, on one contact point or on four."""
    press = Press(BENCH.format(shape="box", more=""), "0.1 0.2 .46", shape=shape, robot_first=robot_first, cone=cone)
    press.settle()
    press.run(10)
    (event,) = press.monitor.events()
    assert (event.body_robot, event.body_other, event.kind) == ("palm", "bench", "hand-table")
    assert (event.start_step, event.end_step) == (0, 9)
    assert event.peak_force == pytest.approx(2 * GRAVITY, rel=1e-3)
    assert event.impulse == pytest.approx(2 * GRAVITY * 10 * SUBSTEPS * 0.002, rel=1e-3)
    assert event.point == pytest.approx((0.1, 0.2, 0.4), abs=2e-3)
    assert event.normal == pytest.approx((0, 0, 1), abs=1e-6)


@pytest.mark.parametrize("robot_first", [True, False])
@pytest.mark.parametrize("shape", ["sphere", "box"])
@pytest.mark.parametrize("axis", [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, -1), (0, 0, 1)])
def test_a_push_against_a_wall(robot_first: bool, shape: str, axis: tuple[int, int, int]) -> None:
    """A motor of 7 N pushes along each axis; the normal points back at the hand."""
    at = 0.16 * np.array(axis)
    wall = f'<body name="wall" pos="{at[0]} {at[1]} {at[2]}"><geom type="box" size=".1 .1 .1"/></body>'
    press = Press(wall, "0 0 0", "{} {} {}".format(*axis), shape, robot_first, gravity="0 0 0")
    press.data.ctrl[0] = 7
    press.settle()
    press.run(4)
    (event,) = press.monitor.events()
    assert event.peak_force == pytest.approx(7, rel=1e-3)
    assert event.normal == pytest.approx(tuple(-float(x) for x in axis), abs=1e-6)
    assert event.point == pytest.approx(tuple(0.06 * np.array(axis)), abs=3e-3)
    assert press.monitor.events(7.1) == []


@pytest.mark.parametrize("degrees", [20, 40])
@pytest.mark.parametrize("robot_first", [True, False])
def test_a_slope_without_friction(degrees: float, robot_first: bool) -> None:
    """N = m g / cos(slope), along the slope's normal. A column of the frame in place of its first row fails here."""
    angle = math.radians(degrees)
    slope = BENCH.format(shape="box", more=f'euler="0 {degrees} 0" condim="1"').replace("0 0 .2", "0 0 0", 1)
    normal = np.array([math.sin(angle), 0, math.cos(angle)])
    height = (0.2 + 0.05) / math.cos(angle) + 0.01
    press = Press(slope, f"0 0 {height}", robot_first=robot_first, condim=1)
    press.settle()
    press.run(2)
    (event,) = press.monitor.events()
    assert event.peak_force == pytest.approx(2 * GRAVITY / math.cos(angle), rel=1e-3)
    assert event.normal == pytest.approx(tuple(normal), abs=1e-6)
    hand = press.data.body("palm").xpos
    assert event.point == pytest.approx(tuple(hand - 0.05 * normal), abs=2e-3)


def test_two_obstacles_are_two_events_that_share_the_load() -> None:
    """Normals of two slopes of 45 degrees: each carries m g / (2 cos 45)."""
    slopes = "".join(
        f'<body name="{name}" pos="{0.2 * side} 0 0"><geom type="box" size=".3 .3 .01" euler="0 {-45 * side} 0" '
        'condim="1"/></body>'
        for name, side in (("left", -1), ("right", 1))
    )
    press = Press(slopes, "0 0 -.1", condim=1)
    press.settle()
    press.run(2)
    events = press.monitor.events()
    assert [event.body_other for event in events] == ["left", "right"]
    for event, side in zip(events, (-1, 1), strict=True):
        assert event.peak_force == pytest.approx(GRAVITY / math.cos(math.pi / 4), rel=5e-3)
        assert event.normal == pytest.approx((-side * math.sqrt(0.5), 0, math.sqrt(0.5)), abs=1e-3)


def test_several_contacts_of_a_pair_are_weighted_by_force() -> None:
    """A groove of one body: the mean normal of its two walls is the bisector, the force the sum of both."""
    groove = '<body name="groove">' + "".join(
        f'<geom type="box" size=".3 .3 .01" pos="{0.2 * side} 0 0" euler="0 {-45 * side} 0" condim="1"/>'
        for side in (-1, 1)
    )
    press = Press(groove + "</body>", "0 0 -.1", condim=1)
    press.settle()
    press.run(1)
    (event,) = press.monitor.events()
    assert event.peak_force == pytest.approx(2 * GRAVITY / math.cos(math.pi / 4), rel=5e-3)
    assert event.normal == pytest.approx((0, 0, 1), abs=1e-3)
    assert event.point[0] == pytest.approx(0, abs=1e-3)


def test_opposing_walls_leave_a_unit_normal() -> None:
    """A hand wedged into a slot that is too narrow: the normals cancel, that of one wall stays."""
    slot = '<body name="slot">' + "".join(
        f'<geom type="box" size=".1 .1 .1" pos="{0.1495 * side} 0 0"/>' for side in (-1, 1)
    )
    press = Press(slot + "</body>", "0 0 .3", gravity="0 0 0")
    press.data.qpos[0] = -0.3
    press.run(1)
    (event,) = press.monitor.events()
    assert abs(event.normal[0]) == pytest.approx(1, abs=1e-6)


def test_a_bounce_between_two_control_steps_is_seen() -> None:
    """The contact lasts a few sub-steps in the middle of a control step; at its end nothing touches any more."""
    wall = '<body name="wall" pos=".17 0 0"><geom type="box" size=".1 .1 .1"/></body>'
    press = Press(wall, "0 0 0", "1 0 0", gravity="0 0 0", damping=0)
    press.model.geom_solref[:] = (-20000, -1)  # a stiff spring that gives the energy back
    press.data.qvel[0] = 1.0
    press.run(1)
    assert press.data.ncon == 0 and press.data.qvel[0] < -0.5
    (sample,) = press.monitor.samples
    assert 5 < sample.substep < 20
    # Momentum before and after: 2 kg from 1 m/s to the speed at which it flies back.
    assert sample.impulse == pytest.approx(2 * (1 - press.data.qvel[0]), rel=0.02)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_gap_does_not_count(allowed: bool) -> None:
    """Inside the margin a contact exists and may carry force, but the bodies are apart."""
    press = Press(BENCH.format(shape="box", more='margin=".05" gap="0"'), "0 0 .46", allowed=allowed)
    press.settle()
    assert press.data.ncon == 1 and press.data.contact.dist[0] > 0
    press.run(2)
    assert press.monitor.events() == press.monitor.touches() == []


@pytest.mark.parametrize("robot_first", [True, False])
@pytest.mark.parametrize("cone", ["elliptic", "pyramidal"])
@pytest.mark.parametrize("shape", ["sphere", "box"])
def test_an_allowed_contact_is_measured_as_a_forbidden_one(robot_first: bool, cone: str, shape: str) -> None:
    """The hand falls on the bench and comes to rest: the same numbers, whether it may be there or not."""
    bench = BENCH.format(shape="box", more='euler="0 10 0"')
    one, other = (
        Press(bench, "0.1 0.2 .46", shape=shape, robot_first=robot_first, cone=cone, allowed=allowed)
        for allowed in (False, True)
    )
    for press in (one, other):
        press.run(12)
    (forbidden,), (touch,) = one.monitor.events(), other.monitor.touches()
    assert not one.monitor.touches() and not other.monitor.events()
    assert (forbidden.kind, touch.kind) == ("hand-table", "hand-interest") and forbidden.peak_force > 1.2 * 2 * GRAVITY
    assert replace(touch, kind=forbidden.kind) == forbidden, "not bit for bit"
