"""Trace, probe and steer vision-language-action policies, in real LIBERO.

What is exported here is imported on first use, so that `import mist_interp` is quick and needs no simulator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mist_interp.core.lazy import lazy_exports

if TYPE_CHECKING:
    from mist_interp.core.actions import ActionChunk as ActionChunk
    from mist_interp.core.inputs import PolicyInputs as PolicyInputs
    from mist_interp.core.layout import TokenLayout as TokenLayout
    from mist_interp.core.names import Site as Site
    from mist_interp.data.activations import collect as collect
    from mist_interp.data.policy_source import PolicySource as PolicySource
    from mist_interp.probing.benefit import Benefit as Benefit
    from mist_interp.probing.conformal import ConformalAlarm as ConformalAlarm
    from mist_interp.probing.deviation import Deviation as Deviation
    from mist_interp.probing.predictor import RiskPredictor as RiskPredictor
    from mist_interp.probing.probe import Probe as Probe
    from mist_interp.steering.direction import SteeringDirection as SteeringDirection
    from mist_interp.tracing.cache import ActivationCache as ActivationCache
    from mist_interp.tracing.hooked import HookedVLA as HookedVLA

_HOMES = {
    "HookedVLA": "tracing.hooked",
    "ActivationCache": "tracing.cache",
    "PolicyInputs": "core.inputs",
    "PolicySource": "data.policy_source",
    "ActionChunk": "core.actions",
    "Site": "core.names",
    "TokenLayout": "core.layout",
    "Probe": "probing.probe",
    "Benefit": "probing.benefit",
    "ConformalAlarm": "probing.conformal",
    "Deviation": "probing.deviation",
    "RiskPredictor": "probing.predictor",
    "SteeringDirection": "steering.direction",
    "collect": "data.activations",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
