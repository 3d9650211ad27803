"""The networks: OpenVLA and OpenVLA-OFT in their variants, checkpoints, and the way from observations to tensors.

Names are imported on first use, so that `import mist_interp.models` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "OpenVLAConfig": "config",
    "OpenVLAPolicy": "policy",
    "load_policy": "checkpoint",
    "save_policy": "save",
    "random_policy": "random",
    "resolve": "folder",
    "small_config": "small",
    "word_tokenizer": "tokenizer",
    "format_prompt": "tokenizer",
    "Processor": "processor",
    "model_image": "images",
    "robot_state": "robot_state",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
