"""How long do risk labels of a thousand episodes take? Promised are less than two minutes on two cores.

Writes a store of synthetic episodes of 20 queries, a third of which have events, and labels it.

    python benchmarks/labels.py --episodes 1000
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from mist_interp.core.closing import hand_gain
from mist_interp.data import ContactRecord, EpisodeRecord, Manifest, QueryRecord, RolloutStore, Unit
from mist_interp.probing import Risk


@dataclass(frozen=True)
class Settings:
    """Time the labels."""

    episodes: int = 1000
    """Episodes in the store."""

    out: Path = Path("results/benchmarks/labels.json")
    """Where the numbers go."""


def main(settings: Settings) -> None:
    """Write, label, report."""
    with tempfile.TemporaryDirectory() as folder:
        os.fsync = lambda handle: None  # the writing is not what is measured
        store = RolloutStore.create(folder, Manifest((), {"suite": "synthetic"}))
        for number in range(settings.episodes):
            store.append(episode(number))
        wall, processor = time.perf_counter(), time.process_time()
        labels = Risk().labels(store)
        seconds = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    numbers = {"episodes": settings.episodes, "queries": len(labels), "seconds": seconds}
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(numbers, indent=2) + "\n")
    print(
        f"{settings.episodes} episodes, {len(labels)} queries, {int(np.nansum(labels.values))} positives: "
        f"{seconds['wall']:.1f} s, of which {seconds['processor']:.1f} s of processor time"
    )


def episode(number: int, queries: int = 20) -> EpisodeRecord:
    """An episode with random actions and, in every third, two contacts."""
    rng = np.random.default_rng(number)
    path = np.concatenate([rng.normal(size=(8, 3)), np.tile([0.0, 0, 0, 1], (8, 1)), np.zeros((8, 6))], axis=1)
    records = tuple(
        QueryRecord(i, 8 * i, rng.normal(size=(8, 7)), np.clip(rng.normal(size=(8, 7)), -1, 1), np.zeros(9), hand=path)
        for i in range(queries)
    )
    contacts = tuple(contact(rng, int(rng.integers(0, 8 * queries))) for _ in range(2 if number % 3 == 0 else 0))
    unit = Unit("libero_spatial", number % 10, number // 10)
    return EpisodeRecord(unit, "go", True, 8 * queries, 220, records, contacts)


def contact(rng: np.random.Generator, step: int) -> ContactRecord:
    """A contact somewhere."""
    normal, lever = rng.normal(size=3), 0.1 * rng.normal(size=3)
    normal /= np.linalg.norm(normal)
    gain = tuple(hand_gain(normal, lever))
    point, eef = tuple(lever), (0.0, 0.0, 0.0)
    return ContactRecord(step, step + 1, "hand", "table", "hand-table", 9.0, 0.1, point, tuple(normal), 9.0, eef, gain)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
