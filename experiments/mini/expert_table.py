"""How often does the scripted expert succeed?

The expert that the small policy learns from, on all 50 published start states of the ten tasks of libero_spatial. It
reads the simulator's state, so nothing is rendered. One row per episode in results/mini/expert/episodes.jsonl.

    python experiments/mini/expert_table.py                    run everything, or go on with it
    python experiments/mini/expert_table.py --shard 0/2        one of two processes; both share the folder
    python experiments/mini/expert_table.py --no-run --fill mist_interp/models/mini/README.md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import card
import tyro
from rich.console import Console

from mist_interp.cli.progress import duration
from mist_interp.core.files import write_atomic
from mist_interp.core.provenance import provenance
from mist_interp.data.records import Decision, EpisodeRecord
from mist_interp.data.rollout import rollout
from mist_interp.evaluation import ResultsFolder
from mist_interp.evaluation.environments import EnvironmentPool
from mist_interp.evaluation.episode import error_row
from mist_interp.evaluation.plan import PlannedEpisode, make_plan, shard_of
from mist_interp.evaluation.progress import Progress, ProgressMeter
from mist_interp.libero.env import LiberoEnv
from mist_interp.libero.expert import GRIPS, Expert, Grip
from mist_interp.libero.suite import LiberoSuite

SUITE = "libero_spatial"
ARM = "expert"
console = Console(highlight=False)


@dataclass(frozen=True)
class Settings:
    """Success of the scripted expert on every start state of libero_spatial.

    The same command goes on where it was cut; finished episodes are never run again. The table is recomputed from the
    rows.
    """

    out: Path = Path("results/mini/expert")
    """Results folder. An expert with another grip needs another one."""

    tasks: tuple[int, ...] = tuple(range(10))
    """Tasks of libero_spatial."""

    inits: tuple[int, ...] = tuple(range(50))
    """Start states of each task."""

    max_steps: int | None = None
    """Step limit; default: the suite's 220."""

    shard: str | None = None
    """Run part i of n, written i/n with i from 0, such as 0/2; all parts share the folder."""

    run: bool = True
    """With --no-run nothing is run: only the table is made from the rows that are there."""

    fill: tuple[Path, ...] = ()
    """Pages whose marked places get the numbers. Refused while episodes are missing."""


class Unseen(LiberoEnv):
    """A LIBERO task whose observation has no pictures, since the expert looks at none."""

    def observe(self) -> dict[str, Any]:
        """See `LiberoEnv`."""
        return self.proprioception()


def main(settings: Settings) -> None:
    """Run what is missing, then make the table."""
    folder = ResultsFolder(settings.out)
    if settings.run:
        run(settings, folder)
    if not folder.config_path.exists():
        raise SystemExit(f"{settings.out} holds no run yet; leave --no-run out")
    rows, planned, limit = folder.rows(), len(folder.plan()), folder.config()["settings"]["max_steps"]
    measured = texts(rows)
    console.print(f"\n{measured['expert']}", soft_wrap=True, markup=False)
    write_atomic(settings.out / "summary.json", json.dumps(measured, indent=2) + "\n")
    short = limit < LiberoSuite(SUITE).max_steps
    if len(rows) < planned or short:
        limited = f", step limit {limit}" if short else ""
        console.print(f"[yellow]partial, not a result:[/] {len(rows)} of {planned} episodes{limited}")
        if settings.fill:
            raise SystemExit("no page was filled")
    for page in settings.fill:
        console.print(f"{page}: filled {', '.join(card.fill(page, measured)) or 'nothing'}")


def run(settings: Settings, folder: ResultsFolder) -> None:
    """All episodes of this process that have no row yet."""
    suite = LiberoSuite(SUITE)
    limit = settings.max_steps or suite.max_steps
    plan = make_plan(SUITE, settings.tasks, settings.inits, [ARM])
    grips = {str(task): asdict(GRIPS.get(task, Grip())) for task in settings.tasks}
    folder.start({"suite": SUITE, "max_steps": limit, "arms": {ARM: {"kind": ARM, "grips": grips}}}, plan)
    part = shard_of(plan, settings.shard) if settings.shard else plan
    todo = folder.missing(part)
    facts = provenance()
    done = {row["key"]: row for row in folder.rows()}
    meter = ProgressMeter(part, done)
    pool = EnvironmentPool(suite.tasks, {}, make=lambda task, unit, render: Unseen(task, seed=unit.simulator_seed))
    try:
        for planned in todo:
            try:
                row = episode_row(planned, drive(pool.get(planned.unit), planned, limit), facts)
            except Exception as error:
                row = error_row(planned, error, facts)
                pool.close()  # whatever state it was left in
            folder.store(row)
            show(meter.add(row), row)
    finally:
        pool.close()


def drive(env: Unseen, planned: PlannedEpisode, max_steps: int) -> EpisodeRecord:
    """One episode of the expert; it decides anew at every control step."""
    expert: list[Expert] = []

    def act(observation: Mapping[str, Any], query: int) -> Decision:
        if query == 0:  # made after the reset: it keeps the orientation that the hand starts with
            expert[:] = [Expert(env)]
        return Decision(actions=expert[0].act()[None])

    return rollout(env, act, unit=planned.unit, instruction=env.task.instruction, max_steps=max_steps, arm=planned.arm)


def episode_row(planned: PlannedEpisode, record: EpisodeRecord, facts: Mapping[str, str]) -> dict[str, Any]:
    """What is kept of an episode."""
    return {
        **planned.as_row(),
        "status": "ok",
        "instruction": record.instruction,
        "success": record.success,
        "steps": record.steps,
        "max_steps": record.max_steps,
        "collision_1n": record.collided(1.0),
        "collision_10n": record.collided(10.0),
        "seconds": record.seconds,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "provenance": dict(facts),
    }


def show(progress: Progress, row: Mapping[str, Any]) -> None:
    """One line per episode."""
    outcome = row.get("error") or ("success" if row["success"] else "failure")
    left = duration(progress.seconds_left)
    console.print(
        f"{progress.done}/{progress.total}  {row['key']}: {outcome}, {row.get('steps', '?')} steps; {left} left"
    )


def texts(rows: list[dict[str, Any]]) -> dict[str, str]:
    """What the pages state, by the name of its place."""
    valid = [row for row in rows if row["status"] == "ok"]
    by_task: dict[int, list[dict[str, Any]]] = {}
    for row in valid:
        by_task.setdefault(row["task"], []).append(row)
    lines: list[list[object]] = [
        [task, card.where(group[0]["instruction"]), *cells(group)] for task, group in sorted(by_task.items())
    ]
    heads = ["task", "the bowl is", "success", "median steps of successes", "contact ≥ 1 N", "contact ≥ 10 N"]
    measured = {"expert": card.table(heads, [*lines, ["", "**all**", *cells(valid)]])}
    if len(rows) > len(valid):
        measured["expert"] += f"\n\n{len(rows) - len(valid)} episodes crashed and are not counted."
    if valid:
        measured["expert-success"] = card.share(successes(valid), len(valid))
        lowest = min(by_task.values(), key=lambda group: successes(group) / len(group))
        measured["expert-lowest"] = card.share(successes(lowest), len(lowest))
    return measured


def successes(rows: list[dict[str, Any]]) -> int:
    """How many succeeded."""
    return sum(bool(row["success"]) for row in rows)


def cells(rows: list[dict[str, Any]]) -> list[str]:
    """Success, speed and collisions of some episodes."""
    steps = sorted(row["steps"] for row in rows if row["success"])
    return [
        card.share(successes(rows), len(rows)),
        str(steps[len(steps) // 2]) if steps else "–",
        card.share(sum(row["collision_1n"] for row in rows), len(rows)),
        card.share(sum(row["collision_10n"] for row in rows), len(rows)),
    ]


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
