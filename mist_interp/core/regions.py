"""Which patches does a part of the picture cover, and how much of each?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float


def covered(where: Any, grid: tuple[int, int]) -> Float[torch.Tensor, "rows cols"]:
    """Share of every patch that a box or a mask covers.

    Args:
        where: a box (top, left, bottom, right) in fractions of the picture, or a mask (height, width), not 0 inside.
        grid: rows and columns of patches.

    Raises:
        ValueError: a box outside the picture or without area; a mask that the patches do not divide evenly.
    """
    if isinstance(where, Sequence) and len(where) == 4:
        top, left, bottom, right = (float(edge) for edge in where)
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
            raise ValueError(f"box {tuple(where)}: expected fractions (top, left, bottom, right), top left is (0, 0)")
        return _overlap(top, bottom, grid[0])[:, None] * _overlap(left, right, grid[1])[None]
    mask = torch.as_tensor(where)
    if mask.ndim != 2 or mask.shape[0] % grid[0] or mask.shape[1] % grid[1]:
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)}: expected (height, width), multiples of the {grid[0]} x {grid[1]} "
            "patches, or a box of four fractions"
        )
    blocks = mask.ne(0).float().unflatten(1, (grid[1], -1)).unflatten(0, (grid[0], -1))
    return blocks.mean((1, 3))


def _overlap(start: float, end: float, count: int) -> torch.Tensor:
    """Share of each of `count` equal parts of [0, 1] that lies in [start, end]."""
    edges = torch.arange(count + 1, dtype=torch.float64) / count
    return (edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)).clamp(min=0) * count
