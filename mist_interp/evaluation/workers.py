"""How do several processes share one run?

Each worker loads its own policy and simulator. The plan is cut into as many neighbouring parts, so that few scenes are
built twice, and each part into blocks (units of one task); a worker takes the blocks of its own part and then what is
left of the others'. All append to the same locked log, and the parent follows that log. A worker that dies loses the
episode that it was running.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any

import torch

from mist_interp.core.files import json_lines_from
from mist_interp.core.processes import end_with_parent
from mist_interp.data.policy_source import resolve_policy
from mist_interp.data.records import Unit
from mist_interp.evaluation.execute import Job, run_episodes
from mist_interp.evaluation.folder import ResultsFolder, Row
from mist_interp.evaluation.plan import PlannedEpisode, units_of

POLL_SECONDS = 1.0
# Small enough blocks that all workers finish together.
BLOCKS_PER_WORKER = 6


def run_in_processes(
    vla: Any, job: Job, todo: Sequence[PlannedEpisode], workers: int, on_row: Callable[[Row], None]
) -> None:
    """Run and store the given episodes in `workers` processes.

    Args:
        vla: a `PolicySource`, or anything that can be pickled.
        job: settings.
        todo: the episodes.
        workers: number of processes.
        on_row: called in this process for every row.

    Raises:
        RuntimeError: a worker died or gave up; what it finished is stored.
    """
    context = multiprocessing.get_context("spawn")
    parts: list[Any] = []
    for part in split_in_parts(todo, workers):
        parts.append(context.Queue())
        for block in part:
            parts[-1].put(block)
    # Threads of all workers together use each core once; more makes every one of them slower.
    threads = max(1, (os.cpu_count() or 1) // workers)
    folder = ResultsFolder(job.out)
    log = folder.rows_path
    _, read = json_lines_from(log, 0)

    def follow() -> None:
        nonlocal read
        rows, read = json_lines_from(log, read)
        for row in rows:
            on_row(row)

    processes = [
        context.Process(target=_work, args=(vla, job, parts[place:] + parts[:place], threads), daemon=True)
        for place in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            for process in processes:
                process.join(POLL_SECONDS / workers)
            follow()
        follow()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()
        for blocks in parts:
            blocks.cancel_join_thread()  # else what nobody has taken keeps this process from ending
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {workers} workers ended early (exit codes {failed}); finished episodes are kept, "
            "the same command goes on"
        )
    left = folder.missing(todo)
    if left:
        raise RuntimeError(f"{len(left)} of {len(todo)} episodes were taken by no worker; the same command goes on")


def split_in_parts(todo: Sequence[PlannedEpisode], workers: int) -> list[list[list[PlannedEpisode]]]:
    """Per worker its blocks: whole units of one task, together about 1 / `BLOCKS_PER_WORKER` of its part."""
    units = units_of(todo)
    episodes: dict[Unit, list[PlannedEpisode]] = {}
    for episode in todo:
        episodes.setdefault(episode.unit, []).append(episode)
    parts = []
    for place in range(workers):
        own = units[len(units) * place // workers : len(units) * (place + 1) // workers]
        longest = max(1, len(own) // BLOCKS_PER_WORKER)
        blocks = []
        for _, scene in groupby(own, key=lambda unit: (unit.suite, unit.task, unit.perturbation)):
            members = list(scene)
            for start in range(0, len(members), longest):
                blocks.append([episode for unit in members[start : start + longest] for episode in episodes[unit]])
        parts.append(blocks)
    return parts


def _work(vla: Any, job: Job, parts: Sequence[Any], threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    policy = resolve_policy(vla, job.suite.name)
    # One call for all blocks: the scene of the last one is often that of the next.
    run_episodes(policy, job, chain.from_iterable(_blocks(parts)))


def _blocks(parts: Sequence[Any]) -> Iterator[list[PlannedEpisode]]:
    """The blocks of this worker's part, then what others have left."""
    for blocks in parts:
        try:
            while True:
                # The queues were filled before this process began; waiting covers the pipe's delay only.
                yield blocks.get(timeout=0.5)
        except queue.Empty:
            continue
