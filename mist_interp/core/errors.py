"""How does the package say that a name is wrong?

Every lookup by name (a hook, a site, a dataset, a task) fails with the same three facts: what was given, what is
possible, and the nearest match.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_LIST = 12


def suggest(given: str, possible: Iterable[str], count: int = 3) -> str:
    """Say which of the possible names are nearest to the given one.

    Args:
        given: the name that was not found.
        possible: all names that would have been found.
        count: how many near names to offer at most.

    Returns:
        ``"did you mean 'a' or 'b'?"``, or the empty string when nothing is near.
    """
    names = list(dict.fromkeys(possible))
    by_lower = {name.lower(): name for name in reversed(names)}
    close = difflib.get_close_matches(given.lower(), list(by_lower), n=count, cutoff=0.5)
    if not close:
        return ""
    *firsts, last = [repr(by_lower[name]) for name in close]
    return f"did you mean {', '.join(firsts)} or {last}?" if firsts else f"did you mean {last}?"


def listing(names: Iterable[str]) -> str:
    """Write names as one line, cut after a dozen: ``'a', 'b', ... (40 in all)``."""
    names = list(names)
    if not names:
        return "none"
    shown = ", ".join(repr(name) for name in names[:LONGEST_LIST])
    return shown if len(names) <= LONGEST_LIST else f"{shown}, ... ({len(names)} in all)"


class UnknownName(KeyError, ValueError):
    """A name that is not among the possible ones.

    Caught as ``KeyError`` or as ``ValueError``; its text is a plain sentence.

    Args:
        kind: what the name stands for, for example ``"hook"``.
        given: the name that was not found.
        possible: all names that would have been found.
    """

    def __init__(self, kind: str, given: object, possible: Iterable[str]):
        names = [str(name) for name in possible]
        parts = [f"unknown {kind} {given!r}", suggest(str(given), names), f"possible: {listing(names)}"]
        self.kind, self.given, self.possible = kind, given, names
        self.message = "; ".join(part for part in parts if part)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[UnknownName], tuple[str, object, list[str]]]:
        return type(self), (self.kind, self.given, self.possible)
