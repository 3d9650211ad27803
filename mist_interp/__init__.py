"""Trace, probe and steer vision-language-action policies, in real LIBERO.

What is exported here is imported on first use, so that `import mist_interp` is quick and needs no simulator.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mist_interp.core.actions import ActionChunk as ActionChunk
    from mist_interp.core.inputs import PolicyInputs as PolicyInputs
    from mist_interp.core.layout import TokenLayout as TokenLayout
    from mist_interp.core.names import Site as Site
    from mist_interp.data.activations import collect as collect
    from mist_interp.data.policy_source import PolicySource as PolicySource
    from mist_interp.probing.probe import Probe as Probe
    from mist_interp.steering.direction import SteeringDirection as SteeringDirection
    from mist_interp.tracing.cache import ActivationCache as ActivationCache
    from mist_interp.tracing.hooked import HookedVLA as HookedVLA

_HOMES = {
    "HookedVLA": "mist_interp.tracing.hooked",
    "ActivationCache": "mist_interp.tracing.cache",
    "PolicyInputs": "mist_interp.core.inputs",
    "PolicySource": "mist_interp.data.policy_source",
    "ActionChunk": "mist_interp.core.actions",
    "Site": "mist_interp.core.names",
    "TokenLayout": "mist_interp.core.layout",
    "Probe": "mist_interp.probing.probe",
    "SteeringDirection": "mist_interp.steering.direction",
    "collect": "mist_interp.data.activations",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
