"""Which policy made these rows?

Results of a retrained checkpoint in the same folder must not mix with older ones, so beside the id a
fingerprint of the weights is stored. It reads a few values of every parameter, which any training step changes,
and costs milliseconds at 7B.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

SAMPLED_VALUES = 64


def resolve_policy(vla: Any) -> Any:
    """The policy itself: a string is loaded by `HookedVLA.from_pretrained`, a function without arguments is called."""
    if isinstance(vla, str):
        from mist_interp.tracing.hooked import HookedVLA

        return HookedVLA.from_pretrained(vla)
    if callable(vla) and not hasattr(vla, "prepare"):
        return vla()
    return vla


def model_facts(vla: Any) -> dict[str, str]:
    """Id, revision, variant, dtype, device, attention implementation and weights fingerprint, as far as known."""
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
    attention = getattr(getattr(config, "llm", config), "_attn_implementation", None)
    if attention:
        facts["attention"] = str(attention)
    return facts


def network(vla: Any) -> nn.Module | None:
    """The torch module inside a policy, None for one without (a scripted stand-in)."""
    for candidate in (vla, getattr(vla, "policy", None), getattr(vla, "model", None)):
        if isinstance(candidate, nn.Module):
            return candidate
    return None


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of the accelerator."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def weights_fingerprint(module: nn.Module) -> str:
    """Short hash over name, shape and evenly spaced values of every parameter."""
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            values = parameter.detach().reshape(-1)
            picks = values[:: max(1, len(values) // SAMPLED_VALUES)][:SAMPLED_VALUES].float().cpu()
            digest.update(f"{name}{tuple(parameter.shape)}".encode() + picks.numpy().tobytes())
    return digest.hexdigest()[:16]
