"""Does the monitor count what it should: forbidden pairs, held objects, exclusions, forks?"""

from __future__ import annotations

import pytest

pytest.importorskip("mujoco")

import mujoco
from gantry import SUBSTEPS, Gantry

from mist_interp.libero.bodies import BodyClasses
from mist_interp.libero.contact_events import MERGED_BREAK
from mist_interp.libero.contacts import GRASP_MEMORY, ContactMonitor

ON_DISH = ("on", "cup_1", "dish_1")


def touch_bench(gantry: Gantry) -> None:
    """Both pads 1 mm into the bench, which is 0.4 m high."""
    gantry.hand_to(0, 0, 0.4 + 0.1 - 0.001)


def lift(gantry: Gantry) -> None:
    gantry.hand_to(0, 0, 0.8)


def test_fingers_are_seen_whatever_their_bodies_are_called() -> None:
    gantry = Gantry()
    lift(gantry)
    gantry.begin()
    touch_bench(gantry)
    samples = gantry.control_step()
    assert [(s.body_robot, s.body_other, s.kind) for s in samples] == [
        ("jaw_a", "bench", "finger-table"),
        ("jaw_b", "bench", "finger-table"),
    ]
    assert all(s.normal[2] == pytest.approx(1) and s.point[2] == pytest.approx(0.4, abs=1e-3) for s in samples)
    assert gantry.monitor.touching == (("jaw_a", "bench"), ("jaw_b", "bench"))
    lift(gantry)
    assert gantry.control_step() == [] and gantry.monitor.touching == ()


@pytest.mark.parametrize(
    ("hand", "kinds"),
    [
        ((3.0, 0.0, 0.62 + 0.099), set()),  # fingers on the drawer that the goal names
        ((3.0, 1.0, 0.52 + 0.099), {"finger-fixture"}),  # fingers on the heater, of which the goal names the knob
        ((2.0, 0.0, 0.53 + 0.099), set()),  # fingers astride the cup: nothing
        ((2.0, 0.6, 0.53 + 0.019), {"hand-distractor"}),  # the palm on the pebble
        ((2.0, 0.0, 0.53 + 0.019), set()),  # the palm on the cup
        ((2.0, 0.55, 0.53 + 0.099), {"finger-distractor"}),
        ((3.0, 0.0, 0.62 + 0.019), {"hand-goal"}),  # the palm on the drawer
        ((-1.0, 0.0, 0.4 + 0.099), {"finger-mount"}),
        ((0.0, 1.0, 0.099), {"finger-floor"}),
        ((-1.0, 0.0, 0.43), {"hand-self"}),  # the palm in its own base
    ],
)
def test_one_pose_one_kind(hand: tuple[float, float, float], kinds: set[str]) -> None:
    gantry = Gantry()
    gantry.hand_to(0, 0, 3)
    gantry.begin()
    gantry.hand_to(*hand)
    if kinds == {"hand-self"}:
        gantry.jaws(0.5)
    gantry.control_step()
    # The palm is wider than the slot between the jaws: what touches the palm may stand between them.
    assert gantry.kinds() - {"finger-distractor"} == kinds - {"finger-distractor"}
    assert "finger-distractor" not in kinds or gantry.kinds() == kinds


def test_an_empty_gripper_may_close() -> None:
    gantry = Gantry()
    lift(gantry)
    gantry.begin()
    gantry.jaws(-0.002)
    gantry.control_step()
    assert gantry.data.ncon > 0 and not gantry.monitor.samples


def test_contacts_at_the_end_of_settling_are_excluded_until_they_break() -> None:
    gantry = Gantry()
    touch_bench(gantry)
    gantry.begin()
    gantry.control_step(5)
    lift(gantry)
    gantry.control_step(MERGED_BREAK)
    touch_bench(gantry)
    gantry.control_step(2)
    assert not gantry.monitor.events()
    lift(gantry)
    gantry.control_step(MERGED_BREAK + 1)
    touch_bench(gantry)
    gantry.control_step()
    assert {(event.body_robot, event.start_step) for event in gantry.monitor.events()} == {("jaw_a", 14), ("jaw_b", 14)}


def test_exclusion_is_by_pair() -> None:
    gantry = Gantry()
    touch_bench(gantry)
    gantry.begin()
    gantry.hand_to(0, 1, 0.1 - 0.001)
    gantry.control_step()
    assert gantry.kinds() == {"finger-floor"}
    touch_bench(gantry)
    gantry.control_step()
    assert gantry.kinds() == {"finger-floor"}


def held_above(gantry: Gantry, thing: str, height: float = 0.8, x: float = 0.0) -> None:
    gantry.hand_to(x, 0, height)
    gantry.grasp(thing)


def test_a_grasped_object_is_held_and_collides_with_what_is_no_goal_of_its() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    held_above(gantry, "cup")
    gantry.control_step(2)
    assert gantry.monitor.held == ("gripper0_cup",) and not gantry.monitor.samples
    gantry.put("pebble", 0.056, 0, 0.73)  # at its side, 4 mm in
    (sample,) = gantry.control_step()
    assert (sample.body_robot, sample.body_other, sample.kind) == ("gripper0_cup", "hand_pebble", "held-distractor")
    assert sample.normal == pytest.approx((-1, 0, 0), abs=1e-3)
    assert sample.point == pytest.approx((0.028, 0, 0.73), abs=1e-2)


def test_a_held_object_may_touch_its_goal() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    held_above(gantry, "cup")
    gantry.control_step()
    gantry.put("dish", 0.056, 0, 0.73)
    gantry.control_step()
    assert gantry.monitor.held and not gantry.monitor.samples


def test_an_object_that_is_not_held_may_touch_anything() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    held_above(gantry, "cup")
    gantry.jaws(0.2)
    gantry.put("pebble", 0.056, 0, 0.73)
    gantry.control_step(2)
    assert not gantry.monitor.held and not gantry.monitor.samples


def test_what_an_object_rests_on_when_it_is_grasped_is_excluded_until_it_breaks() -> None:
    gantry = Gantry([ON_DISH])
    gantry.put("cup", 0, 0, 0.43 - 0.001)
    gantry.put("pebble", 0.059, 0, 0.429)
    gantry.hand_to(0, 0, 0.8)
    gantry.begin()
    gantry.control_step(2)
    held_above(gantry, "cup", 0.499)
    gantry.control_step(3)
    assert gantry.monitor.held == ("gripper0_cup",)
    assert {"held-table", "held-distractor"}.isdisjoint(gantry.kinds())
    held_above(gantry, "cup", 0.6)
    gantry.control_step(MERGED_BREAK + 1)
    held_above(gantry, "cup", 0.499)
    gantry.control_step()
    assert {"held-table", "held-distractor"} <= gantry.kinds()


def test_a_grasp_that_is_renewed_in_the_middle_of_a_collision_hides_nothing() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    held_above(gantry, "cup")
    gantry.control_step()
    gantry.put("pebble", 0.056, 0, 0.73)
    gantry.control_step(2)
    gantry.jaws(0.2)
    gantry.control_step()
    held_above(gantry, "cup")
    gantry.control_step(2)
    (event,) = gantry.monitor.events()
    assert (event.start_step, event.end_step) == (1, 5)


def test_pushing_with_both_fingers_is_not_holding() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    gantry.hand_to(0, 0, 0.8)
    gantry.jaws(0.002)
    gantry.put("cup", 0.039, 0, 0.7)
    gantry.put("pebble", 0.098, 0, 0.7)
    gantry.control_step(2)
    assert len(gantry.monitor.state().touched[gantry.classes.index("gripper0_cup")]) == 2
    assert not gantry.monitor.held and not gantry.monitor.samples


def test_a_grasp_is_remembered_for_a_few_substeps_only() -> None:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    held_above(gantry, "cup")
    gantry.control_step()
    gantry.jaws(0.2)
    for missing in range(1, GRASP_MEMORY + 1):
        mujoco.mj_forward(gantry.model, gantry.data)
        gantry.monitor.sample(gantry.data, missing)
        assert bool(gantry.monitor.held) == (missing < GRASP_MEMORY)


def test_contact_in_some_substeps_only() -> None:
    gantry = Gantry()
    lift(gantry)
    gantry.begin()
    touch_bench(gantry)
    whole = gantry.control_step()
    half = gantry.control_step(substeps=range(7, 12))
    assert [sample.substep for sample in half] == [7, 7] and [sample.substep for sample in whole] == [0, 0]
    for part, full in zip(half, whole, strict=True):
        assert part.peak_force == pytest.approx(full.peak_force)
        assert part.impulse == pytest.approx(full.impulse * 5 / SUBSTEPS)
        assert full.impulse == pytest.approx(full.peak_force * SUBSTEPS * 0.002)


def test_a_fork_continues_as_if_nothing_had_happened() -> None:
    gantry = Gantry()
    lift(gantry)
    gantry.begin()
    touch_bench(gantry)
    gantry.control_step(2)
    saved = gantry.monitor.state()

    def future() -> list[object]:
        gantry.control_step(2)
        lift(gantry)
        gantry.control_step(5)
        touch_bench(gantry)
        gantry.control_step()
        return [*gantry.monitor.events(), *gantry.monitor.samples]

    first = future()
    gantry.monitor.set_state(saved)
    touch_bench(gantry)
    assert gantry.monitor.step == 2 and future() == first
    gantry.monitor.set_state(saved)
    assert len(gantry.monitor.samples) == 4


def test_thresholds_filter_the_same_samples() -> None:
    gantry = Gantry()
    lift(gantry)
    gantry.begin()
    touch_bench(gantry)
    gantry.control_step()
    peak = gantry.monitor.events()[0].peak_force
    strict = ContactMonitor(gantry.model, gantry.classes, force_threshold=1.01 * peak)
    strict.set_state(gantry.monitor.state())
    assert strict.touching == () and strict.events() == [] and len(strict.events(0.99 * peak)) >= 1


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_a_threshold_is_positive(threshold: float) -> None:
    gantry = Gantry()
    with pytest.raises(ValueError, match="positive"):
        ContactMonitor(gantry.model, gantry.classes, threshold)
    with pytest.raises(ValueError, match="positive"):
        gantry.monitor.events(threshold)


def test_classes_of_another_model_are_refused() -> None:
    other = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    classes: BodyClasses = Gantry().classes
    with pytest.raises(ValueError, match="hard reset"):
        ContactMonitor(other, classes)
