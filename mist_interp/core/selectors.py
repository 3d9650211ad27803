"""How does a user point at tokens without knowing an integer position?

By a selector: a short string, or a list of them, that means the same to a cache, to an edit and to a probe, and that
can be stored in a result file. The grammar, with S a segment name of the axis at hand:

    S                    the whole segment             "vision", "wrist", "proprio", "text", "action_read", "all", ...
    S[row, col]          patches of one camera         "agentview[8, 11]", "wrist[2:5, :]"
    text:WORDS           the tokens that spell WORDS   "text:bowl", "text:black bowl"
    A.t3  A.dz  A.t3.dz  tokens of one chunk step, one action dimension, or both; A is action_read or action_slot
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int

Selector = str | Sequence[str]

_GRID = re.compile(r"^(?P<segment>\w+)\s*\[(?P<rows>[^,\]]+),(?P<cols>[^,\]]+)\]$")
_INDEX = re.compile(r"^\s*(-?\d+)\s*$")
_SLICE = re.compile(r"^\s*(-?\d+)?\s*:\s*(-?\d+)?\s*$")
_STEP = re.compile(r"^t(\d+)$")

GRAMMAR = (
    'a selector is a segment name such as "action_read", a patch "agentview[8, 11]" or "wrist[2:5, :]", '
    'words "text:bowl", or action tokens "action_read.t3.dz"'
)


@dataclass(frozen=True)
class Selection:
    """Positions on a token axis, one row per sample of the batch.

    Rows have one length so that they can index a tensor; where a sample has fewer tokens (a shorter prompt), `valid` is
    False and `index` holds 0, which must not be read.
    """

    index: Int[torch.Tensor, "batch selected"]
    valid: Bool[torch.Tensor, "batch selected"]

    @property
    def ragged(self) -> bool:
        """Whether samples of the batch have different numbers of selected tokens."""
        return not bool(self.valid.all())

    def mask(self, length: int) -> Bool[torch.Tensor, "batch {length}"]:
        """True at the selected positions of an axis of `length` tokens."""
        mask = torch.zeros(len(self.index), length, dtype=torch.bool)
        rows = torch.arange(len(self.index))[:, None].expand_as(self.index)
        mask[rows[self.valid], self.index[self.valid]] = True
        return mask

    @staticmethod
    def from_rows(rows: Sequence[Sequence[int]]) -> Selection:
        """Selection of `rows[b]` in sample b; rows may differ in length."""
        width = max((len(row) for row in rows), default=0)
        index = torch.zeros(len(rows), width, dtype=torch.long)
        valid = torch.zeros(len(rows), width, dtype=torch.bool)
        for b, row in enumerate(rows):
            index[b, : len(row)] = torch.as_tensor(list(row), dtype=torch.long)
            valid[b, : len(row)] = True
        return Selection(index, valid)


@dataclass(frozen=True)
class Target:
    """One parsed selector: a segment and at most one way to narrow it."""

    segment: str
    rows: int | slice | None = None
    cols: int | slice | None = None
    words: str | None = None
    step: int | None = None
    dim: str | None = None

    @property
    def whole(self) -> bool:
        """Whether the selector takes the segment as it is."""
        return (self.rows, self.cols, self.words, self.step, self.dim) == (None,) * 5


def parts(selector: Selector) -> tuple[str, ...]:
    """The strings of a selector, which is one or a list of them.

    Raises:
        ValueError: a number, a slice, or anything else that is no text.
    """
    listed = [selector] if isinstance(selector, str) or not isinstance(selector, Sequence) else list(selector)
    for part in listed:
        if not isinstance(part, str):
            raise ValueError(f"{part!r} is no token selector, because tokens have names here: {GRAMMAR}")
    return tuple(listed)


def parse(selector: str) -> Target:
    """Read one selector string; which segments exist is the axis' business.

    Raises:
        ValueError: the text does not follow the grammar.
    """
    if not isinstance(selector, str):
        raise ValueError(f"{selector!r} is no token selector: {GRAMMAR}")
    text = selector.strip()
    if ":" in text and "[" not in text:
        segment, words = text.split(":", 1)
        if not words.strip():
            raise ValueError(f"{selector!r} names no word: {GRAMMAR}")
        return Target(segment.strip(), words=words.strip())
    if "[" in text:
        match = _GRID.match(text)
        if match is None:
            raise ValueError(f"{selector!r} is no patch of a camera: {GRAMMAR}")
        rows, cols = _range(match["rows"], selector), _range(match["cols"], selector)
        return Target(match["segment"], rows=rows, cols=cols)
    segment, *parts = text.split(".")
    step, dim = parse_action(".".join(parts)) if parts else (None, None)
    return Target(segment, step=step, dim=dim)


def parse_action(key: str) -> tuple[int | None, str | None]:
    """Split "t3.dz", "t3" or "dz" into chunk step and dimension name.

    Raises:
        ValueError: more than one step or dimension.
    """
    step: int | None = None
    dim: str | None = None
    for part in key.split(".") if isinstance(key, str) else [""]:  # nothing but text has parts
        match = _STEP.match(part)
        if match and step is None:
            step = int(match[1])
        elif part and not match and dim is None:
            dim = part
        else:
            raise ValueError(f'{key!r} is no action token; write "t3" (step), "dz" (dimension) or "t3.dz"')
    return step, dim


def _range(text: str, selector: str) -> int | slice:
    if match := _INDEX.match(text):
        return int(match[1])
    if match := _SLICE.match(text):
        return slice(*(None if bound is None else int(bound) for bound in match.groups()))
    raise ValueError(f"{selector!r}: {text!r} is neither a number nor a range like 2:5; {GRAMMAR}")


def as_range(bounds: int | slice, size: int, what: str) -> range:
    """Positions that an index or a range picks among `size`; negative ones count from the end.

    Raises:
        IndexError: an index outside, or a range that is empty.
    """
    if isinstance(bounds, int):
        if not -size <= bounds < size:
            raise IndexError(f"{what} {bounds} is outside 0..{size - 1}")
        return range(bounds % size, bounds % size + 1)
    picked = range(size)[bounds]
    if len(picked) == 0:
        raise IndexError(f"{what} range {bounds.start}:{bounds.stop} is empty; there are {size}")
    return picked
