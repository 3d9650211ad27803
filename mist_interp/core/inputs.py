"""What does a policy receive?

One record of tensors with a leading batch axis. The prompt is what the tokenizer gives; tokens that the network itself
adds (the lone space, the action placeholders, the stop token) are not part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class PolicyInputs:
    """The tensors of one query, or of a batch of queries.

    Attributes:
        input_ids: (batch, tokens), the prompt with BOS first, right-padded.
        attention_mask: (batch, tokens), 1 for prompt tokens, 0 for padding.
        pixel_values: (batch, 6 * images, height, width), per image three channels for each of the two vision towers.
        proprio: (batch, 8), raw robot state (position in m, axis-angle in rad, two finger positions in m), or None.
        noise: (batch, chunk, dim), where a diffusion head starts; None draws it from torch's global generator.
    """

    input_ids: Int[Tensor, "batch tokens"]
    attention_mask: Int[Tensor, "batch tokens"]
    pixel_values: Float[Tensor, "batch channels height width"]
    proprio: Float[Tensor, "batch state"] | None = None
    noise: Float[Tensor, "batch chunk dim"] | None = None

    def __post_init__(self) -> None:
        ranks = {"input_ids": 2, "attention_mask": 2, "pixel_values": 4, "proprio": 2, "noise": 3}
        for name, rank in ranks.items():
            value = getattr(self, name)
            if value is None and name in ("proprio", "noise"):
                continue
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, not {type(value).__name__}")
            if value.ndim != rank:
                raise ValueError(f"{name} has shape {tuple(value.shape)}; it must have {rank} axes, batch first")
            if value.shape[0] != self.input_ids.shape[0]:
                raise ValueError(
                    f"{name} has {value.shape[0]} rows but input_ids has {self.input_ids.shape[0]}: "
                    "the batch axis must be the same everywhere"
                )
        if self.attention_mask.shape != self.input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(self.attention_mask.shape)} but input_ids has "
                f"{tuple(self.input_ids.shape)}"
            )

    @property
    def batch_size(self) -> int:
        """Number of queries."""
        return self.input_ids.shape[0]

    def __len__(self) -> int:
        return self.batch_size

    def to(self, device: torch.device | str) -> PolicyInputs:
        """The same inputs on another device; types of numbers stay as they are."""
        return replace(self, **{name: value.to(device) for name, value in self._tensors().items()})

    def __getitem__(self, rows: int | slice) -> PolicyInputs:
        """Keep some rows of the batch; an integer keeps a batch of one."""
        if isinstance(rows, int):
            if not -self.batch_size <= rows < self.batch_size:
                raise IndexError(f"row {rows} of a batch of {self.batch_size}")
            rows = slice(rows, rows + 1 or None)
        return replace(self, **{name: value[rows] for name, value in self._tensors().items()})

    @staticmethod
    def cat(parts: Sequence[PolicyInputs], pad_id: int = 0) -> PolicyInputs:
        """Join batches; shorter prompts are padded on the right.

        Args:
            parts: at least one batch. All have proprio or none has, and likewise noise.
            pad_id: id written under attention 0. No network reads it; 0 exists in every vocabulary.

        Raises:
            ValueError: if there is nothing to join, or the parts do not have the same fields or image shapes.
        """
        if not parts:
            raise ValueError("nothing to join: parts is empty")
        for field in ("proprio", "noise"):
            if len({getattr(part, field) is None for part in parts}) > 1:
                raise ValueError(f"some parts have {field} and some have not")
        shapes = sorted({tuple(part.pixel_values.shape[1:]) for part in parts})
        if len(shapes) > 1:
            raise ValueError(f"the parts have images of different shapes: {shapes}")
        width = max(part.input_ids.shape[1] for part in parts)
        joined = {}
        for name in parts[0]._tensors():
            rows = [getattr(part, name) for part in parts]
            if name == "input_ids":
                rows = [torch.nn.functional.pad(row, (0, width - row.shape[1]), value=pad_id) for row in rows]
            elif name == "attention_mask":
                rows = [torch.nn.functional.pad(row, (0, width - row.shape[1]), value=0) for row in rows]
            joined[name] = torch.cat(rows)
        return replace(parts[0], **joined)

    def _tensors(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}
