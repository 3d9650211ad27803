"""Where does each token stand?

A prompt must end in the token of a lone space, because the model was trained on "Out: " followed by actions. In the
parallel variants it is followed by one placeholder for each action number and by the stop token:

    [BOS] [patches of all cameras] [robot state] [noise level] [prompt 1 .. L-1] [placeholders] [stop] [padding]

Actions are read one position to the left of their placeholders, from the lone space on, because the model was trained
to predict the next token. Prompts of a batch may differ in length: what follows moves with them, and padding comes
last, so that every token has the position it would have alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """Right-padded prompts that end in the lone space.

    Attributes:
        ids: (batch, longest), 0 where padded.
        lengths: (batch,), tokens of each prompt, BOS and lone space included.
    """

    ids: Int[Tensor, "batch tokens"]
    lengths: Int[Tensor, " batch"]

    @property
    def attention(self) -> Bool[Tensor, "batch tokens"]:
        """True on prompt tokens."""
        return positions(self.ids) < self.lengths[:, None]


@dataclass(frozen=True)
class TextSequence:
    """Prompt, placeholders and stop token, before the images are inserted after the BOS.

    Attributes:
        ids: (batch, tokens), 0 where padded.
        attention: (batch, tokens), False where padded.
        is_slot: (batch, tokens), True on the action placeholders.
        first_slot: (batch,), index of the first placeholder.
        slots: number of placeholders.
    """

    ids: Int[Tensor, "batch tokens"]
    attention: Bool[Tensor, "batch tokens"]
    is_slot: Bool[Tensor, "batch tokens"]
    first_slot: Int[Tensor, " batch"]
    slots: int


def positions(ids: Int[Tensor, "batch tokens"]) -> Int[Tensor, "1 tokens"]:
    """Column numbers, to be compared with lengths."""
    return torch.arange(ids.shape[1], device=ids.device)[None]


def close_prompt(ids: Int[Tensor, "batch tokens"], attention: Int[Tensor, "batch tokens"], lone_space: int) -> Prompt:
    """Let every prompt end in the lone space, without doubling it.

    Raises:
        ValueError: if a prompt is empty or is not padded on the right.
    """
    lengths = attention.long().sum(1)
    right_padded = (attention != 0) == (positions(ids) < lengths[:, None])
    if not bool(right_padded.all()) or not bool((lengths > 0).all()):
        raise ValueError(
            "attention_mask must be ones, then zeros: prompts are padded on the right and hold at least one token; "
            f"given {attention.long().tolist()}"
        )
    last = ids.gather(1, lengths[:, None] - 1)[:, 0]
    open_ended = last != lone_space
    padded = torch.nn.functional.pad(ids, (0, 1))
    at_end = (positions(padded) == lengths[:, None]) & open_ended[:, None]
    lengths = lengths + open_ended.long()
    closed = torch.where(at_end, lone_space, padded)
    closed = torch.where(positions(closed) < lengths[:, None], closed, 0)
    return Prompt(closed[:, : int(lengths.max())], lengths)


def append_slots(prompt: Prompt, slots: int, placeholder: int, stop: int) -> TextSequence:
    """Append placeholders and the stop token to every prompt."""
    ids = torch.nn.functional.pad(prompt.ids, (0, slots + 1))
    column, start = positions(ids), prompt.lengths[:, None]
    is_slot = (column >= start) & (column < start + slots)
    ids = torch.where(is_slot, placeholder, ids)
    ids = torch.where(column == start + slots, stop, ids)
    return TextSequence(ids, column <= start + slots, is_slot, prompt.lengths, slots)


def insert_after_bos(
    text: Float[Tensor, "batch tokens hidden"], inserted: Float[Tensor, "batch patches hidden"]
) -> Float[Tensor, "batch sequence hidden"]:
    """Put image and state tokens between the first text token and the others."""
    return torch.cat([text[:, :1], inserted, text[:, 1:]], dim=1)


def attend_to_inserted(attention: Bool[Tensor, "batch tokens"], inserted: int) -> Bool[Tensor, "batch sequence"]:
    """Extend a text mask over the inserted tokens, which are never padding."""
    seen = attention.new_ones(attention.shape[0], inserted)
    return torch.cat([attention[:, :1], seen, attention[:, 1:]], dim=1)


def read_slots(
    states: Float[Tensor, "batch sequence hidden"], text: TextSequence, inserted: int
) -> Float[Tensor, "batch slot hidden"]:
    """States one position to the left of each placeholder."""
    first = text.first_slot - 1 + inserted
    index = first[:, None] + torch.arange(text.slots, device=states.device)[None]
    return states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))
