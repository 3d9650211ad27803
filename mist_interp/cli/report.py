"""`mist report`: one self-contained page for a results folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Command:
    """Write report.html for a results folder: tables, figures, paired films, definitions, provenance.

    All numbers are recomputed from the episode rows, so a report can be written while a run is going on.
    """

    folder: tyro.conf.Positional[Path]
    """Results folder of `mist eval`."""

    title: str | None = None
    """Headline; default: the folder's name."""

    films: int = 6
    """Paired films at most."""

    def run(self) -> int:
        """Write and name the file."""
        from mist_interp.report.page import write_report

        print(write_report(self.folder, title=self.title, max_films=self.films))
        return 0
