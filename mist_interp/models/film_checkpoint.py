"""How does a FiLM checkpoint's vision backbone map to this package's?

It was saved around the plain one, with its low-rank adapters not yet merged: blocks are wrapped
(`blocks.0.block.attn`), adapted linear maps hold `base_layer`, `lora_A` and `lora_B`. Here blocks hold their FiLM maps
themselves, and adapters are folded into the weights: ``W + alpha / r * B A``, in float32, with r the rank and alpha
from `lora_adapter/adapter_config.json` or, as the published recipe has it, min(r, 16).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mist_interp.models.folder import read_json

WRAPPER = "vision_backbone."
LARGEST_ALPHA = 16


def adapter_alpha(folder: Path) -> float | None:
    """Scale of the low-rank adapters as the folder states it; None if it does not.

    Raises:
        ValueError: if the file is damaged or holds no number.
    """
    file = folder / "lora_adapter" / "adapter_config.json"
    if not file.exists():
        return None
    alpha = read_json(file).get("lora_alpha")
    if not isinstance(alpha, int | float):
        raise ValueError(f"{file} must hold lora_alpha as a number, not {alpha!r}")
    return float(alpha)


def fold_adapters(weights: Mapping[str, Tensor], alpha: float | None = None) -> dict[str, Tensor]:
    """Merge low-rank adapters and unwrap the names.

    Args:
        weights: content of a `vision_backbone--*_checkpoint.pt`, merged already or not.
        alpha: scale of the adapters; None takes the published recipe's.

    Returns:
        Weights under the names of `VisionBackbone`, those with an adapter in float32.

    Raises:
        ValueError: if an adapter lacks one of its halves.
    """
    merged: dict[str, Tensor] = {}
    for name, value in weights.items():
        if ".lora_" in name:
            continue
        merged[unwrapped(name)] = value
    for down_name in (name for name in weights if ".lora_A." in name):
        up_name = down_name.replace(".lora_A.", ".lora_B.")
        target = unwrapped(re.sub(r"\.lora_A\..*", ".weight", down_name))
        if up_name not in weights or target not in merged:
            raise ValueError(f"the adapter {down_name!r} lacks its counterpart {up_name!r} or its weight {target!r}")
        down, up = weights[down_name].float(), weights[up_name].float()
        rank = down.shape[0]
        merged[target] = merged[target].float() + (alpha or min(rank, LARGEST_ALPHA)) / rank * (up @ down)
    return merged


def unwrapped(name: str) -> str:
    """The name of a FiLM backbone's weight in `VisionBackbone`."""
    name = re.sub(r"(\.blocks\.\d+)\.block\.", r"\1.", name.removeprefix(WRAPPER))
    return name.replace(".base_layer.", ".")


def wrapped(name: str) -> str:
    """The opposite of `unwrapped`, for saving: without adapters."""
    inner = re.sub(r"(\.blocks\.\d+)\.(?!scale\.|shift\.)", r"\1.block.", name)
    return WRAPPER + inner
