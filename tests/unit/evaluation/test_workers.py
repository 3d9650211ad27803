"""Which process runs which part of a plan?"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

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


def test_workers_that_all_die_end_the_run_with_a_sentence(tmp_path: Path) -> None:
    """Also where what is left of the plan is more than a pipe holds, which would keep the parent from ending."""
    code = (
        "import sys\n"
        "from mist_interp.evaluation import NoEdit, evaluate\n"
        "from tests.unit.evaluation.fakes import FakeSuite, FakeVLA, make_fake_env\n"
        "class Broken(FakeVLA):\n"
        "    def prepare(self, observation, instruction):\n"
        "        raise RuntimeError('broken')\n"
        "if __name__ == '__main__':\n"
        "    arms = [NoEdit(name=f'none{place}' if place else 'none') for place in range(20)]\n"
        "    options = {'tasks': [0], 'inits': [0], 'simulator_seeds': range(700), 'make_env': make_fake_env}\n"
        "    evaluate(Broken(), FakeSuite(), arms, out=sys.argv[1], workers=2, **options)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    ran = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert ran.returncode == 1 and "2 of 2 workers ended early" in ran.stderr
