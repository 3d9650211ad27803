"""On which episodes is a probe fitted, and on which is it judged?

Two ways: *leave one task out* asks whether the read-out holds for a task never seen, *other init states* whether it
holds for new start states of known tasks. Whole start states move together: an episode, or a replay of it under
another seed, is never on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mist_interp.core.errors import UnknownName
from mist_interp.data.activation_set import refuse_shared, start_states, unit_of_episode
from mist_interp.data.store import RolloutStore

FOLDS = ("task", "init_state")


@dataclass(frozen=True)
class Fold:
    """One split.

    Attributes:
        name: what is left out.
        train: keys of the episodes to fit on.
        test: keys of the episodes to judge on.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


def make_folds(store: RolloutStore, by: str | Sequence[Fold] = "task", count: int = 5) -> tuple[Fold, ...]:
    """Splits of a store.

    Args:
        store: the episodes.
        by: `task` leaves one task out at a time; `init_state` leaves out every `count`-th start state of each task;
            or folds of one's own, which are checked.
        count: how many folds for `init_state`.

    Raises:
        UnknownName: another `by`.
        ValueError: fewer than two groups to split by, or own folds that leak, see `check_folds`.
    """
    if not isinstance(by, str):
        check_folds(store, by)
        return tuple(by)
    units = unit_of_episode(store)
    if by == "task":
        group = {key: f"{unit.suite} task {unit.task}" for key, unit in units.items()}
    elif by == "init_state":
        states: dict[tuple[str, int], list[int]] = {}
        for suite, task, init_state in sorted(start_states(units.values())):
            states.setdefault((suite, task), []).append(init_state)
        group = {
            key: f"start states {states[unit.suite, unit.task].index(unit.init_state) % count + 1}/{count}"
            for key, unit in units.items()
        }
    else:
        raise UnknownName("way to split", by, FOLDS)
    names = sorted(set(group.values()))
    if len(names) < 2:
        raise ValueError(f"splitting by {by} needs at least two groups; there is only {names}")
    folds = tuple(
        Fold(
            name,
            train=tuple(key for key in store.keys if group[key] != name),
            test=tuple(key for key in store.keys if group[key] == name),
        )
        for name in names
    )
    check_folds(store, folds)
    return folds


def check_folds(store: RolloutStore, folds: Sequence[Fold]) -> None:
    """Refuse splits that leak.

    Raises:
        UnknownName: a fold names an episode that the store does not have.
        ValueError: a start state is on both sides of a fold, or an episode is judged twice.
    """
    units = unit_of_episode(store)
    judged: set[str] = set()
    for fold in folds:
        for key in (*fold.train, *fold.test):
            if key not in units:
                raise UnknownName(f"episode of fold {fold.name!r}", key, units)
        refuse_shared(start_states(units[key] for key in fold.train), start_states(units[key] for key in fold.test))
        twice = judged & set(fold.test)
        if twice:
            raise ValueError(f"{len(twice)} episodes are judged in two folds, e.g. {min(twice)}")
        judged |= set(fold.test)
