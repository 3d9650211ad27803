"""Which token of the multimodal sequence is which?

The sequence that enters block 0 of an OpenVLA-OFT policy, for a prompt of L ids (BOS first, the closing id 29871 last):

    bos | agentview   | wrist       | proprio | timestep | ids 1..L-1 | slots       | stop | padding
     1    rows x cols   rows x cols   0 or 1    0 or 1     L - 1        chunk x dim   1

Every segment has a name, so that no user ever handles an integer position. The two that look alike must be kept apart:
`action_slot` are the placeholders themselves, `action_read` are the positions whose states the action head reads, one
to the left, because the network was trained to predict token k + 1 at position k. The first read position is the last
prompt token.

Base OpenVLA has no slots and no stop; its prefill ends with the prompt, whose last token predicts the first action
token.

Source: Kim, Finn and Liang 2025 (OpenVLA-OFT), `predict_action` of the published model code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Int

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.errors import UnknownName
from mist_interp.core.regions import covered
from mist_interp.core.selectors import Selection, Selector, Target, as_range, parse, parts

CAMERAS = ("agentview", "wrist")
SEGMENTS = ("all", "bos", "vision", "proprio", "timestep", "text", "action_slot", "action_read", "stop")


@dataclass(frozen=True)
class TokenLayout:
    """Names of the tokens of a batch of sequences; immutable, comparable, made by `TokenLayout.build`.

    `prompt_lengths[b]` counts the prompt ids of sample b as the network gets them, BOS and the closing 29871 included.
    Samples may differ in prompt length; they are padded on the right, after the stop token.
    """

    prompt_lengths: tuple[int, ...]
    n_images: int
    grid: tuple[int, int]
    use_proprio: bool
    diffusion: bool = False
    chunk: int = 8
    action_dim: int = 7
    words: tuple[tuple[str, ...], ...] | None = None
    autoregressive: bool = False

    @staticmethod
    def build(
        prompt_lengths: Sequence[int],
        n_images: int,
        grid: tuple[int, int],
        use_proprio: bool,
        diffusion: bool = False,
        chunk: int = 8,
        action_dim: int = 7,
        words: Sequence[Sequence[str]] | None = None,
        autoregressive: bool = False,
    ) -> TokenLayout:
        """Layout of a batch.

        Args:
            prompt_lengths: prompt ids per sample, BOS and the appended 29871 included, placeholders and stop not.
            n_images: cameras in sequence order; 1 is agentview alone, 2 adds the wrist.
            grid: (rows, cols) of patches per camera, row-major, (16, 16) in the published checkpoints.
            use_proprio: whether one proprioception token follows the patches.
            diffusion: whether one timestep token follows the proprioception (diffusion head only).
            chunk: action steps predicted at once.
            action_dim: numbers per action step.
            words: per sample the text of prompt ids 1..L-1, one piece per id ("▁" counts as a space), for `find`.
            autoregressive: base OpenVLA: no slots, no stop.

        Raises:
            ValueError: a size that cannot be, or `words` that do not match `prompt_lengths`.
        """
        lengths = tuple(int(length) for length in prompt_lengths)
        if not lengths or min(lengths) < 2:
            raise ValueError(f"prompt lengths {lengths}: every sample needs BOS and at least one more id")
        if n_images < 1 or min(grid) < 1 or chunk < 1 or action_dim < 1:
            raise ValueError(f"{n_images} images of {grid} patches, chunk {chunk} x {action_dim}: none may be below 1")
        pieces = None if words is None else tuple(tuple(sample) for sample in words)
        if pieces is not None and tuple(len(sample) + 1 for sample in pieces) != lengths:
            found = tuple(len(sample) for sample in pieces)
            raise ValueError(f"words has {found} pieces, the prompts have {lengths} ids: one piece per id after BOS")
        rows, cols = grid
        return TokenLayout(
            lengths, n_images, (int(rows), int(cols)), use_proprio, diffusion, chunk, action_dim, pieces, autoregressive
        )

    # -- sizes ------------------------------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """Samples."""
        return len(self.prompt_lengths)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras in sequence order: agentview, wrist, camera2, ..."""
        return tuple(CAMERAS[i] if i < len(CAMERAS) else f"camera{i}" for i in range(self.n_images))

    @property
    def n_patches(self) -> int:
        """Patches of one camera."""
        return self.grid[0] * self.grid[1]

    @property
    def n_extra(self) -> int:
        """Tokens between BOS and the text (patches, proprioception, timestep): P in the papers' arithmetic."""
        return self.n_images * self.n_patches + self.use_proprio + self.diffusion

    @property
    def n_slots(self) -> int:
        """Action placeholders per sample (0 for base OpenVLA)."""
        return 0 if self.autoregressive else self.chunk * self.action_dim

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens per sample, without padding."""
        tail = 0 if self.autoregressive else self.n_slots + 1
        return tuple(self.n_extra + length + tail for length in self.prompt_lengths)

    @property
    def length(self) -> int:
        """Tokens of the padded batch: the size of the token axis."""
        return max(self.lengths)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the action dimensions; d0, d1, ... for robots that do not have seven."""
        return ACTION_NAMES if self.action_dim == len(ACTION_NAMES) else tuple(f"d{i}" for i in range(self.action_dim))

    @property
    def segments(self) -> tuple[str, ...]:
        """Segment names that this layout has."""
        have = {"proprio": self.use_proprio, "timestep": self.diffusion}
        have |= {"action_slot": not self.autoregressive, "stop": not self.autoregressive}
        return tuple(name for name in (*SEGMENTS, *self.cameras) if have.get(name, True))

    # -- selecting --------------------------------------------------------------------------------------------------

    def select(self, selector: Selector) -> Selection:
        """Positions of the selected tokens, in the order of the selector.

        Raises:
            UnknownName: no such segment, dimension or word here; the message names the nearest.
            IndexError: a patch or chunk step outside.
            ValueError: the selector does not follow the grammar (`mist_interp.core.selectors`).
        """
        return _select(self, parts(selector))

    def mask(self, selector: Selector) -> Bool[torch.Tensor, "batch {self.length}"]:
        """True at the selected tokens."""
        return self.select(selector).mask(self.length)

    @property
    def attention_mask(self) -> Bool[torch.Tensor, "batch {self.length}"]:
        """True where a sample has a token, False at its padding."""
        return self.mask("all")

    def action_grid(self, selector: str) -> Int[torch.Tensor, "batch {self.chunk} {self.action_dim}"]:
        """Positions of "action_read" or "action_slot", reshaped to (batch, chunk, dim)."""
        if selector not in ("action_read", "action_slot"):
            raise UnknownName("segment with a (chunk, dim) grid", selector, ["action_read", "action_slot"])
        if self.autoregressive:
            raise ValueError("base OpenVLA generates action tokens one by one: its prefill has no (chunk, dim) grid")
        return self.select(selector).index.reshape(self.batch_size, self.chunk, self.action_dim)

    def find(self, words: str) -> Selection:
        """Prompt tokens that spell `words` (any case, whole words), all occurrences.

        Raises:
            UnknownName: no prompt of the batch, or not every one, has these words.
            ValueError: the layout was built without the text of the tokens.
        """
        return Selection.from_rows([self._find(words, b) for b in range(self.batch_size)])

    def patch(self, camera: str, row: int, col: int) -> str:
        """Selector of one patch, rows and columns counted from either end: "agentview[3, 5]".

        Raises:
            UnknownName: no such camera.
            IndexError: a row or column outside.
        """
        self._demand_camera(camera)
        (row,), (col,) = as_range(row, self.grid[0], f"{camera} row"), as_range(col, self.grid[1], f"{camera} column")
        return f"{camera}[{row}, {col}]"

    def region(self, camera: str, where: Any, cover: float = 0.5) -> tuple[str, ...]:
        """Selectors of the patches that a part of the picture covers, for `tokens=`.

        Args:
            camera: whose patches.
            where: a box (top, left, bottom, right) in fractions of the picture, from 0 at the top left to 1; or a mask
                (height, width), array or tensor, not 0 where the picture counts. The picture is the one that the
                network sees: upright, and cropped if the policy crops its frames.
            cover: share of a patch's area that must be covered.

        Raises:
            UnknownName: no such camera.
            ValueError: a box or mask that cannot be, or one that covers no patch.
        """
        self._demand_camera(camera)
        shares = covered(where, self.grid)
        chosen = [tuple(place) for place in (shares >= max(cover, 1e-9)).nonzero().tolist()]
        if not chosen:
            raise ValueError(
                f"no patch of {camera} is covered by at least {cover:g}; the best has {float(shares.max()):.2f}: "
                "lower `cover`"
            )
        return tuple(self.patch(camera, row, col) for row, col in chosen)

    def labels(self, selector: Selector = "all", sample: int = 0) -> list[str]:
        """One readable label per selected token of one sample: "agentview r3c11", "'bowl'", "read t0.dz"."""
        self.select(selector)  # refuses parts that overlap
        names, found = _labels(self, sample), []
        for part in parts(selector):
            selection = self.select(part)
            positions = selection.index[sample][selection.valid[sample]].tolist()
            if parse(part).segment == "action_read" and not self.autoregressive:
                first = self._span("action_read", sample).start
                found += [f"read {self._action_label(position - first)}" for position in positions]
            else:
                found += [names[position] for position in positions]
        return found

    # -- batches ----------------------------------------------------------------------------------------------------

    def __getitem__(self, samples: int | slice) -> TokenLayout:
        """Layout of some samples; the batch axis stays. Padding shrinks to the longest sample kept."""
        span = as_range(samples, self.batch_size, "sample")
        words = None if self.words is None else tuple(self.words[b] for b in span)
        return self._with([self.prompt_lengths[b] for b in span], words)

    def _with(self, lengths: Sequence[int], words: Sequence[Sequence[str]] | None) -> TokenLayout:
        shape = (self.n_images, self.grid, self.use_proprio, self.diffusion, self.chunk, self.action_dim)
        return TokenLayout.build(lengths, *shape, words, self.autoregressive)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TokenLayout:
        """Inverse of `to_dict`, also after a round trip through JSON."""
        return TokenLayout.build(**values)

    # -- arithmetic -------------------------------------------------------------------------------------------------

    def _span(self, segment: str, sample: int) -> range:
        """Positions of a whole segment in one sample."""
        if segment not in self.segments:
            raise UnknownName("token segment", segment, self.segments)
        patches, text = self.n_patches, 1 + self.n_extra
        slots = text + self.prompt_lengths[sample] - 1
        camera = 1 + patches * self.cameras.index(segment) if segment in self.cameras else 0
        read = range(slots - 1, slots) if self.autoregressive else range(slots - 1, slots - 1 + self.n_slots)
        if segment in self.cameras:
            return range(camera, camera + patches)
        after_vision = 1 + patches * self.n_images
        spans = {
            "all": range(self.lengths[sample]),
            "bos": range(1),
            "vision": range(1, after_vision),
            "proprio": range(after_vision, after_vision + 1),
            "timestep": range(after_vision + self.use_proprio, after_vision + self.use_proprio + 1),
            "text": range(text, slots),
            "action_slot": range(slots, slots + self.n_slots),
            "action_read": read,
            "stop": range(slots + self.n_slots, slots + self.n_slots + 1),
        }
        return spans[segment]

    def _positions(self, target: Target, sample: int) -> list[int]:
        span = self._span(target.segment, sample)
        if target.words is not None:
            if target.segment != "text":
                raise UnknownName("segment with words", target.segment, ["text"])
            return self._find(target.words, sample)
        if target.rows is not None and target.cols is not None:
            self._demand_camera(target.segment)
            rows = as_range(target.rows, self.grid[0], f"{target.segment} row")
            cols = as_range(target.cols, self.grid[1], f"{target.segment} column")
            return [span[row * self.grid[1] + col] for row in rows for col in cols]
        if target.step is not None or target.dim is not None:
            self.action_grid(target.segment)  # raises where there is no such grid
            return [span[k] for k in self.action_tokens(target.step, target.dim)]
        return list(span)

    def action_tokens(self, step: int | None, dim: str | None) -> list[int]:
        """Places 0..chunk*dim-1 of a chunk step, a dimension, or one of both, in chunk-major order."""
        if dim is not None and dim not in self.action_names:
            raise UnknownName("action dimension", dim, self.action_names)
        steps = range(self.chunk) if step is None else as_range(step, self.chunk, "chunk step")
        dims = range(self.action_dim) if dim is None else [self.action_names.index(dim)]
        return [s * self.action_dim + d for s in steps for d in dims]

    def _find(self, words: str, sample: int) -> list[int]:
        if self.words is None:
            raise ValueError(f"cannot find {words!r}: this layout was built without the text of the prompt tokens")
        pieces = [piece.replace("▁", " ").lower() for piece in self.words[sample]]
        text, wanted = "".join(pieces), words.lower().strip()
        owner = [k for k, piece in enumerate(pieces) for _ in piece]
        found: list[int] = []
        start = text.find(wanted)
        while start >= 0:
            end = start + len(wanted)
            whole = not text[start - 1 : start].isalnum() and not text[end : end + 1].isalnum()
            if whole:
                found += [k for k in dict.fromkeys(owner[start:end]) if k not in found]
            start = text.find(wanted, start + 1)
        if not found:
            raise UnknownName(f"word in the prompt {text.strip()!r}", words, dict.fromkeys(text.split()))
        return [1 + self.n_extra + k for k in found]

    def _demand_camera(self, camera: str) -> None:
        if camera not in self.cameras:
            raise UnknownName("camera", camera, self.cameras)

    def _action_label(self, place: int) -> str:
        return f"t{place // self.action_dim}.{self.action_names[place % self.action_dim]}"


@lru_cache(maxsize=512)
def _select(layout: TokenLayout, selector: tuple[str, ...]) -> Selection:
    """Cached, because a closed loop asks the same question at every query."""
    targets = [parse(part) for part in selector]
    if not targets:
        raise ValueError(f"an empty list of selectors selects nothing; this sequence has {', '.join(layout.segments)}")
    rows = []
    for sample in range(layout.batch_size):
        row = [position for target in targets for position in layout._positions(target, sample)]
        if len(set(row)) < len(row) and len(targets) > 1:
            raise ValueError(f"{list(selector)} selects some tokens twice: its parts overlap")
        rows.append(row)
    return Selection.from_rows(rows)


@lru_cache(maxsize=64)
def _labels(layout: TokenLayout, sample: int) -> tuple[str, ...]:
    names = ["pad"] * layout.length
    for segment in ("bos", "proprio", "timestep", "stop"):
        if segment in layout.segments:
            names[layout._span(segment, sample)[0]] = segment
    for camera in layout.cameras:
        for k, position in enumerate(layout._span(camera, sample)):
            names[position] = f"{camera} r{k // layout.grid[1]}c{k % layout.grid[1]}"
    for k, position in enumerate(layout._span("text", sample)):
        names[position] = f"'{layout.words[sample][k].replace('▁', ' ').strip()}'" if layout.words else f"text {k}"
    if not layout.autoregressive:
        for k, position in enumerate(layout._span("action_slot", sample)):
            names[position] = f"slot {layout._action_label(k)}"
    return tuple(names)
