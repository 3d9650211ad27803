"""Which places does one cell of a patching grid exchange?

A grid is spanned by named axes, `over=("layer", "segment")`:

    layer               the layers of the site
    segment             groups of tokens: cameras, proprio, text, ... or any selectors of your own
    token               every single token of a selector, e.g. of "text"
    camera, row, col    image patches, one by one or in blocks
    head                attention heads, where the site has them

What the axes do not split is exchanged together (`tokens`, default all). A cell is a list of token positions in the run
that is patched and as many in the run that the values come from, pair by pair: the two may stand at different places
when the prompts differ in length, but must be equally many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch

from mist_interp.core.axes import PatchAxis, TokenAxis, axis_of
from mist_interp.core.errors import UnknownName
from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Site
from mist_interp.core.selectors import Selection, Selector

AXES = ("layer", "segment", "token", "camera", "row", "col", "head")
PATCHES = ("camera", "row", "col")
# Together every token of the sequence, each once.
PARTITION = ("bos", "agentview", "wrist", "proprio", "timestep", "text", "action_slot", "stop")

# What the sites hold that a grid cannot cut.
OTHER_AXES = {
    "pattern": "one number per pair of query and key, and no values of one token (`mist_interp.tracing.knockout` cuts "
    "attention)",
    "tower": "tokens inside one vision tower",
    "proprio": "the robot state, which is one token of hook_embed",
    "logits": "the logits of the read tokens alone",
    "chunk": "the steps of a chunk, behind the last token",
}


@dataclass(frozen=True)
class Split:
    """How a grid cuts the activations of one site.

    Attributes:
        over: names of the axes, in the order wanted.
        segments: selectors that are the places of the axis "segment"; None for the parts of the sequence.
        tokens: what is cut, or exchanged whole: a selector.
        heads: of the axis "head"; None for all.
        block: patches per cell along row and col.
    """

    over: tuple[str, ...]
    segments: tuple[str, ...] | None = None
    tokens: Selector = "all"
    heads: tuple[int, ...] | None = None
    block: int = 1

    @staticmethod
    def of(
        over: str | Sequence[str],
        segments: Sequence[str] | None,
        tokens: Selector,
        heads: Sequence[int] | None,
        block: int,
    ) -> Split:
        """From what a user gives: any sequences, or the name of one axis."""
        named = None if segments is None else tuple(segments)
        return Split(
            (over,) if isinstance(over, str) else tuple(over),
            named,
            tokens,
            None if heads is None else tuple(heads),
            block,
        )

    def __post_init__(self) -> None:
        for name in self.over:
            if name not in AXES:
                raise UnknownName("axis of a patching grid", name, AXES)
        if len(set(self.over)) < len(self.over):
            raise ValueError(f"a grid over {self.over} names an axis twice")
        kinds = [kind for kind in (("segment",), ("token",), PATCHES) if set(kind) & set(self.over)]
        if len(kinds) > 1:
            raise ValueError(
                f"a grid over {self.over} cuts the tokens in two ways; choose segment, token or camera/row/col"
            )
        if kinds and not set(kinds[0]) <= set(self.over):
            raise ValueError(f"a grid over image patches needs the axes camera, row and col, not only {self.over}")
        if self.segments is not None and "segment" not in self.over:
            raise ValueError(f"segments were given, but a grid over {self.over} has no axis 'segment'")
        if self.block < 1:
            raise ValueError(f"blocks of {self.block} patches")


@dataclass(frozen=True)
class Cells:
    """The places of one grid, without its layers.

    Attributes:
        labels: of every axis but "layer", outermost first; cells are numbered in this order, the last axis fastest.
        into: per part of the tokens and pair the positions that are patched.
        source: the same positions in the other run.
        heads: the head of each place on the axis "head", or None where all numbers of a token are exchanged.
    """

    labels: dict[str, list[Any]]
    into: tuple[tuple[tuple[int, ...], ...], ...]
    source: tuple[tuple[tuple[int, ...], ...], ...]
    heads: tuple[int, ...] | None

    def __len__(self) -> int:
        return prod(len(labels) for labels in self.labels.values())

    def part(self, cell: int) -> tuple[int, int | None]:
        """Which part of the tokens, and which head."""
        if self.heads is None:
            return cell, None
        return cell // len(self.heads), self.heads[cell % len(self.heads)]

    def insert(
        self, values: torch.Tensor, source: torch.Tensor, cells: Sequence[tuple[int, int]], where: Sequence[int]
    ) -> torch.Tensor:
        """Copy of `values` (row, token, ...) in which row k has cell `cells[k]` = (pair, cell) from the source.

        Args:
            values: what is patched, one row per entry of `cells`.
            source: values of the other run, (pairs of this group or 1, token, ...).
            cells: pair and cell of every row.
            where: row of `source` for every row of `values`.
        """
        row: list[int] = []
        into: list[int] = []
        taken: list[int] = []
        rows: list[int] = []
        head: list[int] = []
        for k, (pair, cell) in enumerate(cells):
            part, which = self.part(cell)
            places = self.into[part][pair]
            row += [k] * len(places)
            rows += [where[k]] * len(places)
            into += places
            taken += self.source[part][pair]
            head += [] if which is None else [which] * len(places)
        device = values.device
        at, other = (torch.tensor(pick, device=device) for pick in ((row, into), (rows, taken)))
        new = values.clone()
        if head:
            picked = torch.tensor(head, device=device)
            new[at[0], at[1], picked] = source[other[0], other[1], picked].to(new)
        else:
            new[at[0], at[1]] = source[other[0], other[1]].to(new)
        return new


def plan_cells(split: Split, site: Site, into: TokenLayout, source: TokenLayout, n_heads: int | None) -> Cells:
    """Cells of a grid at one site (of any layer).

    Args:
        split: the axes.
        site: tells whether tokens are those of the sequence or image patches.
        into: layout of the runs that are patched, one per pair.
        source: layout of the runs that the values come from.
        n_heads: heads of the site, None if its values are not split into heads.

    Raises:
        UnknownName: an axis label that does not exist.
        ValueError: a part of the tokens is not equally long in both runs of a pair; the message says what is.
    """
    axes = _axis(site, into), _axis(site, source)
    heads = _heads(split, site, n_heads)
    if "token" in split.over:
        names, found = _tokens(split.tokens, axes)
        parts: dict[str, list[Any]] = {"token": names}
    elif "camera" in split.over:
        parts, found = _blocks(split.block, axes)
    elif "segment" in split.over:
        segments = split.segments or tuple(name for name in PARTITION if name in axes[0].segments)
        parts = {"segment": list(segments)}
        found = [_both(axes, name, segments) for name in segments]
    else:
        parts, found = {}, [_both(axes, split.tokens, ())]
    labels = parts if heads is None else parts | {"head": list(heads)}
    return Cells(labels, tuple(pair[0] for pair in found), tuple(pair[1] for pair in found), heads)


def head_axis(site: Site) -> bool:
    """Whether the values of a site are (batch, token, head, ...)."""
    return site.hook.shape.strip("()").split(", ")[2:3] in (["head"], ["kv_head"])


_Places = tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
_Axes = tuple[TokenAxis, TokenAxis]


def _axis(site: Site, layout: TokenLayout) -> TokenAxis:
    if site.hook.axis not in ("sequence", "patches"):
        raise ValueError(
            f"{site} holds {OTHER_AXES[site.hook.axis]}; cells are tokens of the sequence (resid_pre, attn_out, z, "
            "hook_embed, ...) or image patches (projector.hook_out)"
        )
    return axis_of(site.hook.axis, layout)


def _heads(split: Split, site: Site, n_heads: int | None) -> tuple[int, ...] | None:
    if "head" not in split.over:
        if split.heads is not None:
            raise ValueError(f"heads were given, but a grid over {split.over} has no axis 'head'")
        return None
    if n_heads is None:
        raise ValueError(f"{site} is not split into heads; patch heads at 'z'")
    heads = tuple(range(n_heads)) if split.heads is None else split.heads
    for head in heads:
        if head not in range(n_heads):
            raise UnknownName(f"head of {site}", head, map(str, range(n_heads)))
    return heads


def _both(axes: _Axes, selector: Selector, names: Sequence[str]) -> _Places:
    into, source = (_positions(axis.select(selector)) for axis in axes)
    counts = [(len(a), len(b)) for a, b in zip(into, source, strict=True)]
    wrong = [pair for pair, (a, b) in enumerate(counts) if a != b]
    if wrong:
        a, b = counts[wrong[0]]
        fine = [name for name in names if _fits(axes, name)]
        advice = f"; equally long in both are {', '.join(fine)}: segments=(...)" if fine else ""
        raise ValueError(
            f"pair {wrong[0]} has {a} tokens of {selector!r} in the run that is patched and {b} in the other, so they "
            f"cannot be exchanged token by token{advice}"
        )
    return into, source


def _fits(axes: _Axes, name: str) -> bool:
    into, source = (_positions(axis.select(name)) for axis in axes)
    return all(len(a) == len(b) for a, b in zip(into, source, strict=True))


def _tokens(selector: Selector, axes: _Axes) -> tuple[list[Any], list[_Places]]:
    into, source = _both(axes, selector, ())
    counts = sorted({len(row) for row in into})
    if len(counts) > 1:
        raise ValueError(f"the pairs have {counts} tokens of {selector!r}: one grid needs the same number in each")
    names = [axis.labels(selector, sample) for axis in axes for sample in range(axis.batch_size)]
    labels = []
    for k in range(counts[0]):
        seen = list(dict.fromkeys(sample[k] for sample in names))
        labels.append(seen[0] if len(seen) == 1 else " | ".join(seen) if len(seen) < 4 else f"{selector} {k}")
    # Two tokens may read alike; a label names one place.
    unique: list[Any] = [name if labels.count(name) == 1 else f"{name} #{k}" for k, name in enumerate(labels)]
    places: list[_Places] = [
        (tuple((row[k],) for row in into), tuple((row[k],) for row in source)) for k in range(counts[0])
    ]
    return unique, places


def _blocks(block: int, axes: _Axes) -> tuple[dict[str, list[Any]], list[_Places]]:
    axis = axes[0]
    assert isinstance(axis, TokenLayout | PatchAxis)
    spans = [[(start, min(start + block, size)) for start in range(0, size, block)] for size in axis.grid]
    names = [[start if block == 1 else f"{start}:{stop}" for start, stop in span] for span in spans]
    found = [
        _both(axes, f"{camera}[{rows[0]}:{rows[1]}, {cols[0]}:{cols[1]}]", ())
        for camera, rows, cols in product(axis.cameras, *spans)
    ]
    return {"camera": list(axis.cameras), "row": names[0], "col": names[1]}, found


def _positions(selection: Selection) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row[ok].tolist()) for row, ok in zip(selection.index, selection.valid, strict=True))
