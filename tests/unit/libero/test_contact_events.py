"""Are runs of contact joined into events as the definition says, at every threshold?"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist_interp.libero.contact_events import MERGED_BREAK, ContactSample, group_events


def sample(step: int, force: float, other: str = "table", x: float = 0.0) -> ContactSample:
    return ContactSample(step, 3, "hand", other, f"hand-{other}", force, force / 20, (x, 0.0, 0.0), (0.0, 0.0, 1.0))


def steps_of(pattern: str) -> list[ContactSample]:
    """'x' is a step with 5 N, 'o' with 0.5 N."""
    return [sample(i, {"x": 5.0, "o": 0.5}[c]) for i, c in enumerate(pattern) if c in "xo"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", []),
        ("...", []),
        ("x", [(0, 0)]),
        ("..xxx..", [(2, 4)]),
        ("x...x", [(0, 4)]),
        ("x....x", [(0, 0), (5, 5)]),
        ("x..x...x", [(0, 7)]),
        ("xoooox", [(0, 0), (5, 5)]),
        ("ooxoo", [(2, 2)]),
    ],
)
def test_breaks_of_three_steps_are_merged(pattern: str, expected: list[tuple[int, int]]) -> None:
    assert [(event.start_step, event.end_step) for event in group_events(steps_of(pattern), 1.0)] == expected


def test_pairs_are_kept_apart() -> None:
    events = group_events([sample(0, 2), sample(0, 3, "stove"), sample(1, 4, "stove")], 1.0)
    assert [(event.body_other, event.peak_force) for event in events] == [("stove", 4), ("table", 2)]


def test_point_and_normal_are_those_of_the_onset() -> None:
    (event,) = group_events([sample(1, 9, x=0.2), sample(0, 2, x=0.1)], 1.0)
    assert event.point == (0.1, 0.0, 0.0) and event.peak_force == 9 and event.start_substep == 3


def test_impulse_counts_what_lies_between_start_and_end() -> None:
    (event,) = group_events(steps_of("oxoxo"), 1.0)
    assert event.impulse == pytest.approx((5 + 0.5 + 5) / 20)


@given(st.lists(st.sampled_from([0.0, 0.3, 2.0, 15.0]), max_size=60), st.sampled_from([1.0, 10.0]), st.randoms())
def test_against_a_reference(forces: list[float], threshold: float, random: random.Random) -> None:
    samples = [sample(step, force) for step, force in enumerate(forces) if force > 0]
    random.shuffle(samples)
    events = group_events(samples, threshold)
    # Reference: fill the breaks in a string of 0 and 1, then split it.
    active = "".join("x" if force >= threshold else "." for force in forces)
    for length in range(1, MERGED_BREAK + 1):
        # Overlapping matches: one replacement at a time.
        while "x" + "." * length + "x" in active:
            active = active.replace("x" + "." * length + "x", "x" * (length + 2), 1)
    starts = [i for i, c in enumerate(active) if c == "x" and (i == 0 or active[i - 1] == ".")]
    assert [event.start_step for event in events] == starts
    assert sum(event.end_step - event.start_step + 1 for event in events) == active.count("x")
    for event in events:
        inside = forces[event.start_step : event.end_step + 1]
        assert event.peak_force == max(inside) >= threshold
        assert event.impulse == pytest.approx(sum(inside) / 20)


@given(st.lists(st.floats(0.01, 30), max_size=40), st.floats(0.1, 5), st.floats(1, 6))
def test_a_higher_threshold_finds_parts_of_the_same_events(forces: list[float], low: float, factor: float) -> None:
    samples = [sample(step, force) for step, force in enumerate(forces)]
    loose, strict = group_events(samples, low), group_events(samples, low * factor)
    for event in strict:
        assert any(a.start_step <= event.start_step and event.end_step <= a.end_step for a in loose)
    assert {event.peak_force for event in strict} <= {force for force in forces if force >= low * factor}


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_threshold_must_be_positive(threshold: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        group_events([], threshold)
