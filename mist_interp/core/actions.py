"""What does a policy hand over, and what does the simulator receive?

A policy answers one query with a chunk of actions. LIBERO actions have seven numbers: a change of the end effector's
position (dx, dy, dz), a change of its orientation (droll, dpitch, dyaw), both in the controller's units where 1 is the
largest step, and the gripper. The model speaks of the gripper as 1 = open, 0 = closed; the simulator wants -1 = open,
+1 = closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")

Values = TypeVar("Values", Tensor, np.ndarray)


@dataclass(frozen=True)
class ActionChunk:
    """The answer of a policy to one query.

    Attributes:
        normalized: (batch, chunk, dim), as the action head gives it, about [-1, 1] (gripper 0..1), not clipped.
        values: (batch, chunk, dim), float64, in the units of the demonstrations, before gripper post-processing.
        names: the meaning of the last axis.
        token_ids: (batch, chunk, dim), the action tokens of a policy that speaks in tokens, else None.
    """

    normalized: Float[Tensor, "batch chunk dim"]
    values: Float[Tensor, "batch chunk dim"]
    names: tuple[str, ...] = ACTION_NAMES
    token_ids: Int[Tensor, "batch chunk dim"] | None = None

    def __post_init__(self) -> None:
        if self.normalized.shape != self.values.shape:
            raise ValueError(
                f"normalized has shape {tuple(self.normalized.shape)} but values has {tuple(self.values.shape)}"
            )

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, rows: slice) -> ActionChunk:
        """Keep some rows of the batch."""
        token_ids = None if self.token_ids is None else self.token_ids[rows]
        return ActionChunk(self.normalized[rows], self.values[rows], self.names, token_ids)

    def to_env(self) -> Float[Tensor, "batch chunk dim"]:
        """The same chunk as the simulator receives it, see `to_env_action`."""
        return to_env_action(self.values)


def to_env_action(values: Values) -> Values:
    """Turn un-normalised model actions into what LIBERO's controller receives.

    The first six numbers are sent as they are. The gripper g in [0, 1] (1 = open) is stretched to [-1, 1], reduced to
    its sign, and flipped (-1 = open): ``-sign(2 g - 1)``, so exactly 0.5 gives -0.0.

    Args:
        values: (..., 7), tensor or array, in the units of the demonstrations. Not modified.

    Returns:
        The same type and shape.

    Raises:
        ValueError: if the last axis does not have seven entries.
    """
    if values.shape[-1:] != (len(ACTION_NAMES),):
        raise ValueError(
            f"actions have shape {tuple(values.shape)}; the last axis must hold {len(ACTION_NAMES)} numbers: "
            f"{', '.join(ACTION_NAMES)}"
        )
    if isinstance(values, Tensor):
        sent = values.clone()
        sent[..., -1] = -torch.sign(2 * sent[..., -1] - 1)
        return sent
    array = np.array(values, copy=True)
    array[..., -1] = -np.sign(2 * array[..., -1] - 1)
    return array
