"""Which few episodes are worth looking at, and how are they filmed after the run?

A pair tells most where the arms part: one succeeded and another failed, or one collided and another did not.
Those units come first, from different tasks, then units with collisions, then the rest. They are replayed from
their stored actions, so filming costs nothing during the evaluation and shows exactly what was counted.
"""

from __future__ import annotations

import logging
from typing import Any

from mist_interp.data.replay import ReplayDiffers
from mist_interp.data.video import write_video
from mist_interp.evaluation.environments import EnvironmentPool, MakeEnv, make_libero_env
from mist_interp.evaluation.folder import ResultsFolder, Row
from mist_interp.evaluation.plan import PlannedEpisode, Unit
from mist_interp.evaluation.video import FRAMES_PER_SECOND, film_again

log = logging.getLogger(__name__)

SAMPLE_UNITS = 4


def telling_units(rows: list[Row], count: int = SAMPLE_UNITS) -> list[Unit]:
    """The `count` most telling units that every arm has finished, each from another task if possible."""
    arms = {row["arm"] for row in rows}
    by_unit: dict[Unit, list[Row]] = {}
    for row in rows:
        by_unit.setdefault(PlannedEpisode.from_row(row).unit, []).append(row)
    scored = []
    for unit, group in by_unit.items():
        if len(group) < len(arms) or any(row["status"] != "ok" for row in group):
            continue
        outcomes_differ = len({row["success"] for row in group}) > 1
        collisions_differ = len({row["collision_1n"] for row in group}) > 1
        collided = any(row["collision_1n"] for row in group)
        scored.append((-(4 * outcomes_differ + 2 * collisions_differ + collided), unit))
    chosen: list[Unit] = []
    ranked = [unit for _, unit in sorted(scored)]
    while ranked and len(chosen) < count:
        seen = [unit.task for unit in chosen]
        # Prefer a task that has been shown least so far; the order within it is by how telling a unit is.
        fewest = min(seen.count(unit.task) for unit in ranked)
        pick = next(unit for unit in ranked if seen.count(unit.task) == fewest)
        chosen.append(pick)
        ranked.remove(pick)
    return chosen


def film_sample(
    folder: ResultsFolder, suite: Any, count: int = SAMPLE_UNITS, *, make_env: MakeEnv = make_libero_env
) -> list[Unit]:
    """Film the telling units of a run in all arms, as far as that has not been done, and return them.

    An episode whose replay differs from its record is left out with a warning: no video is better than a wrong one.
    """
    settings = folder.config()["settings"]
    render = {"profile": settings["profile"], "resolution": settings["resolution"]}
    rows = folder.rows()
    units = telling_units(rows, count)
    pool = EnvironmentPool(suite.tasks, render, make_env)
    try:
        for row in rows:
            planned = PlannedEpisode.from_row(row)
            path = folder.video_path(planned)
            if planned.unit not in units or path.exists():
                continue
            try:
                camera = film_again(pool.get(planned.unit), folder.record(row))
            except ReplayDiffers as error:
                log.warning("no video of %s: %s", planned.key, error)
                continue
            write_video(path, camera.frames, FRAMES_PER_SECOND)
    finally:
        pool.close()
    return units
