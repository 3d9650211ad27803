"""Closing gains against the motion of a rigid hand and of a robot arm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mist_interp.core.closing import SCALES, hand_gain, link_gain

unit = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1).map(lambda v: v / np.linalg.norm(v))
lever = st.tuples(*[st.floats(-0.2, 0.2)] * 3).map(np.array)


@given(unit, lever, st.integers(0, 5))
def test_a_small_action_closes_the_gap_by_its_gain(normal: np.ndarray, lever: np.ndarray, dim: int) -> None:
    """Move a rigid hand as the controller does and measure the point's way against the normal."""
    amount = 1e-5
    action = np.zeros(6)
    action[dim] = amount
    moved = 0.05 * action[:3] + Rotation.from_rotvec(0.5 * action[3:]).apply(lever) - lever
    assert hand_gain(normal, lever)[dim] == pytest.approx(-normal @ moved / amount, abs=1e-6)


def test_pushing_down_onto_a_table() -> None:
    """By hand: the fingertip is 0.1 m below and 0.02 m ahead of the end effector, the table's normal points up."""
    gain = hand_gain(np.array([0.0, 0, 1]), np.array([0.02, 0, -0.1]))
    # A positive turn about y (pitch) lowers what is ahead of the hand: 0.5 rad times 0.02 m.
    np.testing.assert_allclose(gain, [0, 0, -0.05, 0, 0.01, 0], atol=1e-12)


@given(unit, lever)
def test_a_link_that_is_the_hand_has_the_hands_gain(normal: np.ndarray, lever: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    of_hand = rng.normal(size=(6, 7))
    x, y, z = lever
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    of_point = of_hand[:3] - cross @ of_hand[3:]  # v + omega x r
    np.testing.assert_allclose(link_gain(normal, of_point, of_hand), hand_gain(normal, lever), atol=1e-9)


def test_a_link_that_no_joint_moves_has_no_gain() -> None:
    of_hand = np.random.default_rng(0).normal(size=(6, 7))
    np.testing.assert_array_equal(link_gain(np.array([0, 0, 1.0]), np.zeros((3, 7)), of_hand), np.zeros(6))


def test_units() -> None:
    np.testing.assert_array_equal(SCALES, [0.05, 0.05, 0.05, 0.5, 0.5, 0.5])


@given(unit, lever)
def test_rows_are_independent(normal: np.ndarray, lever: np.ndarray) -> None:
    many = hand_gain(normal, np.stack([lever, 2 * lever]))
    np.testing.assert_array_equal(many[1], hand_gain(normal, 2 * lever))
