"""How do robot units map to the model's [-1, 1] and back?

With low and high bounds of each number over the training data (quantiles q01 and q99, or minimum and maximum):

    normalised = clip(2 (x - low) / (high - low + 1e-8) - 1, -1, 1)
    action     = (normalised + 1) / 2 * (high - low + 1e-8) + low

Numbers that the mask leaves out (the gripper) pass unchanged, but are clipped on the way in. Arithmetic is float64, as
in the original, whose base variant goes without the 1e-8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.core.errors import UnknownName, listing

EPSILON = 1e-8
BOUND_NAMES = {"q99": ("q01", "q99"), "minmax": ("min", "max")}


@dataclass(frozen=True)
class Bounds:
    """Low and high end of each number, and which numbers are normalised at all."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    mask: tuple[bool, ...]

    @staticmethod
    def read(statistics: Mapping[str, Any], kind: str) -> Bounds:
        """Take the bounds out of one entry of `dataset_statistics.json`; a missing mask means all numbers.

        Args:
            statistics: the "action" or the "proprio" part of a dataset's statistics.
            kind: "q99" or "minmax".
        """
        names = BOUND_NAMES[kind]
        for name in names:
            if name not in statistics:
                raise ValueError(f"the statistics lack {name!r}; they hold {listing(statistics)}")
        low, high = (tuple(float(x) for x in statistics[name]) for name in names)
        mask = tuple(bool(x) for x in statistics.get("mask", [True] * len(low)))
        if not len(low) == len(high) == len(mask):
            raise ValueError(f"the bounds have {len(low)} and {len(high)} entries, the mask {len(mask)}")
        return Bounds(low, high, mask)


@lru_cache(maxsize=256)
def _on_device(bounds: Bounds, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    # Kept tensors must stay usable under autograd, wherever they were first asked for.
    with torch.inference_mode(False):
        low, high = (torch.tensor(x, dtype=torch.float64, device=device) for x in (bounds.low, bounds.high))
        return low, high, torch.tensor(bounds.mask, device=device)


def normalize(values: Float[Tensor, "... dim"], bounds: Bounds) -> Float[Tensor, "... dim"]:
    """Robot units to [-1, 1], clipped; float64."""
    low, high, mask = _on_device(bounds, values.device)
    values = values.double()
    scaled = 2 * (values - low) / (high - low + EPSILON) - 1
    return torch.where(mask, scaled, values).clamp(-1, 1)


def unnormalize(
    normalized: Float[Tensor, "... dim"], bounds: Bounds, epsilon: float = EPSILON
) -> Float[Tensor, "... dim"]:
    """[-1, 1] to robot units, not clipped; float64."""
    low, high, mask = _on_device(bounds, normalized.device)
    # The first half stays in the precision of the head, as in the original.
    scaled = (0.5 * (normalized + 1)).double() * (high - low + epsilon) + low
    return torch.where(mask, scaled, normalized.double())


def resolve_unnorm_key(norm_stats: Mapping[str, Any] | None, key: str | None) -> str:
    """Find the dataset whose statistics map actions back to robot units.

    Args:
        norm_stats: statistics by dataset.
        key: a dataset, or a suite whose dataset is called ``key + "_no_noops"``. None is enough if there is only one.

    Raises:
        UnknownName: if there is no such dataset.
        ValueError: if there are no statistics, or several and no key.
    """
    if not norm_stats:
        raise ValueError("the model has no action statistics: norm_stats of its configuration is empty")
    if key is None:
        if len(norm_stats) > 1:
            raise ValueError(
                f"the model has statistics of {len(norm_stats)} datasets; say which with unnorm_key: "
                f"{listing(norm_stats)}"
            )
        return next(iter(norm_stats))
    for candidate in (key, f"{key}_no_noops"):
        if candidate in norm_stats:
            return candidate
    raise UnknownName("unnorm key", key, norm_stats)
