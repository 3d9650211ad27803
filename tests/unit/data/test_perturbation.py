"""What disturbs the robot: the same for every arm of a unit, another for every other unit, and never unknown."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist_interp.core.errors import UnknownName
from mist_interp.data.perturbation import KINDS, PUSH_STEPS, Disturbance, parse_perturbation
from mist_interp.data.records import Unit

UNIT = Unit("libero_spatial", 3, 12, "noise0.3+push1")


def test_the_disturbance_depends_on_the_unit_alone() -> None:
    again = Disturbance.of(UNIT, 220).course
    assert np.array_equal(Disturbance.of(UNIT, 220).course, again)
    for other in (replace(UNIT, init_state=13), replace(UNIT, simulator_seed=1), replace(UNIT, policy_seed=1)):
        assert not np.array_equal(Disturbance.of(other, 220).course, again)


def test_nothing_is_added_to_libero_as_published() -> None:
    action = np.array([1.7, -0.2, 0.0, 0.1, 0.0, 0.0, -1.0])
    undisturbed = Disturbance.of(replace(UNIT, perturbation="none"), 5)
    assert all(np.array_equal(undisturbed.added(action, step), action) for step in range(5))


@pytest.mark.parametrize("kind", KINDS)
def test_pose_is_disturbed_and_the_gripper_never(kind: str) -> None:
    disturbed = Disturbance.of(replace(UNIT, perturbation=f"{kind}1"), 220)
    added = np.stack([disturbed.added(np.zeros(7), step) for step in range(220)])
    assert (added[:, 6] == 0).all() and np.abs(added[:, :6]).max(0).min() > 0


def test_noise_has_the_size_and_the_memory_that_its_name_says() -> None:
    courses = [Disturbance.of(replace(UNIT, init_state=i, perturbation="noise0.5"), 400).course for i in range(20)]
    values = np.concatenate([course[20:, :3] for course in courses])
    assert values.std() == pytest.approx(0.5, rel=0.05)
    lag = np.mean([np.mean(course[20:-1, :3] * course[21:, :3]) for course in courses])
    assert lag / values.var() == pytest.approx(0.7, abs=0.05)
    assert np.concatenate([course[:, 3:] for course in courses]).std() == pytest.approx(0.1, rel=0.05)


def test_a_push_is_short_and_a_bias_is_constant() -> None:
    push = Disturbance.of(replace(UNIT, perturbation="push2"), 220).course
    pushed = np.flatnonzero(push.any(1))
    assert len(pushed) == PUSH_STEPS == pushed[-1] - pushed[0] + 1 and pushed[0] < 80
    bias = Disturbance.of(replace(UNIT, perturbation="bias2"), 220).course
    assert (bias == bias[0]).all()


def test_parts_add_up_each_with_its_own_draw() -> None:
    both = Disturbance.of(UNIT, 50).course
    assert both.shape == (50, 6) and not np.array_equal(both[0], both[1])


@given(st.sampled_from(sorted(KINDS)), st.floats(0.01, 9).map(lambda size: round(size, 3)))
def test_what_is_written_is_what_is_read(kind: str, size: float) -> None:
    assert parse_perturbation(f"{kind}{size}") == ((kind, size),)


@pytest.mark.parametrize("text", ["nois0.5", "", "noise0.5+shake1", "none+push1", "Noise1"])
def test_an_unknown_perturbation_is_refused_by_name(text: str) -> None:
    with pytest.raises(UnknownName, match="perturbation"):
        parse_perturbation(text)


@pytest.mark.parametrize("text", ["noise", "noise0", "noise-1", "push1e3", "noise0.5+noise0.2"])
def test_a_size_is_needed(text: str) -> None:
    with pytest.raises(ValueError):
        parse_perturbation(text)
