"""A tiny robot and scene of the same anatomy as LIBERO's, with names that say the wrong thing on purpose."""

from __future__ import annotations

from typing import Any

import mujoco

from mist_interp.libero.bodies import BodyClasses, SceneNames
from mist_interp.libero.contact_events import ContactSample
from mist_interp.libero.contacts import ContactMonitor

SUBSTEPS = 25

SCENE = """
<mujoco>
  <option timestep="0.002" cone="elliptic"/>
  <worldbody>
    <geom name="gripper0_ground" type="plane" size="5 5 .1"/>
    <body name="bench" pos="0 0 .2"><geom type="box" size=".5 .5 .2"/></body>
    <body name="stand" pos="-1 0 .2"><geom type="box" size=".1 .1 .2"/></body>
    <body name="column" pos="0 0 1">
      <geom type="box" size=".02 .02 .02" pos="-1 0 -.55"/>
      <body name="beam"><joint name="x" type="slide" axis="1 0 0"/>
        <geom type="sphere" size=".02" pos="0 0 .3" mass="1"/>
        <body name="trolley"><joint name="y" type="slide" axis="0 1 0"/>
          <geom type="sphere" size=".02" pos="0 0 .2" mass="1"/>
          <body name="ram"><joint name="z" type="slide" axis="0 0 1"/><geom type="sphere" size=".02" mass="1"/>
            <body name="wrist">
              <body name="palm" pos="0 0 -.1"><geom type="box" size=".02 .06 .02"/>
                <body name="jaw_a" pos="0 0 -.05"><joint name="a" type="slide" axis="0 1 0"/>
                  <geom type="box" size=".01 .01 .03" pos="0 .05 0"/>
                  <body name="table_pad" pos="0 .05 -.04"><geom type="box" size=".01 .01 .01"/></body>
                </body>
                <body name="jaw_b" pos="0 0 -.05"><joint name="b" type="slide" axis="0 -1 0"/>
                  <geom type="box" size=".01 .01 .03" pos="0 -.05 0"/>
                  <body name="floor_pad" pos="0 -.05 -.04"><geom type="box" size=".01 .01 .01"/></body>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
    <body name="gripper0_cup" pos="2 0 .5"><freejoint name="cup"/><geom type="box" size=".03 .03 .03" mass="1"/></body>
    <body name="robot0_dish" pos="2 .3 .5"><freejoint name="dish"/><geom type="box" size=".03 .03 .03" mass="1"/></body>
    <body name="hand_pebble" pos="2 .6 .5"><freejoint name="pebble"/>
      <geom type="box" size=".03 .03 .03" mass="1"/></body>
    <body name="chest" pos="3 0 .5">
      <body name="chest_frame"><geom type="box" size=".1 .1 .02"/><site name="lid_region"/>
        <body name="drawer" pos="0 0 .1"><joint type="slide" axis="1 0 0"/>
          <geom type="box" size=".05 .05 .02" mass="1"/>
          <site name="drawer_region"/>
          <body name="drawer_handle" pos=".07 0 0"><geom type="box" size=".01 .03 .01" mass=".1"/></body>
        </body>
      </body>
    </body>
    <body name="heater" pos="3 1 .5"><geom type="box" size=".1 .1 .02"/>
      <body name="knob" pos=".15 0 0"><joint type="hinge" axis="0 0 1"/><geom type="box" size=".01 .01 .01" mass=".1"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""

GOAL = (("in", "cup_1", "drawer_region"), ("turnon", "heater_1"))


def scene_names(goal: Any = GOAL, interest: tuple[str, ...] = ("cup_1",)) -> SceneNames:
    return SceneNames(
        robot_root="column",
        gripper_root="palm",
        mount_root="stand",
        objects={"cup_1": "gripper0_cup", "dish_1": "robot0_dish", "pebble_1": "hand_pebble"},
        fixtures={"chest_1": "chest", "heater_1": "heater"},
        interest=interest,
        goal=goal,
    )


class Gantry:
    """The scene with its monitor; things are put somewhere and the contacts of that pose are sampled."""

    def __init__(self, goal: Any = GOAL, interest: tuple[str, ...] = ("cup_1",)) -> None:
        self.model = mujoco.MjModel.from_xml_string(SCENE)
        self.data = mujoco.MjData(self.model)
        self.classes = BodyClasses.from_model(self.model, scene_names(goal, interest))
        self.monitor = ContactMonitor(self.model, self.classes)

    def begin(self) -> None:
        mujoco.mj_forward(self.model, self.data)
        self.monitor.begin(self.data)

    def hand_to(self, x: float, y: float, z: float) -> None:
        """Put the centre of the palm somewhere (world frame)."""
        self.data.joint("x").qpos[0], self.data.joint("y").qpos[0] = x, y
        self.data.joint("z").qpos[0] = z - 0.9

    def jaws(self, gap: float) -> None:
        """Set the gap between the two jaws in m."""
        for name in "ab":
            self.data.joint(name).qpos[0] = gap / 2 - 0.04

    def put(self, thing: str, x: float, y: float, z: float) -> None:
        self.data.joint(thing).qpos[:3] = x, y, z

    def grasp(self, thing: str) -> None:
        """Put an object between the jaws, 1 mm into each."""
        self.jaws(0.058)
        x, y, z = (float(self.data.joint(name).qpos[0]) for name in "xyz")
        self.put(thing, x, y, z + 0.9 - 0.07)

    def control_step(self, steps: int = 1, substeps: range | None = None) -> list[ContactSample]:
        """Sample the pose for some control steps; in sub-steps outside ``substeps`` the hand is far away."""
        for _ in range(steps):
            for substep in range(SUBSTEPS):
                away = substeps is not None and substep not in substeps
                if away:
                    self.data.joint("z").qpos[0] += 1
                self.data.qvel[:] = 0
                mujoco.mj_forward(self.model, self.data)
                self.monitor.sample(self.data, substep)
                if away:
                    self.data.joint("z").qpos[0] -= 1
            samples = self.monitor.end_control_step()
        return samples

    def kinds(self) -> set[str]:
        return {sample.kind for sample in self.monitor.samples}
