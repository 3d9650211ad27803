"""Rollouts: recorded, stored, and read one layer at a time. Names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "collect_rollouts": "collect",
    "Protocol": "plan",
    "Quota": "attempts",
    "RolloutStore": "store",
    "Manifest": "store",
    "TokenGroup": "store",
    "ActivationSet": "activation_set",
    "Unit": "records",
    "EpisodeRecord": "records",
    "QueryRecord": "records",
    "ContactRecord": "records",
    "ReleaseRecord": "records",
    "Decision": "records",
    "rollout": "rollout",
    "push_dataset": "hub",
    "load_rollouts": "hub",
    "HubError": "remote",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
