"""How do measured numbers get into a page that people read, and how are they written there?

A number that can be measured again stands between two comments; what the reader sees is what lies between them:

    <!-- measured: NAME -->71 of 100<!-- /measured -->

Scripts replace exactly that, and a page says in its source which of its numbers are still open. A text of several lines
(a table) gets lines of its own.

    python experiments/mini/card.py README.md                                  which numbers are still open?
    python experiments/mini/card.py README.md quickstart-minutes="9.4 min"     write one that no script fills
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mist_interp.core.files import write_atomic
from mist_interp.evaluation.statistics import wilson

OPEN = "not measured yet"
_PLACE = re.compile(r"(<!-- measured: (?P<name>[\w-]+) -->)(?P<text>.*?)(<!-- /measured -->)", re.DOTALL)
# What all ten instructions of libero_spatial have in common.
_FRAME = re.compile(r"^pick up the black bowl (?P<where>.*) and place it on the plate$")


def places(page: Path) -> dict[str, str]:
    """Name -> present text of every marked place of a page."""
    return {match["name"]: match["text"].strip() for match in _PLACE.finditer(page.read_text(encoding="utf-8"))}


def fill(page: Path, measured: Mapping[str, str]) -> list[str]:
    """Write measured texts into the places that a page has for them, and return the names that were filled.

    Args:
        page: a Markdown file.
        measured: name -> text; names that the page does not have are left out.
    """

    def replaced(match: re.Match[str]) -> str:
        text = measured.get(match["name"], match["text"])
        if match["name"] in measured and "\n" in text:
            text = f"\n\n{text.strip()}\n\n"
        return f"{match[1]}{text}{match[4]}"

    found = [name for name in places(page) if name in measured]
    if found:
        write_atomic(page, _PLACE.sub(replaced, page.read_text(encoding="utf-8")))
    return found


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is right-aligned if all of it are numbers."""
    numbers = all(str(row[0]).isdigit() or row[0] == "" for row in rows)
    rule = ["---:" if numbers else "---", *["---"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (heads, rule, *rows))


def share(successes: int, n: int) -> str:
    """`7/10 (40–89 %)`: a count with Wilson's 95 % interval; a dash when there is nothing to count."""
    if n == 0:
        return "–"
    low, high = wilson(successes, n)
    return f"{successes}/{n} ({100 * low:.0f}–{100 * high:.0f} %)"


def estimate(entry: Mapping[str, Any], *, signed: bool = False) -> str:
    """`71.0 % (61.2–79.4)`, or with a sign `−12.0 points (−20.1 to −3.9)`, of an estimate of a summary."""
    if entry["value"] is None:
        return "–"
    value, low, high = (100 * entry[end] for end in ("value", "low", "high"))
    if signed:
        return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})".replace("-", "−")
    return f"{value:.1f} % ({low:.1f}–{high:.1f})"


def p_value(p: float) -> str:
    """Three digits; tiny ones as a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def where(instruction: str) -> str:
    """What tells an instruction of libero_spatial from the others: "on the stove"."""
    match = _FRAME.match(instruction)
    return match["where"] if match else instruction


def main(page: str, *pairs: str) -> None:
    """Write `name=text` pairs into a page, and print what is still open in it."""
    measured = dict(pair.split("=", 1) for pair in pairs)
    unknown = measured.keys() - places(Path(page)).keys()
    if unknown:
        raise SystemExit(
            f"{page} has no place for {', '.join(sorted(unknown))}; it has {', '.join(places(Path(page)))}"
        )
    fill(Path(page), measured)
    for name, text in places(Path(page)).items():
        if text == OPEN:
            sys.stdout.write(f"{page}: {name} is open\n")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.stdout.write(f"{__doc__}\n")
    else:
        main(*sys.argv[1:])
