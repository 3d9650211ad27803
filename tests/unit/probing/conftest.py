"""Stores of synthetic rollouts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from synthetic_rollouts import GROUP, MakeStore

from mist_interp.data.manifest import Manifest
from mist_interp.data.records import EpisodeRecord
from mist_interp.data.store import RolloutStore


@pytest.fixture
def make_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeStore:
    # Waiting for the disk after each of a thousand small files is what a real run wants and a test does not.
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    count = 0

    def make(episodes: list[EpisodeRecord], **manifest: Any) -> RolloutStore:
        nonlocal count
        count += 1
        store = RolloutStore.create(tmp_path / f"store{count}", Manifest((GROUP,), {"suite": "synthetic"}, **manifest))
        for episode in episodes:
            store.append(episode)
        return store

    return make
