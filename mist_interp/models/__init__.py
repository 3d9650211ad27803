"""The networks: OpenVLA and OpenVLA-OFT in their variants, checkpoints, and the way from observations to tensors.

Names are imported on first use, so that `import mist_interp.models` costs nothing.
"""

from __future__ import annotations

from mist_interp.core.lazy import lazy_exports

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
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
