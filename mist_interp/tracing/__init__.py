"""Reading and replacing activations of a policy while it acts.

Names are imported on first use: the tracing backend costs a second that a program without a policy does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "HookedVLA": "hooked",
    "ActivationCache": "cache",
    "NamedActivation": "activation",
    "Edit": "edits",
    "Intervention": "interventions",
    "save_edits": "interventions",
    "load_edits": "interventions",
    "Change": "changes",
    "add": "verbs",
    "scale": "verbs",
    "ablate": "verbs",
    "replace": "verbs",
    "patch_from": "verbs",
    "project_out": "verbs",
    "clamp_projection": "verbs",
    "skip": "verbs",
    "knockout": "verbs",
    "Facts": "facts",
    "Report": "checks",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
