"""What does a report need to know of a results folder?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mist_interp.core.errors import listing
from mist_interp.evaluation.folder import ResultsFolder, Row
from mist_interp.evaluation.plan import PlannedEpisode, Unit
from mist_interp.evaluation.runner import summarize_folder


@dataclass(frozen=True)
class Run:
    """A results folder, read once.

    Attributes:
        folder: its files.
        settings: what was asked for.
        provenance: the software of the first start; `summary["warnings"]` says where episodes have another.
        summary: recomputed from the rows, so that a report never shows an old one.
        rows: episode rows in the order of the plan.
        arms: names in the order of the plan.
    """

    folder: ResultsFolder
    settings: Row
    provenance: Row
    summary: Row
    rows: tuple[Row, ...]
    arms: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.path.resolve().name

    @staticmethod
    def planned(row: Row) -> PlannedEpisode:
        """The episode that a row is about."""
        return PlannedEpisode.from_row(row)

    def row(self, arm: str, unit: Unit) -> Row | None:
        """The row of a unit under an arm, None when it has not run."""
        key = PlannedEpisode(unit, arm).key
        return next((row for row in self.rows if row["key"] == key), None)

    def filmed_units(self) -> list[Unit]:
        """Units with a video in every arm, in the order of the plan."""
        units: dict[Unit, int] = {}
        for row in self.rows:
            planned = self.planned(row)
            if row["status"] == "ok" and self.folder.video_path(planned).exists():
                units[planned.unit] = units.get(planned.unit, 0) + 1
        return [unit for unit, count in units.items() if count == len(self.arms)]

    def queries(self, arm: str, unit: Unit) -> pd.DataFrame:
        """One row per policy query of an episode."""
        return self.folder.queries(PlannedEpisode(unit, arm))


def load_run(path: str | Path, rows: Sequence[Row] | None = None) -> Run:
    """Read a results folder.

    Args:
        path: the folder.
        rows: its episode rows, read from elsewhere; default: from `episodes.jsonl`.

    Raises:
        FileNotFoundError: the folder holds no run; names the ones beside it.
    """
    folder = ResultsFolder(path)
    if not folder.config_path.exists():
        near = sorted(str(found.parent) for found in Path(path).parent.glob("*/config.json"))
        raise FileNotFoundError(f"{path} holds no evaluation run (no config.json); runs beside it: {listing(near)}")
    config = folder.config()
    arms = tuple(dict.fromkeys(episode.arm for episode in folder.plan()))
    rows = folder.rows() if rows is None else rows
    return Run(folder, config["settings"], config["provenance"], summarize_folder(folder, rows), tuple(rows), arms)
