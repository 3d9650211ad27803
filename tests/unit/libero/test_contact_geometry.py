"""Closing gains of an arm's links against measured distances, and the motion of a finger against that of its hand."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from gantry import Gantry

from mist_interp.core.closing import SCALES, hand_gain
from mist_interp.libero.bodies import BodyClasses, SceneNames
from mist_interp.libero.contact_load import Load
from mist_interp.libero.contacts import ContactMonitor
from mist_interp.libero.hand import Hand

# A planar arm of three hinges about z; posts that touch its first link, its second one, or its palm.
ARM = """
<mujoco>
  <worldbody>
    <body name="column">
      <body name="upper"><joint name="j0" axis="0 0 1"/>
        <geom name="upper" type="capsule" fromto="0 0 0 .3 0 0" size=".02" mass="1"/>
        <body name="lower" pos=".3 0 0"><joint name="j1" axis="0 0 1"/>
          <geom name="lower" type="capsule" fromto="0 0 0 .3 0 0" size=".02" mass="1"/>
          <body name="palm" pos=".3 0 0"><joint name="j2" axis="0 0 1"/>
            <geom name="palm" type="capsule" fromto="0 0 0 .1 0 0" size=".02" mass="1"/>
            <site name="tip" pos=".1 0 0"/>
          </body>
        </body>
      </body>
    </body>
    <body name="post" pos="{post}"><geom name="post" type="cylinder" size=".02 .2"/></body>
  </worldbody>
</mujoco>"""
POSE = np.array([0.3, 0.5, -0.4])


def pressed(link: str, along: float) -> tuple[mujoco.MjModel, mujoco.MjData, ContactMonitor]:
    """The arm in one pose, with a post at the left side of a link, half a millimetre deep in it."""
    model = mujoco.MjModel.from_xml_string(ARM.format(post="9 9 0"))
    data = mujoco.MjData(model)
    data.qpos[:] = POSE
    mujoco.mj_kinematics(model, data)
    frame = data.body(link).xmat.reshape(3, 3)
    post = data.body(link).xpos + frame @ np.array([along, 0.0395, 0])
    model = mujoco.MjModel.from_xml_string(ARM.format(post=" ".join(map(str, post))))
    data = mujoco.MjData(model)
    names = SceneNames("column", "palm", None, {}, {}, (), ())
    hand = Hand(model, model.site("tip").id, np.arange(3))
    monitor = ContactMonitor(model, BodyClasses.from_model(model, names), hand=hand)
    data.qpos[:] = 0
    mujoco.mj_forward(model, data)
    monitor.begin(data)
    data.qpos[:] = POSE
    mujoco.mj_forward(model, data)
    monitor.sample(data, 0)
    monitor.end_control_step()
    return model, data, monitor


def moved_gap(model: mujoco.MjModel, link: str, joints: np.ndarray) -> float:
    data = mujoco.MjData(model)
    data.qpos[:] = joints
    mujoco.mj_forward(model, data)
    return float(mujoco.mj_geomDistance(model, data, model.geom(link).id, model.geom("post").id, 1.0, None))


@pytest.mark.parametrize(("link", "along"), [("upper", 0.2), ("lower", 0.1), ("lower", 0.28), ("palm", 0.05)])
def test_a_link_closes_its_gap_by_the_recorded_gain(link: str, along: float) -> None:
    """Move the joints as the smallest motion that gives the tip what an action asks for; measure the distance."""
    model, data, monitor = pressed(link, along)
    (event,) = monitor.events(1e-6)
    assert event.body_robot == link and event.gain is not None and event.eef is not None
    np.testing.assert_allclose(event.eef, data.site("tip").xpos, atol=1e-12)
    hand = Hand(model, model.site("tip").id, np.arange(3))
    inverse = np.linalg.pinv(hand.jacobian(data))
    for dim, name in ((0, "dx"), (1, "dy"), (5, "dyaw")):
        step = 1e-4 * (inverse @ (SCALES[dim] * np.eye(6)[dim]))
        gaps = [moved_gap(model, link, POSE + sign * step) for sign in (1, -1)]
        assert event.gain[dim] == pytest.approx((gaps[1] - gaps[0]) / 2e-4, rel=0.02, abs=2e-5), name


def test_a_link_is_not_the_hand_and_the_palm_is() -> None:
    for link, along, same in (("upper", 0.2, False), ("palm", 0.05, True)):
        _, _, monitor = pressed(link, along)
        (event,) = monitor.events(1e-6)
        assert event.eef is not None and event.gain is not None
        as_hand = hand_gain(np.array(event.normal), np.subtract(event.point, event.eef))
        assert np.allclose(event.gain, as_hand) == same


def test_everything_is_weighted_by_force() -> None:
    """3 N at one place, then 1 N at another one while the hand has moved on."""
    load = Load(0)
    for force, x in ((3.0, 0.0), (1.0, 0.4)):
        load.add(force, np.array([x, 0, 0]), np.array([0.0, 0, 1]))
        load.add_hand(force, np.array([x, 0.8 * (force == 1), 1.0]))
    eef, gain, speed = load.geometry()
    assert eef == pytest.approx((0.1, 0.2, 1.0)) and speed is None
    np.testing.assert_allclose(gain, hand_gain(np.array([0, 0, 1.0]), np.array([0, -0.2, -1.0])))
    for force, dx in ((3.0, 0.01), (1.0, 0.05)):
        load.add_gain(force, np.array([dx, 0, 0, 0, 0, 0]))
        load.add_finger(force, np.array([0, 0, -dx]))
    assert load.geometry()[1:] == (pytest.approx((0.02, 0, 0, 0, 0, 0)), pytest.approx(0.02))


def test_without_a_hand_nothing_is_said() -> None:
    gantry = Gantry()
    gantry.begin()
    gantry.hand_to(0, 0, 0.499)
    (one, two) = gantry.control_step()
    assert one.eef is two.eef is one.gain is two.gain is None


@pytest.mark.parametrize(
    ("joint", "speed", "expected"),
    [("a", 0.03, 0.03), ("a", -0.03, -0.03), ("y", 0.5, 0.0), ("b", 0.03, 0.0)],
)
def test_only_the_fingers_own_joint_counts(joint: str, speed: float, expected: float) -> None:
    """Jaw a, at the left of the hand, touches a pebble further left; its joint moves it to the left."""
    gantry = Gantry()
    gantry.hand_to(0, 0, 0.8)
    gantry.jaws(0.08)
    gantry.data.joint(joint).qvel[0] = speed
    gantry.begin()
    gantry.put("pebble", 0, 0.06 + 0.03 - 0.001, 0.75)
    gantry.control_step()
    (sample,) = gantry.monitor.samples  # of less than 1 N: a jaw is light
    assert sample.kind == "finger-distractor" and sample.normal == pytest.approx((0, -1, 0), abs=1e-6)
    assert sample.finger_speed == pytest.approx(expected, abs=1e-9)


def test_the_fingers_speed_is_that_before_the_contact_stops_it() -> None:
    """After the first sub-step the joint stands still; what is recorded is how it came."""
    gantry = Gantry()
    gantry.hand_to(0, 0, 0.8)
    gantry.jaws(0.08)
    gantry.data.joint("a").qvel[0] = 0.03
    gantry.begin()
    gantry.put("pebble", 0, 0.06 + 0.03 - 0.001, 0.75)
    gantry.control_step(2)
    first, later = gantry.monitor.samples
    assert (first.finger_speed, later.finger_speed) == (pytest.approx(0.03), pytest.approx(0.0))


def test_the_motion_of_the_hand() -> None:
    model, data, _ = pressed("palm", 0.05)
    hand = Hand(model, model.site("tip").id, np.arange(3))
    data.qvel[:] = 0.1, 0.2, 0.3
    motion = hand.motion(data)
    half = 0.5 * POSE.sum()
    np.testing.assert_allclose(motion[3:7] * np.sign(motion[6]), [0, 0, np.sin(half), np.cos(half)], atol=1e-9)
    np.testing.assert_allclose(motion[10:], [0, 0, 0.6], atol=1e-12)
    ahead = mujoco.MjData(model)
    ahead.qpos[:] = POSE + 1e-6 * data.qvel
    mujoco.mj_kinematics(model, ahead)
    np.testing.assert_allclose(motion[7:10], (ahead.site("tip").xpos - motion[:3]) / 1e-6, atol=1e-5)
