"""How does one process run the episodes that it was given?

Each row is stored before the next episode starts. An episode that raises becomes an error row and its
environment is replaced; what cannot be stored (a full disk) ends the run, because going on would lose episodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mist_interp.core.provenance import provenance
from mist_interp.data.plan import Protocol
from mist_interp.data.video import write_video
from mist_interp.evaluation.arms import Arm
from mist_interp.evaluation.detector import Detector
from mist_interp.evaluation.environments import EnvironmentPool, MakeEnv
from mist_interp.evaluation.episode import error_row, run_episode
from mist_interp.evaluation.folder import ResultsFolder, Row
from mist_interp.evaluation.plan import PlannedEpisode
from mist_interp.evaluation.subject import model_facts
from mist_interp.evaluation.video import FRAMES_PER_SECOND, Camera

log = logging.getLogger(__name__)

# A run whose every episode crashes has a cause that no further episode will cure.
MAX_ERRORS_IN_A_ROW = 10


@dataclass(frozen=True)
class Job:
    """What a process needs beside the policy and its episodes; can be sent to another process."""

    suite: Any
    arms: tuple[Arm, ...]
    protocol: Protocol
    detector: Detector | None
    videos: str
    out: Path
    make_env: MakeEnv


def run_episodes(
    policy: Any, job: Job, todo: Sequence[PlannedEpisode], on_row: Callable[[Row], None] | None = None
) -> None:
    """Run and store the given episodes, in order, in this process."""
    folder, arms = ResultsFolder(job.out), {arm.name: arm for arm in job.arms}
    pool = EnvironmentPool(job.suite.tasks, job.protocol.render, job.make_env)
    facts = {**provenance(), **model_facts(policy), "profile": job.protocol.profile}
    errors = 0
    try:
        for planned in todo:
            camera: Camera | None = None
            queries: list[Row] = []
            try:
                env = pool.get(planned.unit)
                camera = Camera(env) if job.videos in ("all", "failures") else None
                row, queries = run_episode(
                    env,
                    policy,
                    arms[planned.arm],
                    planned,
                    instruction=job.suite.tasks[planned.unit.task].instruction,
                    max_steps=job.protocol.step_limit(job.suite),
                    open_loop_steps=job.protocol.open_loop_steps,
                    detector=job.detector,
                    on_step=camera.on_step if camera else None,
                    provenance=facts,
                )
                errors = 0
            except Exception as error:
                row, errors = error_row(planned, error, facts), errors + 1
                log.warning("%s failed: %s", planned.key, row["error"])
                pool.close()  # whatever state it was left in
            if camera and queries and (job.videos == "all" or not row["success"] or row["collision_1n"]):
                write_video(folder.video_path(planned), camera.frames, FRAMES_PER_SECOND)
            folder.store(row, queries)
            if on_row:
                on_row(row)
            if errors == MAX_ERRORS_IN_A_ROW:
                raise RuntimeError(
                    f"{errors} episodes failed one after the other, the last with {row['error']}; "
                    f"tracebacks are in {folder.rows_path}; repair the cause and run "
                    "the same again with retry_errors=True (--retry-errors)"
                )
    finally:
        pool.close()
