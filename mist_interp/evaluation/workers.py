"""How do several processes share one run?

Each worker loads its own policy and simulator and takes blocks of the plan (units of one task) from a queue
until it is empty; all append to the same locked log, and the parent follows that log. A worker that dies loses
the episode that it was running.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mist_interp.core.processes import end_with_parent
from mist_interp.data.policy_source import resolve_policy
from mist_interp.evaluation.execute import Job, run_episodes
from mist_interp.evaluation.folder import ResultsFolder, Row
from mist_interp.evaluation.plan import PlannedEpisode, units_of

POLL_SECONDS = 1.0
# Blocks per worker: small enough that all finish together, large enough that environments are seldom rebuilt.
BLOCKS_PER_WORKER = 3


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
    blocks: Any = context.Queue()
    for block in split_in_blocks(todo, workers):
        blocks.put(block)
    # Threads of all workers together use each core once; more makes every one of them slower.
    threads = max(1, (os.cpu_count() or 1) // workers)
    folder = ResultsFolder(job.out)
    before = {id_of(row) for row in folder.rows()}
    processes = [context.Process(target=_work, args=(vla, job, blocks, threads), daemon=True) for _ in range(workers)]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            for process in processes:
                process.join(POLL_SECONDS / workers)
            before |= _report(folder, before, on_row)
        _report(folder, before, on_row)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {workers} workers ended early (exit codes {failed}); finished episodes are kept, "
            "the same command goes on"
        )


def split_in_blocks(todo: Sequence[PlannedEpisode], workers: int) -> list[list[PlannedEpisode]]:
    """Whole units of one task per block, at least `BLOCKS_PER_WORKER` blocks per worker where units allow it."""
    tasks: dict[tuple[Any, ...], list[PlannedEpisode]] = {}
    for episode in todo:
        tasks.setdefault((episode.unit.suite, episode.unit.task, episode.unit.perturbation), []).append(episode)
    units = max(1, len(units_of(todo)))
    longest = max(1, units // (BLOCKS_PER_WORKER * workers))
    blocks = []
    for episodes in tasks.values():
        members = units_of(episodes)
        for start in range(0, len(members), longest):
            kept = set(members[start : start + longest])
            blocks.append([episode for episode in episodes if episode.unit in kept])
    return blocks


def id_of(row: Row) -> tuple[str, str]:
    """What tells a row from an earlier row of the same episode."""
    return row["key"], row["finished_at"]


def _report(folder: ResultsFolder, seen: set[tuple[str, str]], on_row: Callable[[Row], None]) -> set[tuple[str, str]]:
    fresh = [row for row in folder.rows() if id_of(row) not in seen]
    for row in fresh:
        on_row(row)
    return {id_of(row) for row in fresh}


def _work(vla: Any, job: Job, blocks: Any, threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    policy = resolve_policy(vla, job.suite.name)
    while True:
        try:
            # The queue was filled before this process began; waiting covers the pipe's delay only.
            block = blocks.get(timeout=2)
        except queue.Empty:
            return
        run_episodes(policy, job, block)
