"""In which way did an episode fail?

Read off the record alone: the paths of the objects and of the hand, and what was let go. One type per failed episode,
the first that holds:

    wrong object    an object was lifted that the goal does not want anywhere
    carrying        one that it wants somewhere is still up in the air at the step limit
    dropped         one was lifted and let go, and the episode did not succeed
    missed grasp    none was lifted, and the gripper closed within reach of one
    not reached     none was lifted, and the gripper never closed within reach of one
    nothing to move the goal only wants something opened, closed or turned

Where it misleads: poses are known at queries only, so a lift that begins and ends between two of them is seen by its
release alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from mist_interp.data.records import EpisodeRecord
from mist_interp.data.store import RolloutStore

WRONG_OBJECT, DROPPED, CARRYING = "wrong object", "dropped", "carrying"
MISSED_GRASP, NOT_REACHED, SUCCESS = "missed grasp", "not reached", "success"
NOTHING_TO_MOVE = "nothing to move"
FAILURE_TYPES = (WRONG_OBJECT, CARRYING, DROPPED, MISSED_GRASP, NOT_REACHED, NOTHING_TO_MOVE)

LIFTED = 0.03  # m above where the object stood at the first query
REACH = 0.08  # m between the hand and the origin of an object
_BODY = "_main"


def failure_type(episode: EpisodeRecord, to_move: Collection[str]) -> str:
    """How the episode ended: one of `FAILURE_TYPES`, or `success`.

    Args:
        episode: its record.
        to_move: names of the objects that the goal wants somewhere, as in the observations.

    Raises:
        ValueError: the record does not list one of them.
    """
    if episode.success:
        return SUCCESS
    heights = {name: [query.objects[name][2] for query in episode.queries] for name in episode.queries[0].objects}
    if not to_move:
        return NOTHING_TO_MOVE
    wanted = [name for name in heights if name in to_move]
    if len(wanted) < len(to_move):
        raise ValueError(f"{episode.key} records {sorted(heights)}, not all of {sorted(to_move)}")
    raised = {name: np.array(z) - z[0] > LIFTED for name, z in heights.items()}
    let_go = {release.body.removesuffix(_BODY) for release in episode.releases if release.lifted}
    lifted = {name for name, up in raised.items() if up.any()} | (let_go & heights.keys())
    if lifted - set(wanted):
        return WRONG_OBJECT
    if any(raised[name][-1] for name in wanted):
        return CARRYING
    if lifted:
        return DROPPED
    return MISSED_GRASP if any(_closed_near(episode, name) for name in wanted) else NOT_REACHED


def failure_types(
    store: RolloutStore, to_move: Mapping[tuple[str, int], Collection[str]] | None = None
) -> pd.DataFrame:
    """Types of all episodes of a store, in its order.

    Args:
        store: recorded episodes.
        to_move: (suite, task) -> names of the objects that the goal wants somewhere; None reads LIBERO's task files.

    Returns:
        Columns `episode`, `suite`, `task`, `perturbation`, `type`, `collided` (a forbidden contact of 1 N or more).
    """
    store.check_outcomes()
    rows: list[dict[str, Any]] = []
    for key in store.keys:
        episode = store.episode(key)
        unit = episode.unit
        place = (unit.suite, unit.task)
        names = objects_to_move(*place) if to_move is None else to_move[place]
        rows.append(
            {
                "episode": key,
                "suite": unit.suite,
                "task": unit.task,
                "perturbation": unit.perturbation,
                "type": failure_type(episode, names),
                "collided": episode.collided(),
            }
        )
    return pd.DataFrame(rows)


@lru_cache
def objects_to_move(suite: str, task: int) -> tuple[str, ...]:
    """Names of the objects that the goal of a LIBERO task wants somewhere."""
    from mist_interp.libero.suite import LiberoSuite

    return LiberoSuite(suite).tasks[task].to_move


def _closed_near(episode: EpisodeRecord, name: str) -> bool:
    for query in episode.queries:
        closes = query.executed[:, 6] > 0
        hand = query.robot_state[None, :3] if query.hand is None else query.hand[:, :3]
        near = np.linalg.norm(hand - query.objects[name][:3], axis=1) < REACH
        if np.any(closes & near):
            return True
    return False
