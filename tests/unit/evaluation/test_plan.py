"""A plan pairs all arms on all units, and its shards are a partition."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.evaluation.plan import PlannedEpisode, first_units, make_plan, shard_of, units_of

axis = st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True)


@settings(deadline=None)  # it is short, but machines can be busy
@given(tasks=axis, inits=axis, n_arms=st.integers(1, 4), count=st.integers(1, 7))
def test_shards_partition_the_plan_and_keep_units_whole(
    tasks: list[int], inits: list[int], n_arms: int, count: int
) -> None:
    plan = make_plan("libero_spatial", tasks, inits, [f"arm{i}" for i in range(n_arms)])
    assert len({e.key for e in plan}) == len(plan) == len(tasks) * len(inits) * n_arms
    parts = [shard_of(plan, f"{i}/{count}") for i in range(count)]
    assert [e for part in parts for e in part] == plan
    for part in parts:
        assert len(part) == len(units_of(part)) * n_arms


def test_tasks_are_blocks_and_arms_of_a_unit_are_neighbours() -> None:
    plan = make_plan("s", [3, 1], [5, 4], ["none", "steer"])
    assert [(e.unit.task, e.unit.init_state, e.arm) for e in plan[:4]] == [
        (1, 4, "none"),
        (1, 4, "steer"),
        (1, 5, "none"),
        (1, 5, "steer"),
    ]
    assert [e.unit.task for e in plan] == [1] * 4 + [3] * 4


def test_rows_round_trip() -> None:
    for episode in make_plan("s", [0, 11], [7], ["none"], perturbations=["none", "push1"], simulator_seeds=[0, 3]):
        row = episode.as_row() | {"success": True}
        assert PlannedEpisode.from_row(row) == episode
        assert row["key"] == episode.key


def test_limit_keeps_all_arms_of_a_unit() -> None:
    plan = make_plan("s", [0, 1], [0, 1], ["none", "steer"])
    assert [e.unit.init_state for e in first_units(plan, 2)] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="at least 1"):
        first_units(plan, 0)


@pytest.mark.parametrize("bad", ["4/4", "a/2", "1", "-1/2", "1/0"])
def test_bad_shards_say_how_to_write_one(bad: str) -> None:
    with pytest.raises(ValueError, match="0/4"):
        shard_of(make_plan("s", [0], [0], ["none"]), bad)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tasks": []}, "tasks is empty"),
        ({"inits": [1, 1]}, "inits names 1 twice"),
        ({"arms": ["none", "none"]}, "arms names none twice"),
        ({"arms": ["a/b"]}, "cannot be a folder"),
    ],
)
def test_impossible_plans_are_refused(change: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_plan(**({"suite": "s", "tasks": [0], "inits": [0], "arms": ["none"]} | change))
