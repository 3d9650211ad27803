"""Knocking out dimensions, in a world whose answers are known."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from bumps import Bump, Bumps
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.libero.contact_events import MERGED_BREAK
from mist_interp.libero.knockout import Knockouts, Run, surviving, touches

PAIR = ("finger-table", "table")
EVERYTHING = np.ones(7, dtype=bool)
# Every sum grows by one per control step: what is beyond 5 is so from step 4 on.
ACTIONS = np.ones((18, 7))
DX, DY, DZ = 0, 1, 2


def runs(*bumps: Bump, actions: np.ndarray = ACTIONS, without: int | None = None, force: float = 1.0) -> list[Run]:
    active = EVERYTHING.copy()
    if without is not None:
        active[without] = False
    return list(touches(Bumps(bumps), np.zeros(7), actions, active, force))


def necessary(*bumps: Bump, actions: np.ndarray = ACTIONS) -> list[set[int]]:
    """For each original run, the dimensions without which it disappears."""
    knockouts = Knockouts(Bumps(bumps), np.zeros(7), actions)
    return [set(np.flatnonzero(knockouts.necessary([run])).tolist()) for run in knockouts.original]


# -- runs


def test_a_run_is_counted_from_the_fork() -> None:
    bump = Bump((DZ,), 5, 8)
    assert runs(bump) == [Run(4, 6, PAIR)]
    assert list(touches(Bumps((bump,)), np.full(7, 3.0), ACTIONS, EVERYTHING)) == [Run(1, 3, PAIR)]
    assert runs(bump, without=DZ) == [] and runs(bump, without=DX) == [Run(4, 6, PAIR)]
    assert runs(bump, actions=ACTIONS[:4]) == [], "beyond the window it does not count"
    assert runs(bump, actions=ACTIONS[:6]) == [Run(4, 5, PAIR)]


def test_a_run_ends_after_a_longer_break() -> None:
    first = Bump((DZ,), 3, 5)
    assert runs(first, Bump((DZ,), 5 + MERGED_BREAK, 10)) == [Run(2, 8, PAIR)]
    assert runs(first, Bump((DZ,), 6 + MERGED_BREAK, 10)) == [Run(2, 3, PAIR), Run(8, 8, PAIR)]


def test_either_finger_touches_the_same_thing() -> None:
    left, right = Bump((DZ,), 3, 5), Bump((DZ,), 5, 9, robot="right")
    assert runs(left, right) == [Run(2, 7, PAIR)]
    hand = Bump((DZ,), 5, 9, robot="hand", kind="hand-table")
    assert runs(left, hand) == [Run(2, 3, PAIR), Run(4, 7, ("hand-table", "table"))]
    box = Bump((DZ,), 5, 9, other="box")
    assert runs(left, box) == [Run(2, 3, PAIR), Run(4, 7, ("finger-table", "box"))]


def test_a_run_counts_from_its_peak_force_and_begins_before_it() -> None:
    soft, hard = Bump((DZ,), 3, 5, force=2.0), Bump((DZ,), 5, 6, force=12.0)
    assert runs(soft, hard, force=10.0) == [Run(2, 4, PAIR)] and runs(soft, force=10.0) == []


# -- which dimensions are needed


def test_what_is_needed_is_necessary() -> None:
    assert necessary(Bump((DX, DZ), 5)) == [{DX, DZ}]
    assert necessary(Bump((DX, DZ), 5, how=max)) == [set()], "either alone is enough"


def test_two_events_of_one_pair_have_verdicts_of_their_own() -> None:
    """The first needs dx, the second dz; asked whether the pair touches at all, neither would need anything."""
    assert necessary(Bump((DX,), 3, 5), Bump((DZ,), 12, 14)) == [{DX}, {DZ}]
    assert necessary(Bump((DX,), 3, 5), Bump((DX, DZ), 12, 14)) == [{DX}, {DX, DZ}]


def test_a_contact_that_comes_later_is_still_there() -> None:
    late = Bump((DX, DZ), 9, 11, how=sum)
    assert runs(late)[0].start == 4 and runs(late, without=DX)[0].start == 8
    assert necessary(late) == [set()]
    # Without dz one run is left, at step 8: that is the first one later, and not the second one sooner.
    assert necessary(late, Bump((DZ,), 16)) == [set(), {DZ}]


def test_what_would_come_after_the_window_has_disappeared() -> None:
    late = Bump((DX, DZ), 9, 14, how=sum)
    assert necessary(late, actions=ACTIONS[:9]) == [set()] and necessary(late, actions=ACTIONS[:8]) == [{DX, DZ}]


def test_one_event_may_have_several_runs() -> None:
    """It disappears with the last of them."""
    knockouts = Knockouts(Bumps((Bump((DX,), 5), Bump((DX, DZ), 5, other="box"))), np.zeros(7), ACTIONS)
    assert np.flatnonzero(knockouts.necessary(knockouts.original)).tolist() == [DX]


def test_every_subset_has_its_bit() -> None:
    first, second = Bump((DX,), 3, 5), Bump((DY, DZ), 12, 14, how=max)
    knockouts = Knockouts(Bumps((first, second)), np.zeros(7), ACTIONS)
    one, other = (knockouts.all_subsets([run]) for run in knockouts.original)
    np.testing.assert_array_equal(one, [bool(subset & 0b1) for subset in range(128)])
    np.testing.assert_array_equal(other, [bool(subset & 0b110) for subset in range(128)])


def test_no_world_is_run_twice() -> None:
    actions = ACTIONS.copy()
    actions[:, [1, 3, 4, 5, 6]] = 0
    env = Bumps((Bump((DX,), 3, 5), Bump((DZ,), 12, 14)))
    knockouts = Knockouts(env, np.zeros(7), actions)
    for _ in range(2):
        assert [knockouts.necessary([run])[[DX, DZ]].tolist() for run in knockouts.original] == [[1, 0], [0, 1]]
    assert env.steps == 3 * len(actions), "all, without dx, without dz"
    for run in knockouts.original:
        knockouts.all_subsets([run])
    assert env.steps == 4 * len(actions), "and without both"


# -- which run is which


def of(*starts: int, pair: tuple[str, str] = PAIR) -> list[Run]:
    return [Run(start, start, pair) for start in starts]


@pytest.mark.parametrize(
    ("before", "after", "there"),
    [
        ([4], [17], [4]),
        ([4, 12], [11], [12]),
        ([4, 12], [13], [12]),
        ([4, 12], [0, 30], [4, 12]),
        ([4, 12], [8], [4]),  # as near to one as to the other
        ([0, 10, 20], [5, 15], [0, 10]),
        ([0, 5, 10], [3, 12], [5, 10]),
    ],
)
def test_partners_by_hand(before: list[int], after: list[int], there: list[int]) -> None:
    assert surviving(of(*before), of(*after)) == frozenset(of(*there))


STARTS = st.sets(st.integers(0, 60), max_size=5).map(sorted)
PAIRS = (PAIR, ("hand-table", "table"))


@given(st.tuples(STARTS, STARTS), st.tuples(STARTS, STARTS), st.randoms())
@settings(deadline=None, max_examples=200)
def test_partners_in_general(before: tuple[list[int], ...], after: tuple[list[int], ...], random: object) -> None:
    ours = [run for pair, starts in zip(PAIRS, before, strict=True) for run in of(*starts, pair=pair)]
    theirs = [run for pair, starts in zip(PAIRS, after, strict=True) for run in of(*starts, pair=pair)]
    random.shuffle(theirs)  # type: ignore[attr-defined]
    found = surviving(ours, theirs)
    assert found <= set(ours) and surviving(ours, ours) == set(ours) and not surviving(ours, [])
    for pair, left, right in zip(PAIRS, before, after, strict=True):
        there = sorted(run.start for run in found if run.pair == pair)
        assert len(there) == min(len(left), len(right))
        if len(there) == len(right):  # some were left out: no other choice of as many is nearer
            orders = list(permutations(left, len(right)))
            sums = [sum(abs(a - b) for a, b in zip(order, right, strict=True)) for order in orders]
            best = [sorted(order) for order, total in zip(orders, sums, strict=True) if total == min(sums)]
            assert there in best
