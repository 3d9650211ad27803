"""Which process runs which part of a plan?"""

from __future__ import annotations

import multiprocessing

from hypothesis import given
from hypothesis import strategies as st

from mist_interp.evaluation.plan import PlannedEpisode, make_plan, units_of
from mist_interp.evaluation.workers import BLOCKS_PER_WORKER, _blocks, split_in_parts


def plan(tasks: int, inits: int) -> list[PlannedEpisode]:
    return make_plan("libero_spatial", range(tasks), range(inits), ["none", "safe-stop"])


@given(st.integers(1, 10), st.integers(1, 30), st.integers(1, 7))
def test_every_episode_is_in_one_block_and_a_block_is_of_whole_units_of_one_task(
    tasks: int, inits: int, workers: int
) -> None:
    todo = plan(tasks, inits)
    parts = split_in_parts(todo, workers)
    assert len(parts) == workers
    assert [episode for part in parts for block in part for episode in block] == todo
    for part in parts:
        for block in part:
            assert len({episode.unit.task for episode in block}) == 1 and len(block) == 2 * len(units_of(block))
    sizes = [sum(map(len, part)) for part in parts]
    assert max(sizes) - min(sizes) <= 2  # one unit


def test_two_workers_build_as_few_scenes_as_one_and_one_more() -> None:
    for tasks, inits in ((2, 25), (4, 2), (10, 20), (3, 5)):
        scenes = [{e.unit.task for block in part for e in block} for part in split_in_parts(plan(tasks, inits), 2)]
        assert sum(map(len, scenes)) <= tasks + 1


def test_a_worker_ends_its_own_part_and_then_takes_what_is_left() -> None:
    parts = split_in_parts(plan(2, 12), 2)
    assert [len(part) for part in parts] == [BLOCKS_PER_WORKER] * 2
    queues = []
    for part in parts:
        queues.append(multiprocessing.Queue())
        for block in part:
            queues[-1].put(block)
    second = _blocks([queues[1], queues[0]])
    assert [next(second) for _ in range(BLOCKS_PER_WORKER + 1)] == [*parts[1], parts[0][0]]
    assert list(_blocks(queues)) == parts[0][1:]
