"""Which contacts did the robot, or what it holds, make: forbidden ones, and all others?

A contact counts while its gap is <= 0. The force of a pair of body groups at a physics sub-step is the sum of the
normal forces of its contact points (one load spread over the four corners of a box, or over the forty convex pieces of
a bowl, is one load). The normal is the first row of MuJoCo's contact frame, which points from geom 1 to geom 2; here it
always points from the obstacle to the robot.

What is forbidden is decided in ``bodies.py``; what makes an event, in ``contact_events.py``. Every contact of the robot
with something else, and of a held object with the scene, is either forbidden or a *touch* (a finger on what it grasps,
a held object at its goal), at each sub-step one of them and never both. Decided here:

- **Held**: an object with a free joint becomes held at a sub-step in which two fingers touch it from opposing sides:
  the mean normals of the two, contacts weighted by their depth, enclose more than 90 degrees (a closed gripper that
  pushes a box ahead of itself touches it with both fingers and does not hold it). It stays held while both fingers have
  touched it within the last ``GRASP_MEMORY`` sub-steps (10 ms: fingers chatter, and what is dropped falls less than
  1 mm in that time).
- **Excluded**: contacts present at the end of settling, and contacts with the scene that an object has when it becomes
  held (it rests on something), until they break, that is, until the pair has been apart for more than ``MERGED_BREAK``
  control steps: the same measure that ends an event. A pair that is in the middle of an event is never excluded.
  Exclusion is by pair of groups: a bowl lifted off the stove may scrape over all of the stove, but not over the table.
  While a pair is excluded, its contacts are touches.
- **Not recorded** are contacts of robot links that the kinematic chain joins, which never count, and what an object
  touches while nothing holds it. The two fingers on each other are a touch (``finger-self``): an empty grasp.

Samples of touches have no closing geometry: nothing asks which dimension closed an allowed gap.
"""

from __future__ import annotations

import mujoco
import numpy as np

from mist_interp.core.closing import link_gain
from mist_interp.libero.bodies import ROBOT, BodyClass, BodyClasses
from mist_interp.libero.contact_events import MERGED_BREAK, ContactEvent, ContactSample, group_events
from mist_interp.libero.contact_load import Load, vector
from mist_interp.libero.hand import Hand, own_dofs, own_velocity
from mist_interp.libero.monitor_state import MonitorState, Pair
from mist_interp.libero.releases import Release
from mist_interp.libero.touches import TouchPoints, touch_loads

__all__ = ["ContactEvent", "ContactMonitor", "ContactSample", "MonitorState", "group_events"]

GRASP_MEMORY = 5  # physics sub-steps

# What a pair of groups can mean, whatever is held (bits).
FORBIDDEN, GRASP, SCENE, TOUCH = 1, 2, 4, 8


class ContactMonitor:
    """Record the contacts of an episode, the forbidden ones apart from all others.

    ``begin`` once after settling, then for each control step ``sample`` after each physics sub-step and
    ``end_control_step``. Contacts and constraint forces in ``data`` must belong together: call after ``mj_step`` or
    ``mj_forward``, not between ``mj_step1`` and ``mj_step2``.

    Args:
        model: the raw MuJoCo model that ``classes`` was made from.
        classes: groups of bodies and what may touch.
        force_threshold: force from which ``end_control_step`` reports a contact, and default of ``events`` and
            ``touches``, N.
        hand: the end effector; without it samples say nothing about closing gains.

    Raises:
        ValueError: if ``classes`` belongs to another model, or the threshold is not positive.
    """

    def __init__(
        self, model: mujoco.MjModel, classes: BodyClasses, force_threshold: float = 1.0, hand: Hand | None = None
    ):
        if len(classes.group_of_geom) != model.ngeom:
            raise ValueError(
                f"body classes of a model with {len(classes.group_of_geom)} geoms, but this one has {model.ngeom}: "
                "classify again after a hard reset"
            )
        if not force_threshold > 0:
            raise ValueError(f"force_threshold must be positive (N), got {force_threshold!r}")
        self.classes = classes
        self.force_threshold = force_threshold
        self._hand = hand
        self._finger_dofs = {
            index: own_dofs(model, group.bodies)
            for index, group in enumerate(classes.groups)
            if group.body_class is BodyClass.FINGER
        }
        self._model = model
        self._timestep = float(model.opt.timestep)
        self._wrench = np.zeros(6)
        self._count = len(classes.groups)
        self._column_of_geom = classes.group_of_geom
        self._row_of_geom = classes.group_of_geom * self._count
        codes = [(a, b) for a in range(self._count) for b in range(self._count)]
        self._meaning = np.array([self._meaning_of(a, b) for a, b in codes], dtype=np.uint8)
        self._meaning_if_held = {
            held: np.array([self._meaning_if(held, a + b - held) if held in (a, b) else 0 for a, b in codes], np.uint8)
            for held, group in enumerate(classes.groups)
            if group.movable
        }
        self._touch_of_code = np.array(
            [self._code(self._robot_pair(code)) if self._meaning[code] & TOUCH else -1 for code in range(len(codes))]
        )
        self._state = MonitorState()

    @property
    def step(self) -> int:
        """Number of finished control steps."""
        return self._state.step

    @property
    def samples(self) -> tuple[ContactSample, ...]:
        """All samples of forbidden contacts so far, whatever their force."""
        return tuple(self._state.samples)

    @property
    def touch_samples(self) -> tuple[ContactSample, ...]:
        """All samples of touches so far, whatever their force; made anew from all points when you ask."""
        finished = [points for points in self._state.touch_points if points.step < self._state.step]
        loads = touch_loads(finished)
        return tuple(self._sample_of(step, divmod(code, self._count), load) for (step, code), load in loads.items())

    @property
    def held(self) -> tuple[str, ...]:
        """Root bodies of the objects held at the last sub-step."""
        return tuple(self.classes.groups[index].name for index in sorted(self._state.held))

    @property
    def releases(self) -> tuple[Release, ...]:
        """What was held and let go so far."""
        return self._state.releases.all()

    def begin(self, data: mujoco.MjData) -> None:
        """Start an episode at the end of settling; the contacts present now are excluded until they break."""
        self._state = MonitorState(speeds=data.qvel.copy())
        pairs, gaps = self._pairs(data)
        for code in set(pairs[gaps <= 0].tolist()):
            if self._meaning[code] & FORBIDDEN:
                self._state.excluded[self._robot_pair(code)] = -1
            elif self._meaning[code] & SCENE:
                self._state.resting[self._scene_pair(code)] = -1

    def sample(self, data: mujoco.MjData, substep: int) -> None:
        """Take in the contacts of one physics sub-step.

        Args:
            data: simulation data after the sub-step.
            substep: its index within the control step, 0 first.
        """
        state = self._state
        state.clock += 1
        pairs, gaps = self._pairs(data)
        meaning = self._meaning[pairs]
        if substep == 0:
            for code in set(pairs[((meaning & SCENE) != 0) & (gaps <= 0)].tolist()):
                state.resting[self._scene_pair(code)] = state.step
        forces: dict[Pair, float] = {}
        touching: dict[int, int] = {}  # contact -> pair: what a held object may touch, and what is excluded
        for contact in (meaning & FORBIDDEN).nonzero()[0].tolist():
            if gaps[contact] <= 0:
                code = int(pairs[contact])
                self._add(data, contact, self._robot_pair(code), code, substep, forces, touching)
        grasping = (meaning & GRASP).nonzero()[0]
        if len(grasping):
            for code in set(pairs[grasping[gaps[grasping] <= 0]].tolist()):
                finger, thing = self._robot_pair(code)
                state.touched.setdefault(thing, {})[finger] = state.clock
        if state.touched:
            self._sample_held(data, pairs, gaps, substep, forces, touching)
        if state.releases.falling:
            self._sample_falling(pairs, gaps)
        for pair, force in forces.items():
            state.loads[pair].peak = max(state.loads[pair].peak, force)
        allowed = (meaning & TOUCH).nonzero()[0]
        if touching or len(allowed):
            self._add_touches(data, substep, pairs, allowed, touching)
        state.speeds = data.qvel.copy()

    def end_control_step(self) -> list[ContactSample]:
        """Close the control step and return its forbidden contacts that reach ``force_threshold``."""
        state = self._state
        samples = [self._sample_of(state.step, pair, load) for pair, load in state.loads.items()]
        samples.sort(key=lambda sample: (sample.substep, sample.body_robot, sample.body_other))
        state.samples += samples
        state.collided.update(dict.fromkeys(state.loads, state.step))
        state.loads = {}
        state.excluded = {pair: seen for pair, seen in state.excluded.items() if state.step - seen <= MERGED_BREAK}
        state.step += 1
        return [sample for sample in samples if sample.peak_force >= self.force_threshold]

    def events(self, threshold: float | None = None) -> list[ContactEvent]:
        """Return the forbidden events so far at a force threshold (N); None stands for ``force_threshold``."""
        return group_events(self._state.samples, self.force_threshold if threshold is None else threshold)

    def touches(self, threshold: float | None = None) -> list[ContactEvent]:
        """Return the events of allowed contact so far, as ``events`` does."""
        return group_events(self.touch_samples, self.force_threshold if threshold is None else threshold)

    @property
    def touching(self) -> tuple[tuple[str, str], ...]:
        """Forbidden pairs (link or held object, other) whose force reached ``force_threshold`` in the last step."""
        last = [sample for sample in self._state.samples[-64:] if sample.step == self._state.step - 1]
        return tuple((x.body_robot, x.body_other) for x in last if x.peak_force >= self.force_threshold)

    def state(self) -> MonitorState:
        """Return a copy of all that changes, for a fork."""
        return self._state.copy()

    def set_state(self, state: MonitorState) -> None:
        """Go back to a saved state."""
        self._state = state.copy()

    def _meaning_of(self, a: int, b: int) -> int:
        groups, classes = self.classes.groups, self.classes
        robots = [groups[index].body_class in ROBOT for index in (a, b)]
        fingers = [groups[index].body_class is BodyClass.FINGER for index in (a, b)]
        movable = groups[a].movable or groups[b].movable
        return (
            FORBIDDEN * classes.robot_contact_forbidden(a, b)
            + GRASP * (any(fingers) and movable)
            + SCENE * (not any(robots) and movable and a != b)
            + TOUCH * classes.robot_contact_allowed(a, b)
        )

    def _meaning_if(self, held: int, other: int) -> int:
        classes = self.classes
        return FORBIDDEN * classes.held_contact_forbidden(held, other) + TOUCH * ((held, other) in classes.companions)

    def _pairs(self, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
        """Return the pair of groups of each contact as one code, and its gap in m."""
        contact = data.contact
        return self._row_of_geom[contact.geom1] + self._column_of_geom[contact.geom2], contact.dist

    def _code(self, pair: Pair) -> int:
        return pair[0] * self._count + pair[1]

    def _robot_pair(self, code: int) -> Pair:
        """Put the robot first; of two robot links the one further from the base."""
        a, b = divmod(code, self._count)
        groups = self.classes.groups
        robots = [groups[index].body_class in ROBOT for index in (a, b)]
        if all(robots):
            return (a, b) if groups[a].bodies[0] > groups[b].bodies[0] else (b, a)
        return (a, b) if robots[0] else (b, a)

    def _scene_pair(self, code: int) -> Pair:
        a, b = divmod(code, self._count)
        return min(a, b), max(a, b)

    def _sample_held(
        self,
        data: mujoco.MjData,
        pairs: np.ndarray,
        gaps: np.ndarray,
        substep: int,
        forces: dict[Pair, float],
        touching: dict[int, int],
    ) -> None:
        state = self._state
        recent = {
            thing: {finger: clock for finger, clock in fingers.items() if state.clock - clock < GRASP_MEMORY}
            for thing, fingers in state.touched.items()
        }
        state.touched = {thing: fingers for thing, fingers in recent.items() if fingers}
        held = frozenset(
            thing
            for thing, fingers in state.touched.items()
            if len(fingers) > 1 and (thing in state.held or self._pinched(data, pairs, gaps, thing))
        )
        for thing in held:
            meaning = self._meaning_if_held[thing][pairs]
            found = {
                contact: (thing, sum(divmod(int(pairs[contact]), self._count)) - thing)
                for contact in meaning.nonzero()[0].tolist()
                if gaps[contact] <= 0
            }
            # Two objects held together count once.
            found = {contact: pair for contact, pair in found.items() if pair[1] not in held or thing < pair[1]}
            forbidden = {contact: pair for contact, pair in found.items() if meaning[contact] & FORBIDDEN}
            if thing not in state.held:
                state.exclude_resting(thing, set(forbidden.values()))
            for contact, pair in forbidden.items():
                self._add(data, contact, pair, int(pairs[contact]), substep, forces, touching)
            touching |= {contact: self._code(pair) for contact, pair in found.items() if contact not in forbidden}
        for thing in state.held - held:
            lifted = not any(thing in pair for pair in state.excluded)
            state.releases.let_go(thing, Release(state.step, self.classes.groups[thing].name, lifted))
        state.releases.catch(held)
        state.held = held

    def _sample_falling(self, pairs: np.ndarray, gaps: np.ndarray) -> None:
        """See what the objects that were let go touch first."""
        state, groups = self._state, self.classes.groups
        meaning = self._meaning[pairs]
        touching = [divmod(code, self._count) for code in set(pairs[(meaning & SCENE != 0) & (gaps <= 0)].tolist())]
        for thing in sorted(state.releases.falling or {}):
            others = sorted({a + b - thing for a, b in touching if thing in (a, b)})
            if others:
                goals = {b for a, b in self.classes.companions if a == thing}
                at_goal = bool(goals & set(others)) if goals else None
                state.releases.land(thing, state.step, groups[others[0]].name, at_goal)

    def _pinched(self, data: mujoco.MjData, pairs: np.ndarray, gaps: np.ndarray, thing: int) -> bool:
        """Say whether two fingers touch an object from opposing sides."""
        normals: dict[int, np.ndarray] = {}
        for contact in ((self._meaning[pairs] & GRASP != 0) & (gaps <= 0)).nonzero()[0].tolist():
            code = int(pairs[contact])
            finger, touched = self._robot_pair(code)
            if touched == thing:
                sign = -1.0 if code % self._count == thing else 1.0
                normals.setdefault(finger, np.zeros(3))
                normals[finger] += sign * gaps[contact] * data.contact.frame[contact, :3]
        fingers = list(normals.values())
        return any(float(a @ b) < 0 for index, a in enumerate(fingers) for b in fingers[:index])

    def _add(
        self,
        data: mujoco.MjData,
        contact: int,
        pair: Pair,
        code: int,
        substep: int,
        forces: dict[Pair, float],
        touching: dict[int, int],
    ) -> None:
        """Add a contact that is forbidden unless its pair is excluded: then it is put with those that touch rightly."""
        state = self._state
        if pair in state.excluded:
            state.excluded[pair] = state.step
            touching[contact] = self._code(pair)
            return
        mujoco.mj_contactForce(self._model, data, contact, self._wrench)
        force = float(self._wrench[0])
        if force <= 0:
            return
        # The frame's first row points from geom 1 to geom 2.
        sign = 1.0 if code % self._count == pair[0] else -1.0
        load = state.loads.setdefault(pair, Load(substep))
        point, normal = data.contact.pos[contact].copy(), sign * data.contact.frame[contact, :3]
        load.add(force, point, normal)
        forces[pair] = forces.get(pair, 0.0) + force
        geoms = data.contact.geom[contact][:: -1 if sign > 0 else 1]
        self._add_geometry(data, load, pair, substep, force, point, normal, self._model.geom_bodyid[geoms])

    def _add_geometry(
        self,
        data: mujoco.MjData,
        load: Load,
        pair: Pair,
        substep: int,
        force: float,
        point: np.ndarray,
        normal: np.ndarray,
        bodies: np.ndarray,
    ) -> None:
        """Add what labels need: the end effector, the gain of links, the finger's own motion. `bodies`: robot first."""
        if substep == load.substep and pair[0] in self._finger_dofs:
            dofs = self._finger_dofs[pair[0]]
            before = self._state.speeds
            load.add_finger(force, own_velocity(self._model, data, int(bodies[0]), point, dofs, before))
        if self._hand is None:
            return
        load.add_hand(force, self._hand.position(data))
        robot, other = (self.classes.groups[index].body_class for index in pair)
        if robot is BodyClass.ARM or other in ROBOT:
            one, two = (self._hand.point_jacobian(data, int(body), point) for body in bodies)
            load.add_gain(force, link_gain(normal, one - two, self._hand.jacobian(data)))

    def _add_touches(
        self, data: mujoco.MjData, substep: int, pairs: np.ndarray, allowed: np.ndarray, touching: dict[int, int]
    ) -> None:
        """Put allowed contacts aside: those of the robot by index, the others with the codes of their pairs."""
        codes = pairs[allowed]
        touches = self._touch_of_code[codes]
        if touching:
            others = np.array(list(touching))
            allowed, codes = np.concatenate([allowed, others]), np.concatenate([codes, pairs[others]])
            touches = np.concatenate([touches, list(touching.values())])
        time = self._state.step, substep
        self._state.touch_points.append(TouchPoints.of(self._model, data, time, allowed, touches, codes))

    def _sample_of(self, step: int, pair: Pair, load: Load) -> ContactSample:
        robot, other = (self.classes.groups[index] for index in pair)
        by = robot.body_class.value if robot.body_class in ROBOT else "held"
        what = "self" if other.body_class in ROBOT else other.body_class.value
        eef, gain, finger_speed = load.geometry()
        return ContactSample(
            step=step,
            substep=load.substep,
            body_robot=robot.name,
            body_other=other.name,
            kind=f"{by}-{what}",
            peak_force=load.peak,
            impulse=load.total * self._timestep,
            point=vector(load.point / load.total),
            normal=vector(load.direction()),
            eef=eef,
            gain=gain,
            finger_speed=finger_speed,
        )
