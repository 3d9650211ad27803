"""How does one process run the episodes that it was given?

Each row is stored before the next episode starts. An episode that raises becomes an error row and its
environment is replaced; what cannot be stored (a full disk) ends the run, because going on would lose episodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mist_interp.core.provenance import provenance
from mist_interp.data.plan import Protocol
from mist_interp.data.replay import ReplayDiffers
from mist_interp.data.video import write_video
from mist_interp.evaluation.arms import Arm, NoEdit
from mist_interp.evaluation.detector import Detector
from mist_interp.evaluation.environments import EnvironmentPool, MakeEnv
from mist_interp.evaluation.episode import Ran, error_row, now, run_episode
from mist_interp.evaluation.folder import ResultsFolder, Row
from mist_interp.evaluation.plan import REFERENCE_ARM, PlannedEpisode
from mist_interp.evaluation.subject import model_facts
from mist_interp.evaluation.twins import (
    Origin,
    Shadow,
    Shadows,
    copied_row,
    gated_names,
    remembers,
)
from mist_interp.evaluation.video import Camera

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
    fork: bool = True
    full_horizon: bool = False


def run_episodes(
    policy: Any, job: Job, todo: Iterable[PlannedEpisode], on_row: Callable[[Row], None] | None = None
) -> None:
    """Run and store the given episodes in this process, in their order (`twins.reference_first`)."""
    runner = _Runner(policy, job)
    errors = 0
    try:
        for planned in todo:
            try:
                row, queries = runner.run(planned)
                errors = 0
            except Exception as error:
                row, queries, errors = error_row(planned, error, runner.facts), [], errors + 1
                log.warning("%s failed: %s", planned.key, row["error"])
                runner.pool.close()  # whatever state it was left in
            runner.store(planned, row, queries)
            if on_row:
                on_row(row)
            if errors == MAX_ERRORS_IN_A_ROW:
                raise RuntimeError(
                    f"{errors} episodes failed one after the other, the last with {row['error']}; "
                    f"tracebacks are in {runner.folder.rows_path}; repair the cause and run "
                    "the same again with retry_errors=True (--retry-errors)"
                )
    finally:
        runner.pool.close()


class _Runner:
    """Runs one episode after the other and remembers what later arms of the unit can go on from."""

    def __init__(self, policy: Any, job: Job) -> None:
        self._policy, self._job = policy, job
        self.folder = ResultsFolder(job.out)
        self._arms: dict[str, Arm] = {REFERENCE_ARM: NoEdit()} | {arm.name: arm for arm in job.arms}
        self.pool = EnvironmentPool(job.suite.tasks, job.protocol.render, job.make_env)
        self.facts = {**provenance(), **model_facts(policy), "profile": job.protocol.profile}
        self._gated = gated_names(job.arms) if job.fork else frozenset()
        self._shadows = Shadows(self.folder, forgetful=remembers(job.detector))
        self._films = job.videos in ("all", "failures")
        self._camera: Camera | None = None

    def run(self, planned: PlannedEpisode) -> tuple[Row, list[Row]]:
        """The row and the queries of an episode, from its start or from the trigger of `none`."""
        job, self._camera = self._job, None
        shadow = self._shadows.of(planned.unit) if planned.arm in self._gated else None
        if shadow and shadow.moment is None:
            return copied_row(shadow, planned, self.facts, now()), list(shadow.queries)
        env = self.pool.get(planned.unit)
        self._camera = Camera(env) if self._films else None
        origin = self._origin(shadow, env)
        ran = self._run(
            env,
            planned,
            max_steps=job.protocol.step_limit(job.suite),
            on_step=self._camera.on_step if self._camera else None,
            origin=origin,
            keep_trigger=planned.arm == REFERENCE_ARM and bool(self._gated),
            full_horizon=job.full_horizon,
        )
        if planned.arm == REFERENCE_ARM:
            self._shadows.keep(planned.unit, Shadow(ran.row, ran.queries, ran.moment))
        return ran.row, ran.queries

    def _run(self, env: Any, planned: PlannedEpisode, **options: Any) -> Ran:
        job = self._job
        return run_episode(
            env,
            self._policy,
            self._arms[planned.arm],
            planned,
            instruction=job.suite.tasks[planned.unit.task].instruction,
            open_loop_steps=job.protocol.open_loop_steps,
            detector=job.detector,
            provenance=self.facts,
            **options,
        )

    def _origin(self, shadow: Shadow | None, env: Any) -> Origin | None:
        if shadow is None:
            return None
        try:
            if shadow.forgotten:
                self._live_again(shadow, env)
            return shadow.bring(env, self._camera.on_step if self._camera else None)
        except ReplayDiffers as error:
            log.warning("%s; this unit's arms are run from the start", error)
            self._shadows.keep(PlannedEpisode.from_row(shadow.row).unit, None)
            if self._camera:
                self._camera = Camera(env)
            return None

    def _live_again(self, shadow: Shadow, env: Any) -> None:
        """Run `none` up to its trigger once more, for what the detector knew there.

        Raises:
            ReplayDiffers: it comes out otherwise.
        """
        assert shadow.moment
        last = shadow.queries[shadow.moment.query]["step"] + 1
        ran = self._run(env, PlannedEpisode.from_row(shadow.row), max_steps=last, keep_trigger=True)
        if ran.moment is None or ran.row["prefix_hash"] != shadow.row["prefix_hash"]:
            raise ReplayDiffers(f"{shadow.row['key']} does not come out as it is stored up to its trigger")
        shadow.moment, shadow.forgotten = ran.moment, False

    def store(self, planned: PlannedEpisode, row: Row, queries: list[Row]) -> None:
        """Keep a finished episode, its film first.

        Raises:
            OSError: see `ResultsFolder.store`.
        """
        wanted = self._job.videos == "all" or not row.get("success") or row["collision_1n"]
        if self._films and queries and wanted:
            if self._camera:
                write_video(self.folder.video_path(planned), self._camera.frames)
            else:
                self.folder.copy_video(PlannedEpisode(planned.unit, REFERENCE_ARM), planned)
        self.folder.store(row, queries)
