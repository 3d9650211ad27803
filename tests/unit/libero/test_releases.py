"""Is what the robot lets go of recorded: where it landed, whether it had been lifted, whether it was caught again?"""

from __future__ import annotations

import pytest

pytest.importorskip("mujoco")

import mujoco
from gantry import Gantry

from mist_interp.libero.contact_events import MERGED_BREAK

ON_DISH = ("on", "cup_1", "dish_1")
CUP = "gripper0_cup"


def carrying(height: float = 0.8, thing: str = "cup") -> Gantry:
    gantry = Gantry([ON_DISH])
    gantry.begin()
    gantry.hand_to(0, 0, height)
    gantry.grasp(thing)
    gantry.control_step(2)
    assert gantry.monitor.held
    return gantry


def let_go(gantry: Gantry) -> None:
    gantry.jaws(0.2)
    gantry.control_step()


def test_a_cup_that_falls_on_the_bench_has_missed_its_goal() -> None:
    gantry = carrying()
    let_go(gantry)
    (falling,) = gantry.monitor.releases
    assert (falling.step, falling.body, falling.lifted) == (2, CUP, True)
    assert falling.landed_step is None and falling.at_goal is None
    gantry.control_step(3)
    gantry.put("cup", 0, 0, 0.4 + 0.03 - 0.001)
    gantry.control_step(2)
    (landed,) = gantry.monitor.releases
    assert (landed.landed_step, landed.landed_on, landed.at_goal) == (6, "bench", False)


def test_a_cup_that_falls_on_its_dish_is_at_its_goal() -> None:
    gantry = carrying()
    let_go(gantry)
    gantry.put("dish", 0, 0, 0.5)
    gantry.put("cup", 0, 0, 0.5 + 0.06 - 0.001)
    gantry.control_step()
    (landed,) = gantry.monitor.releases
    assert (landed.landed_on, landed.at_goal) == ("robot0_dish", True)


def test_the_goal_says_nothing_of_a_pebble() -> None:
    gantry = carrying(thing="pebble")
    let_go(gantry)
    gantry.put("pebble", 0, 0, 0.4 + 0.03 - 0.001)
    gantry.control_step()
    (landed,) = gantry.monitor.releases
    assert landed.landed_on == "bench" and landed.at_goal is None


def test_what_is_caught_again_in_the_air_was_not_let_go() -> None:
    gantry = carrying()
    let_go(gantry)
    gantry.grasp("cup")
    gantry.control_step()
    assert gantry.monitor.held == (CUP,) and gantry.monitor.releases == ()


def test_what_stands_where_it_was_grasped_was_never_lifted() -> None:
    gantry = Gantry([ON_DISH])
    gantry.put("cup", 0, 0, 0.43 - 0.001)
    gantry.hand_to(0, 0, 0.8)
    gantry.begin()
    gantry.hand_to(0, 0, 0.499)
    gantry.grasp("cup")
    gantry.control_step(2)
    assert gantry.monitor.held == (CUP,)
    let_go(gantry)
    (release,) = gantry.monitor.releases
    assert not release.lifted and release.landed_on == "bench"


def test_what_was_lifted_and_put_down_again_was_lifted() -> None:
    gantry = Gantry([ON_DISH])
    gantry.put("cup", 0, 0, 0.43 - 0.001)
    gantry.begin()
    for height in (0.499, 0.6, 0.499):
        gantry.hand_to(0, 0, height)
        gantry.grasp("cup")
        gantry.control_step(MERGED_BREAK + 2)
    let_go(gantry)
    (release,) = gantry.monitor.releases
    assert release.lifted and release.landed_on == "bench" and release.at_goal is False


def test_a_fork_knows_what_is_in_the_air() -> None:
    gantry = carrying()
    let_go(gantry)
    saved = gantry.monitor.state()
    gantry.put("cup", 0, 0, 0.4 + 0.03 - 0.001)
    gantry.control_step()
    assert gantry.monitor.releases[0].landed_on == "bench"
    gantry.monitor.set_state(saved)
    assert gantry.monitor.releases[0].landed_on is None


def test_a_grasp_that_is_renewed_within_a_control_step_does_not_hide_the_collision_of_that_step() -> None:
    """The fingers chatter in the very step in which the cup hits the pebble: the pair is not excluded by it."""
    gantry = carrying()
    gantry.put("pebble", 0.056, 0, 0.73)
    for substep, gap in enumerate([0.058] * 3 + [0.2] * 6 + [0.058] * 3):
        gantry.jaws(gap)
        gantry.data.qvel[:] = 0
        mujoco.mj_forward(gantry.model, gantry.data)
        gantry.monitor.sample(gantry.data, substep)
    gantry.monitor.end_control_step()
    gantry.control_step(2)
    (event,) = gantry.monitor.events()
    assert (event.start_step, event.end_step) == (2, 4)
