"""How do several processes fill one store?

Each takes a fixed part of the units, or of the tasks where there is a quota; they meet only in the folder, where every
episode is a file of its own. The parent looks at the folder.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mist_interp.core.processes import end_with_parent
from mist_interp.data.attempts import Attempts, Progress, by_task
from mist_interp.data.policy_source import PolicySource
from mist_interp.data.records import Unit
from mist_interp.data.store import RolloutStore

POLL_SECONDS = 1.0


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
    if settings["quota"] is not None:
        workers = min(workers, len(by_task(units)))
    threads = max(1, (os.cpu_count() or 1) // workers)
    parts = [f"{number}/{workers}" for number in range(workers)]
    processes = [
        context.Process(target=_work, args=(vla, suite.name, {**settings, "shard": part}, threads), daemon=True)
        for part in parts
    ]
    attempts: Attempts | None = None
    seen: Progress | None = None
    try:
        for process in processes:
            process.start()
        while True:
            alive = any(process.is_alive() for process in processes)
            if attempts is None and (Path(settings["out"]) / "manifest.json").is_file():
                attempts = Attempts.plan(RolloutStore.open(settings["out"]), units, settings["quota"])
            now = seen if attempts is None else attempts.refreshed().progress()
            if now is not None and now != seen:
                report(now)
                seen = now
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
