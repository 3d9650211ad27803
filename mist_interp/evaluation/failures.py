"""In which way do the episodes fail that an arm could have saved, and which of them does it save?

Of the units whose trigger came and that fail under `none`, by the way in which they fail there
(`mist_interp.data.failure_types`): how many there are, and how many each arm makes succeed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from mist_interp.core.errors import UnknownName
from mist_interp.data.failure_types import failure_type, objects_to_move
from mist_interp.evaluation.plan import REFERENCE_ARM, PlannedEpisode, Unit
from mist_interp.evaluation.recorded import recorded

Row = dict[str, Any]

COLUMN = "failure_type"
COLLIDED = "with a contact"


def way_of_failing(row: Row, queries: Iterable[Row]) -> str | None:
    """The way in which a finished episode failed; None if it did not, or in scenes that LIBERO does not know.

    Args:
        row: its row.
        queries: its query rows.
    """
    if row["success"]:
        return None
    try:
        wanted = objects_to_move(row["suite"], row["task"])
    except (UnknownName, ImportError):
        return None
    return failure_type(recorded(row, queries), wanted)


def by_failure(rows: Iterable[Row]) -> pd.DataFrame:
    """A row per way of failing, the most frequent first: `units`, `with a contact`, and per arm how many it saves."""
    arms_of: dict[Unit, dict[str, Row]] = {}
    for row in rows:
        if row["status"] == "ok":
            planned = PlannedEpisode.from_row(row)
            arms_of.setdefault(planned.unit, {})[planned.arm] = row
    table: dict[str, dict[str, int]] = {}
    for arms in arms_of.values():
        shadow = arms.get(REFERENCE_ARM)
        way = shadow[COLUMN] if shadow and shadow["triggered"] else None
        if shadow is None or way is None:
            continue
        counts = table.setdefault(way, {"units": 0, COLLIDED: 0})
        counts["units"] += 1
        counts[COLLIDED] += int(shadow["collision_1n"])
        for arm, row in arms.items():
            if arm != REFERENCE_ARM:
                counts[arm] = counts.get(arm, 0) + int(row["success"])
    found = pd.DataFrame.from_dict(table, orient="index", columns=None if table else ["units"])
    frame: Any = found.fillna(0).astype(int).sort_values("units", ascending=False)
    return frame
