"""What do the tokens of an activation mean where the token axis is not the multimodal sequence?

Four more axes beside `TokenLayout`, answering the same three questions (length, select, labels): image patches before
they enter the sequence, the single proprioception token, the chunk steps inside the action head, and the read-out
positions alone, where tokens are predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mist_interp.core.errors import UnknownName
from mist_interp.core.hooks import Axis
from mist_interp.core.layout import TokenLayout
from mist_interp.core.selectors import Selection, Selector, Target, as_range, parse, parts


class TokenAxis(Protocol):
    """What an activation asks of its token axis."""

    @property
    def batch_size(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def segments(self) -> tuple[str, ...]: ...

    def select(self, selector: Selector) -> Selection: ...

    def labels(self, selector: Selector = "all", sample: int = 0) -> list[str]: ...

    def __getitem__(self, samples: int | slice) -> TokenAxis: ...


@dataclass(frozen=True)
class PatchAxis:
    """Image tokens, camera after camera; per camera `prefix` class and register tokens, then the grid."""

    batch_size: int
    cameras: tuple[str, ...]
    grid: tuple[int, int]
    prefix: int = 0

    @property
    def length(self) -> int:
        """Tokens of one sample."""
        return len(self.cameras) * self._stride

    @property
    def segments(self) -> tuple[str, ...]:
        """Segment names: all, vision (without the prefix tokens), every camera, and prefix if there are any."""
        return ("all", "vision", *self.cameras, *(["prefix"] if self.prefix else []))

    def select(self, selector: Selector) -> Selection:
        """Positions of the selected tokens, the same in every sample."""
        row = [p for target in _targets(selector) for p in self._positions(target)]
        return Selection.from_rows([row] * self.batch_size)

    def labels(self, selector: Selector = "all", sample: int = 0) -> list[str]:
        """One label per token: "agentview r3c11", "wrist prefix 0"."""
        return [self._label(int(p)) for p in self.select(selector).index[sample]]

    def __getitem__(self, samples: int | slice) -> PatchAxis:
        return PatchAxis(len(as_range(samples, self.batch_size, "sample")), self.cameras, self.grid, self.prefix)

    @property
    def _stride(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]

    def _label(self, position: int) -> str:
        camera, place = divmod(position, self._stride)
        if place < self.prefix:
            return f"{self.cameras[camera]} prefix {place}"
        row, col = divmod(place - self.prefix, self.grid[1])
        return f"{self.cameras[camera]} r{row}c{col}"

    def _positions(self, target: Target) -> list[int]:
        if target.segment not in self.segments:
            raise UnknownName("token segment", target.segment, self.segments)
        if target.segment == "all" and target.whole:
            return list(range(self.length))
        if target.segment == "prefix" and target.whole:
            return [c * self._stride + k for c in range(len(self.cameras)) for k in range(self.prefix)]
        cameras = self.cameras if target.segment == "vision" else (target.segment,)
        starts = [self.cameras.index(name) * self._stride + self.prefix for name in cameras if name in self.cameras]
        if target.whole:
            return [start + k for start in starts for k in range(self.grid[0] * self.grid[1])]
        if target.rows is None or target.cols is None or target.segment not in self.cameras:
            raise ValueError(f"image patches are selected by camera, row and column, as in '{self.cameras[0]}[3, 5]'")
        rows = as_range(target.rows, self.grid[0], f"{target.segment} row")
        cols = as_range(target.cols, self.grid[1], f"{target.segment} column")
        return [starts[0] + row * self.grid[1] + col for row in rows for col in cols]


@dataclass(frozen=True)
class StepAxis:
    """A short axis whose tokens have fixed names: the proprioception token, or the steps t0, t1, ... of a chunk."""

    batch_size: int
    names: tuple[str, ...]

    @property
    def length(self) -> int:
        """Tokens of one sample."""
        return len(self.names)

    @property
    def segments(self) -> tuple[str, ...]:
        """All, and every single token."""
        return ("all", *self.names)

    def select(self, selector: Selector) -> Selection:
        """Positions of the selected tokens, the same in every sample."""
        row: list[int] = []
        for part, target in zip(parts(selector), _targets(selector), strict=True):
            if target.segment not in self.segments or not target.whole:
                raise UnknownName("token", part, self.segments)
            row += range(self.length) if target.segment == "all" else [self.names.index(target.segment)]
        return Selection.from_rows([row] * self.batch_size)

    def labels(self, selector: Selector = "all", sample: int = 0) -> list[str]:
        """Names of the selected tokens."""
        return [self.names[int(p)] for p in self.select(selector).index[sample]]

    def __getitem__(self, samples: int | slice) -> StepAxis:
        return StepAxis(len(as_range(samples, self.batch_size, "sample")), self.names)


@dataclass(frozen=True)
class ReadAxis:
    """The positions that actions are read from, and nothing else: chunk steps times dimensions, step after step."""

    layout: TokenLayout

    @property
    def batch_size(self) -> int:
        """Samples."""
        return self.layout.batch_size

    @property
    def length(self) -> int:
        """Tokens of one sample."""
        return self.layout.n_slots

    @property
    def segments(self) -> tuple[str, ...]:
        """Segment names: all and action_read, which are the same here."""
        return ("all", "action_read")

    def select(self, selector: Selector) -> Selection:
        """Positions of the selected tokens, the same in every sample."""
        row: list[int] = []
        for target in _targets(selector):
            if target.segment not in self.segments or (target.rows, target.words) != (None, None):
                raise UnknownName("token segment", target.segment, self.segments)
            row += self.layout.action_tokens(target.step, target.dim)
        return Selection.from_rows([row] * self.batch_size)

    def labels(self, selector: Selector = "all", sample: int = 0) -> list[str]:
        """One label per token: "t3.dz"."""
        names = [f"t{step}.{dim}" for step in range(self.layout.chunk) for dim in self.layout.action_names]
        return [names[int(p)] for p in self.select(selector).index[sample]]

    def __getitem__(self, samples: int | slice) -> ReadAxis:
        return ReadAxis(self.layout[samples])


def axis_of(kind: Axis, layout: TokenLayout, length: int | None = None, step: int = 0) -> TokenAxis:
    """Token axis of an activation, for a batch with this layout.

    Args:
        kind: the registry's word for the axis.
        layout: the meaning of the multimodal sequence.
        length: tokens that the activation has; needed for vision towers, checked for the others.
        step: which run of the language model within the query; base OpenVLA reads one token in each after the first.

    Raises:
        ValueError: `length` cannot be, so layout and network disagree.
    """
    axis: TokenAxis
    if layout.autoregressive and (kind == "logits" or (kind in ("sequence", "pattern") and step > 0)):
        axis = StepAxis(layout.batch_size, (f"t0.{layout.action_names[step]}",))
    elif kind in ("sequence", "pattern"):
        axis = layout
    elif kind == "logits":
        axis = ReadAxis(layout)
    elif kind in ("patches", "tower"):
        # Class and register tokens are what a tower has beyond its patches.
        prefix = 0 if length is None else max(length // layout.n_images - layout.n_patches, 0)
        axis = PatchAxis(layout.batch_size, layout.cameras, layout.grid, prefix)
    elif kind == "proprio":
        axis = StepAxis(layout.batch_size, ("proprio",))
    else:
        axis = StepAxis(layout.batch_size, tuple(f"t{step}" for step in range(layout.chunk)))
    if length is not None and axis.length != length:
        raise ValueError(f"an activation with {length} tokens on the {kind} axis, where the layout has {axis.length}")
    return axis


def _targets(selector: Selector) -> list[Target]:
    return [parse(part) for part in parts(selector)]
