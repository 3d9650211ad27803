"""Knocking out dimensions, in a world whose answers are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from mist_interp.libero.knockout import all_subsets, happens, necessary

CONTACTS = {("finger-table", "table")}


@dataclass
class Rule:
    """Touches the table once the sums of all needed dimensions are beyond 1; forks are copies of the sums."""

    needed: tuple[tuple[int, ...], ...]  # any of these sets of dimensions is enough
    sums: np.ndarray = field(default_factory=lambda: np.zeros(7))
    steps: int = 0

    def save(self) -> np.ndarray:
        return self.sums.copy()

    def restore(self, fork: np.ndarray) -> None:
        self.sums = fork.copy()

    def step(self, action: np.ndarray) -> SimpleNamespace:
        self.steps += 1
        self.sums = self.sums + action
        touched = any(all(self.sums[dim] > 1 for dim in dims) for dims in self.needed)
        sample = SimpleNamespace(kind="finger-table", body_other="table", peak_force=5.0)
        return SimpleNamespace(contacts=[sample] if touched else [])


ACTIONS = np.full((8, 7), 0.2)


def test_what_is_needed_is_necessary() -> None:
    env = Rule(needed=((2,), (0, 3)))
    everything = np.ones(7, dtype=bool)
    assert happens(env, env.save(), ACTIONS, CONTACTS, everything)
    assert not happens(env, np.zeros(7), ACTIONS[:5], CONTACTS, everything), "beyond the window it does not count"
    assert not happens(env, np.zeros(7), ACTIONS, {("hand-table", "table")}, everything), "another event"
    assert not happens(env, np.zeros(7), ACTIONS, CONTACTS, everything, force=10.0)
    np.testing.assert_array_equal(necessary(env, np.zeros(7), ACTIONS, CONTACTS), [False] * 7)
    np.testing.assert_array_equal(
        necessary(Rule(((2, 3),)), np.zeros(7), ACTIONS, CONTACTS), [dim in (2, 3) for dim in range(7)]
    )


def test_every_subset_has_its_bit() -> None:
    found = all_subsets(Rule(needed=((2,), (0, 3))), np.zeros(7), ACTIONS, CONTACTS)
    expected = [bool(subset >> 2 & 1) or (subset & 0b1001) == 0b1001 for subset in range(128)]
    np.testing.assert_array_equal(found, expected)


def test_dimensions_that_are_not_used_are_not_run() -> None:
    actions = ACTIONS.copy()
    actions[:, [1, 3, 4, 5, 6]] = 0
    env = Rule(needed=((2,),))
    found = all_subsets(env, np.zeros(7), actions, CONTACTS)
    np.testing.assert_array_equal(found, [bool(subset >> 2 & 1) for subset in range(128)])
    assert env.steps <= 4 * len(actions)
