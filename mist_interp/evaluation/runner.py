"""How are all episodes of a paired evaluation run, so that any cut costs at most the episode in flight?

`evaluate` writes the plan, runs what has no row yet, and stores each row before the next episode starts. The
same call goes on where the last one ended; an episode that raises becomes an error row. Nothing is printed:
progress goes to a callback.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mist_interp.core.errors import UnknownName
from mist_interp.core.files import write_atomic
from mist_interp.data.perturbation import NONE
from mist_interp.data.plan import check_workers, resolve_suite
from mist_interp.data.policy_source import named_policy, resolve_policy
from mist_interp.evaluation.arms import Arm, NoEdit
from mist_interp.evaluation.caveats import (
    partial_reasons,
    placebo_arms,
    published_rate,
    statistics_warning,
    warnings_of,
)
from mist_interp.evaluation.detector import Detector
from mist_interp.evaluation.environments import MakeEnv, make_libero_env
from mist_interp.evaluation.execute import Job, Protocol, run_episodes
from mist_interp.evaluation.folder import ResultsFolder, Row, episode_table
from mist_interp.evaluation.plan import first_units, make_plan, shard_of, units_of
from mist_interp.evaluation.progress import Progress, ProgressMeter
from mist_interp.evaluation.sample import film_sample
from mist_interp.evaluation.subject import model_facts
from mist_interp.evaluation.summary import summarize
from mist_interp.evaluation.twins import reference_first
from mist_interp.evaluation.workers import run_in_processes

log = logging.getLogger(__name__)

DEFAULT_PROTOCOL = Protocol()
VIDEOS = ("none", "sample", "failures", "all")


@dataclass(frozen=True)
class Evaluation:
    """A run on disk, complete or not.

    Attributes:
        folder: its files.
        planned: episodes in the plan.
        to_run: episodes that had no row when the call began.
    """

    folder: ResultsFolder
    planned: int
    to_run: int

    def episodes(self) -> pd.DataFrame:
        """One row per finished episode."""
        return episode_table(self.folder.rows())

    def summary(self) -> dict[str, Any]:
        """Metrics with intervals, comparisons, counts; see `summarize`."""
        return summarize_folder(self.folder)


def evaluate(
    vla: Any,
    suite: Any,
    arms: Sequence[Arm] = (NoEdit(),),
    *,
    out: str | Path,
    tasks: Sequence[int] | str = "all",
    inits: Sequence[int] = tuple(range(10)),
    simulator_seeds: Sequence[int] = (0,),
    policy_seeds: Sequence[int] = (0,),
    perturbations: Sequence[str] = (NONE,),
    protocol: Protocol = DEFAULT_PROTOCOL,
    detector: Detector | None = None,
    videos: str = "none",
    limit: int | None = None,
    shard: str | None = None,
    workers: int = 1,
    retry_errors: bool = False,
    fork: bool = True,
    full_horizon: bool = False,
    dry_run: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    make_env: MakeEnv = make_libero_env,
) -> Evaluation:
    """Run all arms on the same units, or go on with it.

    Args:
        vla: the policy, or its name, folder or `PolicySource` (device, dtype, ...); `workers` > 1 need one of these.
        suite: a `LiberoSuite` or its name.
        arms: interventions; the first table compares them with the arm called `none`.
        out: results folder.
        tasks: task indices of the suite, or `all`.
        inits: init states of each task.
        simulator_seeds: seeds of the simulator; each makes further units.
        policy_seeds: seeds of the policy's noise; each makes further units.
        perturbations: what disturbs the robot, see `mist_interp.data.perturbation`; each makes further units.
        protocol: render profile, step limit and the like.
        detector: looks at every query of every arm; without one no trigger is logged.
        videos: `none`; `all` episodes; `failures` (no success, or a collision); `sample` films a few telling pairs of
            finished episodes afterwards, see `film_sample`.
        limit: run only the first `limit` units (all their arms); the summary is then marked partial.
        shard: `i/n`: this process runs the i-th of n parts; all parts share the folder.
        workers: processes; each loads its own policy, beside the one of this process.
        retry_errors: run episodes again whose row is an error.
        fork: arms that wait for the trigger begin at that of `none`, see `mist_interp.evaluation.twins`; False runs
            every episode from its start, with the same rows on a deterministic machine.
        full_horizon: hold the pose after an early end up to the step limit and count contacts there too, so that arms
            that succeed early have the same exposure.
        dry_run: write nothing, run nothing; the returned counts say what would be run.
        on_progress: called after each episode and at the start.
        make_env: builds the environment of a task.

    Raises:
        SettingsDiffer: `out` holds a run with other settings.
        ValueError: an arm or the detector was fitted on some of the units, an init state does not exist, or a number is
            none that can be run.
        UnknownName: no such policy, a task that the suite does not have, or an unknown value of `videos`.
        RuntimeError: ten episodes crashed one after the other, or a worker died.
    """
    if videos not in VIDEOS:
        raise UnknownName("value of videos", videos, VIDEOS)
    check_workers(workers)
    vla = named_policy(vla)
    suite = resolve_suite(suite)
    plan = make_plan(
        suite.name,
        _task_indices(suite, tasks),
        inits,
        [arm.name for arm in arms],
        simulator_seeds=simulator_seeds,
        policy_seeds=policy_seeds,
        perturbations=perturbations,
    )
    for episode in plan:
        suite.tasks[episode.unit.task].check_init_state(episode.unit.init_state)
    for judged in (*arms, detector):
        check_units = getattr(judged, "check_units", None)
        if check_units:
            check_units(units_of(plan))
    wanted = first_units(plan, limit) if limit is not None else plan
    part = shard_of(wanted, shard) if shard else wanted
    folder = ResultsFolder(out)
    if dry_run:
        return Evaluation(folder, len(plan), len(folder.missing(part, retry_errors=retry_errors)))
    policy = resolve_policy(vla, suite.name)
    settings = _settings(policy, suite, arms, protocol, detector)
    if full_horizon:
        settings["full_horizon"] = True
    if doubt := statistics_warning(settings):
        log.warning(doubt)
    folder.start(settings, plan, retry_errors=retry_errors)
    for arm in arms:
        if edits := getattr(arm, "edits", None):
            folder.keep_edits(arm.name, edits())
    todo = folder.missing(part, retry_errors=retry_errors)
    done = {row["key"]: row for row in folder.rows()}
    for episode in todo:
        done.pop(episode.key, None)
    meter = ProgressMeter(part, done)
    report = on_progress or (lambda _: None)
    report(meter.now())
    job = Job(suite, tuple(arms), protocol, detector, videos, folder.path, make_env, fork, full_horizon)
    todo = reference_first(todo)
    if workers > 1:
        run_in_processes(vla, job, todo, workers, lambda row: report(meter.add(row)))
    else:
        run_episodes(policy, job, todo, lambda row: report(meter.add(row)))
    with folder.locked():  # else a shard that read fewer rows could write its table over a fuller one
        folder.write_table()
    # Of several shards only the one that completes the run knows what all of it says, and which pairs tell most.
    if shard is None or not folder.missing(wanted):
        if videos == "sample":
            film_sample(folder, suite, make_env=make_env)
        write_summary(folder)
    return Evaluation(folder, len(plan), len(todo))


def summarize_folder(folder: ResultsFolder, rows: Sequence[Row] | None = None) -> dict[str, Any]:
    """Summary of what the folder holds now, or of the given rows under its settings and plan."""
    settings, plan = folder.config()["settings"], folder.plan()
    rows = folder.rows() if rows is None else rows
    return summarize(
        pd.DataFrame(list(rows)),
        tuple(dict.fromkeys(episode.arm for episode in plan)),
        planned=len(plan),
        partial=partial_reasons(settings),
        warnings=warnings_of(settings, rows),
        placebos=placebo_arms(settings),
        published=published_rate(settings),
    )


def write_summary(folder: ResultsFolder) -> dict[str, Any]:
    """Write `summary.json` and return it."""
    summary = summarize_folder(folder)
    write_atomic(folder.path / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def _settings(
    policy: Any, suite: Any, arms: Sequence[Arm], protocol: Protocol, detector: Detector | None
) -> dict[str, Any]:
    return {
        "suite": suite.name,
        "suite_max_steps": suite.max_steps,
        "model": model_facts(policy),
        **asdict(protocol),
        "max_steps": protocol.step_limit(suite),
        "detector": detector.config() if detector else None,
        "arms": {arm.name: arm.config() for arm in arms},
    }


def _task_indices(suite: Any, tasks: Sequence[int] | str) -> list[int]:
    possible = range(len(suite.tasks))
    if isinstance(tasks, str):
        if tasks != "all":
            raise UnknownName("value of tasks", tasks, ["all"])
        return list(possible)
    for task in tasks:
        if task not in possible:
            raise UnknownName(f"task of {suite.name}", task, [str(index) for index in possible])
    return list(tasks)
