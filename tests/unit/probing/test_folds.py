"""Splits: nothing that was fitted on is judged."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_rollouts import MakeStore, make_episode

from mist_interp.probing.folds import Fold, check_folds, make_folds

RNG = np.random.default_rng(0)


def test_one_task_is_left_out_at_a_time(make_store: MakeStore) -> None:
    store = make_store([make_episode(task, init, RNG, n_queries=1) for task in range(3) for init in range(4)])
    folds = make_folds(store, "task")
    assert [fold.name for fold in folds] == [f"libero_spatial task {task}" for task in range(3)]
    for task, fold in enumerate(folds):
        assert all(f"-t{task:02d}-" in key for key in fold.test) and len(fold.test) == 4
        assert set(fold.train) | set(fold.test) == set(store.keys) and not set(fold.train) & set(fold.test)


def test_start_states_move_together_and_every_task_is_in_every_fold(make_store: MakeStore) -> None:
    episodes = [
        make_episode(task, 3 * init, RNG, n_queries=1, simulator_seed=seed)
        for task in range(2)
        for init in range(10)
        for seed in range(2)
    ]
    folds = make_folds(make_store(episodes), "init_state", count=5)
    assert len(folds) == 5 and sum(len(fold.test) for fold in folds) == 40
    for fold in folds:
        assert {key.split("-")[1] for key in fold.test} == {"t00", "t01"}
        states = [{tuple(key.split("-")[1:3]) for key in side} for side in (fold.train, fold.test)]
        assert not states[0] & states[1]


def test_leaking_folds_are_refused(make_store: MakeStore) -> None:
    store = make_store([make_episode(0, i, RNG, n_queries=1, simulator_seed=s) for i in range(3) for s in range(2)])
    a0, a1, b0, b1, c0, c1 = store.keys
    check_folds(store, [Fold("fine", (a0, a1, b0, b1), (c0, c1))])
    with pytest.raises(ValueError, match="training and in the evaluation"):
        check_folds(store, [Fold("the same episode", (a0, b0), (a0,))])
    with pytest.raises(ValueError, match="init 0"):
        check_folds(store, [Fold("a replay under another seed", (a0, b0), (a1,))])
    with pytest.raises(ValueError, match="two folds"):
        check_folds(store, [Fold("1", (a0, a1), (b0,)), Fold("2", (a0, a1), (b0, c0))])


def test_what_cannot_be_split_is_an_error(make_store: MakeStore) -> None:
    store = make_store([make_episode(0, i, RNG, n_queries=1) for i in range(3)])
    with pytest.raises(ValueError, match="at least two groups"):
        make_folds(store, "task")
    with pytest.raises(KeyError, match="init_state"):
        make_folds(store, "init_states")
