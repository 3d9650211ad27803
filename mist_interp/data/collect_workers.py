"""How do several processes fill one store?

Each takes a fixed part of the units; they meet only in the folder, where every episode is a file of its own. The
parent counts the files.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mist_interp.core.processes import end_with_parent
from mist_interp.data.policy_source import PolicySource
from mist_interp.data.records import EpisodeRecord, Unit, episode_key
from mist_interp.data.store import RolloutStore

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Progress:
    """State of a collection.

    Attributes:
        done: episodes of the plan that are stored.
        total: episodes of the plan.
        last: the episode that was just stored; None at the start and when another process stored it.
    """

    done: int
    total: int
    last: EpisodeRecord | None = None


def run_in_processes(
    vla: Any,
    suite: Any,
    units: Sequence[Unit],
    settings: Mapping[str, Any],
    workers: int,
    report: Callable[[Progress], None],
) -> RolloutStore:
    """Share the units among processes, each with its own policy; `settings` are the arguments of `collect_rollouts`.

    Raises:
        ValueError: the policy is not a `PolicySource`.
        RuntimeError: a worker died; what it finished is stored.
    """
    if not isinstance(vla, PolicySource):
        raise ValueError(
            "with several workers give the policy as a name or a folder, or as a PolicySource; each loads its own"
        )
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    parts = [f"{number}/{workers}" for number in range(workers)]
    processes = [
        context.Process(target=_work, args=(vla, suite.name, {**settings, "shard": part}, threads), daemon=True)
        for part in parts
    ]
    keys = {episode_key(unit) for unit in units}
    folder = Path(settings["out"]) / "episodes"
    seen = -1
    try:
        for process in processes:
            process.start()
        while True:
            alive = any(process.is_alive() for process in processes)
            done = len(keys & {path.stem for path in folder.glob("*.parquet")})
            if done != seen:
                report(Progress(done, len(keys)))
                seen = done
            if not alive:
                break
            time.sleep(POLL_SECONDS)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {workers} workers ended early (exit codes {failed}); finished episodes are kept, "
            "the same call goes on"
        )
    return RolloutStore.open(settings["out"])


def _work(vla: PolicySource, suite: str, settings: dict[str, Any], threads: int) -> None:
    from mist_interp.data.collect import collect_rollouts

    end_with_parent()
    torch.set_num_threads(threads)
    collect_rollouts(vla, suite, **settings)
