"""Does a results folder say what its episodes say?

Every number of `summary.json` and of `report.html` is made again from `episodes.parquet` and compared; settings and
plan say what was asked for. A number that was changed by hand, a table that is older than the rows, or a summary of
another version of the definitions shows as a difference.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from mist_interp.evaluation.folder import ResultsFolder, rows_of_table
from mist_interp.report.page import render
from mist_interp.report.run import load_run

RELATIVE_TOLERANCE = 1e-9
_ABSENT = "nothing"


def recompute(path: str | Path) -> list[str]:
    """What differs, one line each; empty when every number follows from the rows.

    Args:
        path: a results folder with `episodes.parquet` and `summary.json`; `report.html` is checked where there is one.

    Raises:
        FileNotFoundError: the folder holds no run, or the run has no table or summary yet.
    """
    folder = ResultsFolder(path)
    for name in ("config.json", "episodes.parquet", "summary.json"):
        if not (folder.path / name).exists():
            raise FileNotFoundError(f"{folder.path} has no {name}: there is nothing to recompute from, or nothing yet")
    run = load_run(path, rows_of_table(pd.read_parquet(folder.path / "episodes.parquet")))
    stored = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    found = [f"summary.json, {line}" for line in differences(stored, json.loads(json.dumps(run.summary)))]
    page = folder.path / "report.html"
    if page.exists():
        there = _sections(page.read_text(encoding="utf-8"))
        now = _sections(render(run, run.name, max_films=0, curves=False))
        found += [f"report.html, {line}" for line in _text_differences(there, now)]
    return found


def differences(stored: Any, recomputed: Any, where: str = "") -> Iterator[str]:
    """Lines that name every leaf of two JSON values that differs."""
    if isinstance(stored, Mapping) and isinstance(recomputed, Mapping):
        for key in dict.fromkeys([*stored, *recomputed]):
            place = f"{where}.{key}" if where else str(key)
            yield from differences(stored.get(key, _ABSENT), recomputed.get(key, _ABSENT), place)
    elif isinstance(stored, list) and isinstance(recomputed, list):
        for index, (a, b) in enumerate(zip_longest(stored, recomputed, fillvalue=_ABSENT)):
            yield from differences(a, b, f"{where}[{index}]")
    elif not _same(stored, recomputed):
        yield f"{where}: {stored!r} there, {recomputed!r} recomputed"


def _same(a: Any, b: Any) -> bool:
    numbers = (int, float)
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, numbers) and isinstance(b, numbers):
        return math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-12) or (a != a and b != b)
    return bool(a == b)


class _Texts(HTMLParser):
    """Collects what a page says, by headline; pictures, films, scripts and the title of the page are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, list[str]] = {"": []}
        self._headline, self._in_headline = "", False
        self._skipped, self._depth = "", 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See `HTMLParser`."""
        if self._skipped:
            self._depth += tag == self._skipped
            return
        facts = dict(attrs)
        if tag in ("svg", "style", "script", "title", "h1") or facts.get("class") == "films":
            self._skipped, self._depth = tag, 1
        elif tag == "h2":
            self._in_headline = True
        if facts.get("title"):
            self.sections[self._headline].append(str(facts["title"]))

    def handle_endtag(self, tag: str) -> None:
        """See `HTMLParser`."""
        if tag == self._skipped:
            self._depth -= 1
            self._skipped = self._skipped if self._depth else ""
        self._in_headline = self._in_headline and tag != "h2"

    def handle_data(self, data: str) -> None:
        """See `HTMLParser`."""
        if self._skipped or not data.strip():
            return
        if self._in_headline:
            self._headline = data.strip()
            self.sections[self._headline] = []
        else:
            self.sections[self._headline].append(data.strip())


def _sections(page: str) -> dict[str, list[str]]:
    parser = _Texts()
    parser.feed(page)
    return parser.sections


def _text_differences(there: Mapping[str, list[str]], now: Mapping[str, list[str]]) -> Iterator[str]:
    for name in dict.fromkeys([*there, *now]):
        old, new, section = there.get(name), now.get(name), name or "beginning"
        if old is None or new is None:
            yield f"{section}: the section is {'missing' if old is None else 'not among the recomputed'}"
        elif len(old) != len(new):
            yield f"{section}: {len(old)} texts there, {len(new)} recomputed"
        else:
            for index, (a, b) in enumerate(zip(old, new, strict=True)):
                before = old[index - 1] if index else "its headline"
                if a != b:
                    yield f"{section}, after {before!r}: {a!r} there, {b!r} recomputed"
