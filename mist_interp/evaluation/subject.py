"""Which policy made these rows?

Results of a retrained checkpoint in the same folder must not mix with older ones, nor those of one whose actions
are scaled by other statistics, so beside the id a fingerprint of the weights is stored, and what was chosen when
the policy was loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mist_interp.data.plan import weights_fingerprint


def model_facts(vla: Any) -> dict[str, str]:
    """What makes this policy answer as it does, as far as known: its weights, and what was chosen when it was loaded.

    Keys: `model_id`, `revision`, `variant`, `dtype`, `device`, `weights` (fingerprint), `attention`, `unnorm_key`,
    `num_images`, `use_proprio`, `chunk`, `center_crop`.
    """
    facts: dict[str, str] = {}
    module = network(vla)
    for name in ("model_id", "revision", "variant"):
        value = getattr(vla, name, None) or getattr(module, name, None)
        if value:
            facts[name] = str(value)
    if module is None:
        return facts
    parameter = next(module.parameters(), None)
    if parameter is not None:
        facts["dtype"] = str(parameter.dtype).removeprefix("torch.")
        facts["device"] = device_name(parameter.device)
        facts["weights"] = weights_fingerprint(module)
    config = getattr(module, "config", None)
    chosen = {
        "attention": getattr(getattr(config, "llm", config), "_attn_implementation", None),
        "unnorm_key": getattr(module, "unnorm_key", None),
        "num_images": getattr(config, "num_images", None),
        "use_proprio": getattr(config, "use_proprio", None),
        "chunk": getattr(config, "chunk_size", None),
        "center_crop": getattr(getattr(module, "processor", None), "center_crop", None),
    }
    return facts | {name: str(value) for name, value in chosen.items() if value is not None}


def network(vla: Any) -> nn.Module | None:
    """The torch module inside a policy, None for one without (a scripted stand-in)."""
    for candidate in (vla, getattr(vla, "policy", None), getattr(vla, "model", None)):
        if isinstance(candidate, nn.Module):
            return candidate
    return None


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of the accelerator."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
