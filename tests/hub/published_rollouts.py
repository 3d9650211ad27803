"""Small stores to publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mist_interp.data.manifest import Manifest, TokenGroup
from mist_interp.data.packs import read_rows
from mist_interp.data.records import ContactRecord, EpisodeRecord, QueryRecord, Unit
from mist_interp.data.store import RolloutStore

SITE = "blocks.3.hook_resid_post"
GROUP = TokenGroup("action_read", ("blocks.0.hook_resid_post", SITE))
CONTACT = ContactRecord(3, 5, "hand", "table", "hand-table", 12.5, 0.25, (0.1, 0.2, 0.9), (0.0, 0.0, 1.0))


def episode(init_state: int, seed: int = 0) -> EpisodeRecord:
    rng = np.random.default_rng((init_state, seed))
    queries = tuple(
        QueryRecord(
            i,
            8 * i,
            rng.normal(size=(8, 7)),
            rng.normal(size=(8, 7)),
            rng.normal(size=9),
            activations={GROUP.key(site): rng.normal(size=6) for site in GROUP.sites},
        )
        for i in range(3)
    )
    return EpisodeRecord(
        unit=Unit("libero_spatial", 1, init_state),
        instruction="pick up the bowl",
        success=init_state % 2 == 0,
        steps=24,
        max_steps=220,
        queries=queries,
        contacts=(CONTACT,) * init_state,
        provenance={"torch": "2.13", "mist_interp": "0.1"},
    )


def make_store(folder: Path, *init_states: int, seed: int = 0, **manifest: Any) -> RolloutStore:
    store = RolloutStore.create(folder, Manifest((GROUP,), manifest.pop("settings", {"suite": "x"}), **manifest))
    for init_state in init_states:
        store.append(episode(init_state, seed))
    return store


def content(store: RolloutStore) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Every row of every table, by table and episode, in order; of floats their exact values."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for kind in store.manifest.kinds:
        for row in read_rows(store.folder, kind, store.keys, store.packs).to_pylist():
            rows.setdefault((kind, row["episode"]), []).append(row)
    return rows
