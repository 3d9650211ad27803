"""Rollouts: recorded, stored, and read one layer at a time. Names are imported on first use."""

from __future__ import annotations

from mist_interp.core.lazy import lazy_exports

_HOMES = {
    "collect_rollouts": "collect",
    "Protocol": "plan",
    "Quota": "attempts",
    "RolloutStore": "store",
    "Manifest": "manifest",
    "TokenGroup": "manifest",
    "ActivationSet": "activation_set",
    "Unit": "records",
    "EpisodeRecord": "records",
    "QueryRecord": "records",
    "ContactRecord": "records",
    "ReleaseRecord": "records",
    "Decision": "records",
    "compact": "compaction",
    "push_dataset": "hub",
    "load_rollouts": "hub",
    "HubError": "remote",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
