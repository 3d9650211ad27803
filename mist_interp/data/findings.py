"""How do the findings of a knockout audit stay with the episodes that they are about?

`audit.jsonl` in the folder of a store holds one line of JSON per query and event (`mist_interp.probing.audit` says
what is in it). Here a finding is a row of which only this counts: its episode, the control steps of its query (`step`)
and of its event (`event`), the `rule` by which it was made, and `asked`, a hash of what was run again. Several
processes may add lines; of several lines on one event the last one counts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mist_interp.core.files import read_json_lines

AUDIT = "audit.jsonl"

Row = Mapping[str, Any]


def read_findings(path: Path, episodes: Collection[str] | None = None) -> list[Row]:
    """The findings in a file, in the order of `sorted_findings`; an absent file has none.

    Args:
        path: of the file; a last line cut short by a crash is left out.
        episodes: only those of these episodes.
    """
    rows = read_json_lines(path)
    return sorted_findings(rows if episodes is None else (row for row in rows if row["episode"] in episodes))


def sorted_findings(rows: Iterable[Row]) -> list[Row]:
    """Rows by episode, query and event, the last one of each."""
    found = {(row["episode"], row["step"], row["event"]): row for row in rows}
    return [found[key] for key in sorted(found)]


def findings_text(rows: Iterable[Row]) -> str:
    """Content of the file; the same findings give the same text."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def asked_otherwise(ours: Iterable[Row], theirs: Iterable[Row]) -> list[str]:
    """Episodes whose findings of ours cannot stand beside theirs: made by another rule, or of other actions."""
    theirs = list(theirs)
    rules = {row["rule"] for row in theirs}
    there = {(row["episode"], row["step"]): row["asked"] for row in theirs}

    def differs(row: Row) -> bool:
        return bool(rules - {row["rule"]}) or there.get((row["episode"], row["step"]), row["asked"]) != row["asked"]

    return sorted({row["episode"] for row in ours if differs(row)})
