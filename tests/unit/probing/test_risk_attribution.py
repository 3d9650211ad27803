"""Shares against hand calculations, under the symmetries of space, and in each way in which they went wrong before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from risk_fixtures import BACK, HAND, UP, constant, course, still, touch, turning
from scipy.spatial.transform import Rotation

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data.records import ContactRecord, ReleaseRecord
from mist_interp.probing.attribution import Blame, Course, Rule, blame, closing, gains, is_drop, shares

RULE = Rule()
SEEDS = st.integers(0, 10_000)


def first(found: list[Blame]) -> Blame:
    (only,) = found
    return only


def random_course(seed: int, steps: int = 12) -> Course:
    """Random actions, a random path of the hand, one to three contacts that begin in the last step."""
    rng = np.random.default_rng(seed)
    path = still(steps)
    path[:, :3] += rng.normal(size=(steps, 3))
    path[:, 3:7] = Rotation.random(steps, rng=rng).as_quat()
    contacts = []
    for number in range(rng.integers(1, 4)):
        normal = rng.normal(size=3)
        contacts.append(
            touch(
                steps - 1,
                tuple(normal / np.linalg.norm(normal)),
                tuple(0.1 * rng.normal(size=3)),
                kind=f"hand-thing{number}",
                force=float(rng.uniform(1, 50)),
            )
        )
    return Course(np.clip(rng.normal(size=(steps, 7)), -1, 1), path, tuple(contacts))


# -- by hand


def test_the_discounted_sum() -> None:
    """gamma = 0.5: the last action counts 1, the one before 1/2, then 1/4."""
    actions, gain = np.array([[4.0, 0], [2, 0], [1, 8]]), np.ones((3, 2))
    np.testing.assert_allclose(closing(actions, gain, gamma=0.5), [4 / 4 + 2 / 2 + 1, 8])


def test_shares_are_of_what_closed_the_gap() -> None:
    np.testing.assert_allclose(shares(np.array([3.0, 1, -5, 0])), [0.75, 0.25, 0, 0])
    assert np.isnan(shares(np.array([-1.0, 0, -2]))).all() and np.isnan(shares(np.array([np.nan, 1]))).all()


@pytest.mark.parametrize(
    ("commands", "normal", "lever", "own"),
    [
        ({"dz": -0.5}, UP, (0, 0, -0.1), {"dz"}),
        ({"dz": 0.5}, UP, (0, 0, -0.1), None),  # it moved away: something else brought them together
        ({"dx": 1.0, "dz": -0.01}, UP, (0, 0, -0.1), {"dz"}),  # large and along the surface: not to blame
        ({"dx": 0.4, "dz": -0.4}, UP, (0, 0, -0.1), {"dz"}),
        ({"dx": 0.4}, BACK, (0.1, 0, 0), {"dx"}),
        ({"dx": -0.4}, (1.0, 0, 0), (-0.1, 0, 0), {"dx"}),
        ({"dx": 0.3, "dy": 0.3}, (-np.sqrt(0.5), -np.sqrt(0.5), 0.0), (0.1, 0.1, 0), {"dx", "dy"}),
        ({"dpitch": 0.5}, UP, (0.1, 0, 0), {"dpitch"}),  # the tip ahead of the hand goes down
        ({"dpitch": -0.5}, UP, (-0.1, 0, 0), {"dpitch"}),
        ({"droll": -0.5}, UP, (0, 0.1, 0), {"droll"}),
        ({"dyaw": 0.5}, (0.0, -1.0, 0.0), (0.1, 0, 0), {"dyaw"}),
        ({"dyaw": 1.0, "dz": -0.1}, UP, (0.05, 0.05, -0.1), {"dz"}),
        ({}, UP, (0, 0, -0.1), None),
    ],
)
def test_what_a_human_would_say(
    commands: dict[str, float], normal: tuple[float, ...], lever: tuple[float, ...], own: set[str] | None
) -> None:
    found = first(blame(course(constant(**commands), touch(10, normal, lever)), 8, 26, RULE))
    if own is None:
        assert np.isnan(found.own[:6]).all() and np.isnan(found.shares).all()
    else:
        assert {name for name, value in zip(ACTION_NAMES, found.own, strict=True) if value == 1} == own
        assert found.shares.sum() == pytest.approx(1)
    assert found.own[6] == 0


def test_a_share_of_one_fifth_is_enough() -> None:
    """Normal of 45 degrees: dx closes as much per unit as dz; commands 4 to 1 give shares 0.8 and 0.2."""
    tilted = (-np.sqrt(0.5), 0.0, np.sqrt(0.5))
    found = first(blame(course(constant(dx=0.8, dz=-0.2), touch(10, tilted, (0, 0, 0))), 8, 26, RULE))
    np.testing.assert_allclose(found.shares, [0.8, 0, 0.2, 0, 0, 0])
    assert found.own[0] == 1
    assert first(blame(course(constant(dx=0.81, dz=-0.19), touch(10, tilted, (0, 0, 0))), 8, 26, RULE)).own[2] == 0


def test_only_actions_between_query_and_contact_count() -> None:
    actions = constant()
    actions[:8, 0] = 1.0  # before the query
    actions[11:, 0] = 1.0  # after the contact
    actions[8:11, 2] = -0.1
    tilted = (-np.sqrt(0.5), 0.0, np.sqrt(0.5))
    found = first(blame(course(actions, touch(10, tilted, (0, 0, 0))), 8, 26, RULE))
    np.testing.assert_allclose(found.shares, [0, 0, 1, 0, 0, 0])
    np.testing.assert_allclose(found.closed[2], (1 + 0.9 + 0.81) * 0.1 * 0.05 * np.sqrt(0.5))


def test_the_lever_turns_with_the_hand() -> None:
    """A tip that is ahead of the hand at the contact was above it a quarter turn earlier, where pitch does not lower
    it."""
    path = turning(11, (0, 1, 0), np.pi / 20)
    gain = gains(touch(10, UP, (0.1, 0, 0)), course(constant(11), hand=path), 0)
    np.testing.assert_allclose(gain[-1, 4], 0.05, atol=1e-12)
    np.testing.assert_allclose(gain[0, 4], 0.0, atol=1e-12)
    np.testing.assert_allclose(gain[:, 2], -0.05)


@pytest.mark.parametrize("kind", ["arm-table", "arm-self", "hand-self"])
def test_links_have_the_gain_that_was_recorded(kind: str) -> None:
    gain = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)
    path = turning(11, (0, 1, 0), np.pi / 20)
    np.testing.assert_array_equal(
        gains(touch(10, kind=kind, gain=gain), course(constant(11), hand=path), 8), [gain] * 3
    )


# -- several contacts


def test_simultaneous_contacts_are_weighted_by_their_force() -> None:
    """Down onto the table with 30 N and ahead into a box with 10 N, with equal commands."""
    contacts = touch(10, UP, (0, 0, -0.1), force=30), touch(10, BACK, (0.1, 0, 0), kind="finger-box", force=10)
    found = first(blame(course(constant(dx=0.5, dz=-0.5), *contacts), 8, 26, RULE))
    np.testing.assert_allclose(found.shares, [0.25, 0, 0.75, 0, 0, 0])


def test_contacts_of_different_steps_are_judged_apart() -> None:
    contacts = touch(10, UP), touch(12, BACK, (0.1, 0, 0), kind="finger-box")
    found = blame(course(constant(dx=0.5, dz=-0.5), *contacts), 8, 26, RULE)
    assert [each.step for each in found] == [10, 12]
    np.testing.assert_array_equal([each.own[[0, 2]] for each in found], [[0, 1], [1, 0]])


def test_weak_events_do_not_count() -> None:
    assert blame(course(constant(dz=-0.5), touch(10, force=0.5)), 8, 26, RULE) == []
    assert blame(course(constant(dz=-0.5), touch(10, force=5)), 8, 26, replace(RULE, force=10)) == []


# -- symmetries


@given(SEEDS)
@settings(deadline=None)
def test_shares_sum_to_one_or_are_unknown(seed: int) -> None:
    found = first(blame(random_course(seed), 0, 12, RULE))
    assert np.isnan(found.shares).all() or (found.shares.sum() == pytest.approx(1) and (found.shares >= 0).all())


@given(SEEDS, st.floats(0.1, 50))
@settings(deadline=None)
def test_the_scale_of_the_forces_does_not_matter(seed: int, scale: float) -> None:
    here = random_course(seed)
    there = replace(here, contacts=tuple(replace(c, start_force=scale * (c.start_force or 0.0)) for c in here.contacts))
    np.testing.assert_allclose(shared(here), shared(there), rtol=1e-9)


@given(SEEDS, st.floats(0.05, 1.0))
@settings(deadline=None)
def test_the_size_of_the_actions_does_not_matter(seed: int, scale: float) -> None:
    """A label that looks at |action| fails here."""
    here = random_course(seed)
    np.testing.assert_allclose(shared(here), shared(replace(here, actions=scale * here.actions)), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@given(seed=SEEDS)
@settings(deadline=None)
def test_a_mirrored_world_has_the_same_shares(axis: int, seed: int) -> None:
    """Vectors change their sign along the mirrored axis, turns about the two others."""
    mirror = np.ones(3)
    mirror[axis] = -1
    here = random_course(seed)
    actions, path = here.actions.copy(), here.hand.copy()
    actions[:, :3] *= mirror
    actions[:, 3:6] *= -mirror
    path[:, :3] *= mirror
    path[:, 3:6] *= -mirror
    there = Course(actions, path, tuple(moved(contact, np.diag(mirror)) for contact in here.contacts))
    np.testing.assert_allclose(shared(here), shared(there), atol=1e-9)


@given(SEEDS)
@settings(deadline=None)
def test_renamed_axes_rename_the_shares(seed: int) -> None:
    """x -> y -> z -> x, a turn of the world."""
    turn = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    here = random_course(seed)
    actions, path = here.actions.copy(), here.hand.copy()
    actions[:, :3], actions[:, 3:6] = actions[:, :3] @ turn.T, actions[:, 3:6] @ turn.T
    path[:, :3] = path[:, :3] @ turn.T
    path[:, 3:6] = path[:, 3:6] @ turn.T
    there = Course(actions, path, tuple(moved(contact, turn) for contact in here.contacts))
    np.testing.assert_allclose(shared(here)[[2, 0, 1, 5, 3, 4]], shared(there), atol=1e-9)


def moved(contact: ContactRecord, matrix: np.ndarray) -> ContactRecord:
    """A contact of the hand in a mirrored or turned world; its recorded gain is wrong on purpose, it is not used."""
    new = {name: tuple(matrix @ np.array(getattr(contact, name))) for name in ("point", "normal", "eef")}
    return replace(contact, **new, gain=(9.0,) * 6)


def shared(there: Course) -> np.ndarray:
    return first(blame(there, 0, 12, RULE)).shares


# -- the gripper


@pytest.mark.parametrize(
    ("kind", "speed", "own"),
    [
        ("finger-table", 0.02, 1),
        ("finger-table", 0.004, 0),
        ("finger-table", -0.05, 0),  # it was opening away from it
        ("finger-table", None, 0),
        ("hand-table", 0.02, 0),  # nonsense in a record: a palm has no joint of its own
    ],
)
@pytest.mark.parametrize("command", [-1.0, 1.0])
def test_a_finger_is_to_blame_by_its_own_motion_and_not_by_the_command(
    kind: str, speed: float | None, own: float, command: float
) -> None:
    there = course(constant(dz=-0.3, gripper=command), touch(10, kind=kind, finger_speed=speed))
    assert first(blame(there, 8, 26, RULE)).own[6] == own


RELEASE = ReleaseRecord(12, "bowl", True, 15, "table", False)


@pytest.mark.parametrize(
    ("change", "command", "drop"),
    [
        ({}, -1.0, True),
        ({}, 1.0, False),  # it slipped
        ({"at_goal": True}, -1.0, False),
        ({"at_goal": None}, -1.0, False),  # the goal does not name it, or it has not landed
        ({"lifted": False}, -1.0, False),
    ],
)
def test_drops(change: dict[str, bool | None], command: float, drop: bool) -> None:
    release = replace(RELEASE, **change)  # type: ignore[arg-type]
    there = course(constant(gripper=command), releases=[release])
    assert is_drop(release, there) == drop
    found = blame(there, 8, 26, RULE)
    assert [each.own[6] for each in found] == [1.0] * drop
    assert all(np.isnan(each.own[:6]).all() for each in found)


# -- how labels went wrong elsewhere


def test_no_geometry_no_label() -> None:
    """There is no fallback to |action|: without geometry nothing is to blame, whatever the commands."""
    found = first(blame(course(constant(dx=1, dy=-1, dz=-1), touch(10, geometry=False)), 8, 26, RULE))
    assert np.isnan(found.own[:6]).all()


def test_the_label_is_no_function_of_the_actions() -> None:
    """The same actions, another obstacle: another label."""
    actions = constant(dx=0.5, dz=-0.5)
    labels = [
        first(blame(course(actions, touch(10, normal, lever)), 8, 26, RULE)).own
        for normal, lever in ((UP, (0, 0, -0.1)), (BACK, (0.1, 0, 0)))
    ]
    np.testing.assert_array_equal(np.array(labels)[:, [0, 2]], [[0, 1], [1, 0]])


def test_every_dimension_can_be_to_blame() -> None:
    """A dead output is one that no course of events can switch on."""
    cases = [
        (constant(dx=0.5), touch(10, BACK, (0.1, 0, 0))),
        (constant(dy=0.5), touch(10, (0, -1, 0), (0, 0.1, 0))),
        (constant(dz=-0.5), touch(10)),
        (constant(droll=-0.5), touch(10, UP, (0, 0.1, 0))),
        (constant(dpitch=0.5), touch(10, UP, (0.1, 0, 0))),
        (constant(dyaw=0.5), touch(10, (0, -1, 0), (0.1, 0, 0))),
        (constant(), touch(10, kind="finger-box", finger_speed=0.02)),
    ]
    own = np.array([first(blame(course(actions, contact), 8, 26, RULE)).own for actions, contact in cases])
    np.testing.assert_array_equal(np.nan_to_num(own), np.eye(7))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\(n, 13\)"):
        Course(np.zeros((4, 7)), np.zeros((3, 13)))
    assert HAND == (0.0, 0.0, 1.0)
