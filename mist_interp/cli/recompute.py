"""`mist recompute`: do the numbers of a results folder follow from its episodes?"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

SHOWN = 40


@dataclass(frozen=True)
class Command:
    """Make every number of summary.json and report.html again from episodes.parquet, and list what differs.

    The exit code is 1 when something does.
    """

    folder: tyro.conf.Positional[Path]
    """Results folder of `mist eval`."""

    def run(self) -> int:
        """Compare and print."""
        from mist_interp.report.recomputation import recompute

        found = recompute(self.folder)
        if not found:
            print(f"{self.folder}: every number follows from episodes.parquet")
            return 0
        listed = "\n".join(f"  {line}" for line in found[:SHOWN])
        more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        print(f"{self.folder}: {len(found)} differences\n{listed}{more}", file=sys.stderr)
        return 1
