"""What is the same for all episodes of a store, and may rates be computed from them?

The manifest says which activations are kept, what was run, and how the episodes were selected. Where the selection
looked at outcomes, or may have, a share of successes over the episodes is no rate of the policy and is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import Site, SiteKey
from mist_interp.data.tables import DTYPES

SCHEMA_VERSION = 3
# 2 lacks allowed contacts; 1 also the geometry of contacts, the path of the hand, and releases; all else is the same.
READABLE_VERSIONS = (1, 2, 3)
IID, BALANCED, CHOSEN, INPUTS = "iid", "balanced", "chosen", "inputs"
SELECTIONS = (IID, BALANCED, CHOSEN, INPUTS)
# Why a share of successes (or of any other outcome) over such episodes is no rate of the policy.
NO_RATES = {
    BALANCED: "these episodes were selected by outcome (selection='balanced'), so shares over them are not rates of "
    "the policy; use episodes of an evaluation run, or the counts of all attempts in the store's manifest",
    CHOSEN: "these episodes were picked one by one (`only`), perhaps by their outcome, so shares over them are not "
    "rates of the policy; restrict a store by what was run instead: where(tasks=..., inits=..., perturbations=...)",
    INPUTS: "these queries were given and not run, so there is no success to count",
}


@dataclass(frozen=True)
class TokenGroup:
    """Activations that are kept of one group of tokens: one vector per site and query.

    Attributes:
        tokens: token selector, e.g. `action_read`, `vision`, `action_read.dz`.
        pool: how the selected tokens become one vector: `mean`, `first`, `last` or `flat` (side by side).
        sites: full names of the sites, e.g. `blocks.3.hook_resid_post`.
        dtype: type in which the values are stored, `float16` or `float32`.
    """

    tokens: str
    sites: tuple[str, ...]
    pool: str = "mean"
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UnknownName("type of stored activations", self.dtype, DTYPES)

    @property
    def name(self) -> str:
        """Folder name of the group."""
        return f"{re.sub(r'[^A-Za-z0-9]+', '_', self.tokens).strip('_')}-{self.pool}"

    def key(self, site: str) -> str:
        """Name of the activation of `site` in `QueryRecord.activations`."""
        return f"{site}@{self.tokens}:{self.pool}"

    def one(self, key: SiteKey) -> Site:
        """The stored site that `key` names.

        Raises:
            UnknownName: it is not stored for these tokens.
        """
        stored = [Site(name) for name in self.sites]
        if isinstance(key, tuple) and isinstance(key[1], int) and key[1] < 0:
            layers = [site.layer for site in stored if site.hook.short == key[0] and site.layer is not None]
            key = (key[0], max(layers, default=0) + 1 + key[1])
        for site in stored:
            if key in (site, site.key) or (isinstance(key, str) and key in (site.name, site.name.replace("hook_", ""))):
                return site
        raise UnknownName(f"site stored for the tokens {self.tokens!r}", key, self.sites)


@dataclass(frozen=True)
class Manifest:
    """What is the same for all episodes of a store; a run with other settings needs another folder.

    Attributes:
        groups: which activations are kept.
        settings: everything that defines the run as plain JSON values: model, suite, profile, limits.
        selection: `iid` when units were run as planned, `balanced` when episodes were chosen by outcome, `chosen` when
            they were picked one by one (`RolloutStore.only`): no success rate may be computed from either. `inputs`
            when queries were given and nothing was run: there are no outcomes at all.
        counts: of a balanced store: task -> attempts, successes and failures among them, and how many are stored.
        version: of this layout.
    """

    groups: tuple[TokenGroup, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    selection: str = IID
    version: int = SCHEMA_VERSION
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise UnknownName("selection", self.selection, SELECTIONS)
        names = [group.name for group in self.groups]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two token groups would share the folder {name!r}; give their sites in one group")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Folders of the tables; the one that makes an episode exist comes last."""
        return (*(f"activations/{group.name}" for group in self.groups), "queries", "episodes")

    def to_json(self) -> str:
        """Content of `manifest.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Inverse of `to_json`.

        Raises:
            ValueError: the folder was written by a layout that this version does not know.
        """
        content = json.loads(text)
        if content["version"] not in READABLE_VERSIONS:
            raise ValueError(
                f"this store has layout version {content['version']}; this package reads {READABLE_VERSIONS}"
            )
        groups = tuple(TokenGroup(**{**group, "sites": tuple(group["sites"])}) for group in content["groups"])
        return cls(groups, content["settings"], content["selection"], content["version"], content.get("counts", {}))


def check_rates(episodes: pd.DataFrame) -> None:
    """Refuse rows of `RolloutStore.episodes`, or frames made of them, from which no success rate may be computed.

    Raises:
        ValueError: some were selected by outcome, or perhaps were, or have none.
    """
    selections = {episodes.attrs.get("selection"), *episodes.get("selection", pd.Series(dtype=object)).unique()}
    for selection, reason in NO_RATES.items():
        if selection in selections:
            raise ValueError(reason)


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Which fields of two JSON values differ, as `field: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted({*old, *new}):
            inner = f"{name}.{key}" if name else str(key)
            found += differences(old.get(key, "(absent)"), new.get(key, "(absent)"), inner)
        return found
    return [] if old == new else [f"{name}: {json.dumps(old)} there, {json.dumps(new)} now"]
