"""An episode of a results folder, as data collection would have recorded it.

So that what is known of recorded episodes (how they failed, how to bring a simulator to one of their moments) holds for
those of an evaluation too. Activations, and the robot's state as the policy saw it, are not kept there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mist_interp.data.records import EpisodeRecord, QueryRecord, ReleaseRecord
from mist_interp.data.tables import read_contact
from mist_interp.evaluation.plan import PlannedEpisode


def recorded(row: Mapping[str, Any], queries: Iterable[Mapping[str, Any]]) -> EpisodeRecord:
    """The record of a finished episode.

    Args:
        row: its row.
        queries: its query rows.
    """
    planned = PlannedEpisode.from_row(dict(row))
    return EpisodeRecord(
        planned.unit,
        row["instruction"],
        bool(row["success"]),
        row["steps"],
        row["max_steps"],
        tuple(_query(query) for query in queries),
        tuple(read_contact(event) for event in row["events"]),
        tuple(ReleaseRecord(**release) for release in row["releases"]),
        arm=planned.arm,
        seconds=row["seconds"],
        provenance=row["provenance"],
    )


def _query(row: Mapping[str, Any]) -> QueryRecord:
    return QueryRecord(
        index=row["query"],
        step=row["step"],
        chunk=_matrix(row["chunk"]),
        executed=_matrix(row["executed"]),
        robot_state=np.full(9, np.nan),
        objects={name: np.asarray(pose) for name, pose in (row["objects"] or {}).items()},
        hand=None if row["hand"] is None else _matrix(row["hand"]),
        state_hash=row["state_hash"],
    )


def _matrix(rows: Iterable[Any]) -> Any:
    return np.array([list(row) for row in rows], dtype=np.float64)
