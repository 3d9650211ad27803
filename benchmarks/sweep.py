"""What does a sweep of linear probes over all layers of a thousand episodes take, in time and in memory?

A synthetic store (a signal in one layer), swept in a process of its own by `fit_layers` with logistic regressions,
their controls and shuffled labels. Promised is a peak of less than 3 x one layer, with one layer = the float32 matrix
of all its queries, which is what anyone holds who looks at it; the growth over the process before the sweep is
counted.

    python benchmarks/sweep.py                              1,000 episodes x 20 queries, 32 layers, 1024 wide
    python benchmarks/sweep.py --episodes 200 --layers 4    a small one
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from mist_interp.core.files import write_atomic
from mist_interp.core.provenance import provenance
from mist_interp.data import EpisodeRecord, Manifest, QueryRecord, RolloutStore, Unit
from mist_interp.data.manifest import TokenGroup
from mist_interp.probing import Failure, Probe, fit_layers

PROMISED = 3.0
TASKS = 10


@dataclass(frozen=True)
class Settings:
    """Sweep a synthetic store."""

    episodes: int = 1000
    """Episodes."""

    queries: int = 20
    """Queries of each."""

    layers: int = 32
    """Layers."""

    width: int = 1024
    """Width of each."""

    by: str = "init_state"
    """How to split: `init_state` makes 5 folds, `task` 10."""

    scratch: Path | None = None
    """Folder for the data, which is deleted afterwards; default: that of the system."""

    out: Path | None = None
    """JSON with the numbers, the machine and the versions."""

    swept: Path | None = None
    """Only sweep this store and print the numbers as JSON; what the benchmark calls in a process of its own."""


def main(settings: Settings) -> None:
    """Write, sweep in a subprocess, report."""
    if settings.swept is not None:
        print(json.dumps(sweep(settings.swept, settings)))
        return
    with tempfile.TemporaryDirectory(dir=settings.scratch) as folder:
        write(Path(folder), settings)
        given = [f"--{name}={getattr(settings, name)}" for name in ("episodes", "queries", "layers", "width", "by")]
        command = [sys.executable, __file__, *given, f"--swept={folder}"]
        numbers = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    layer = settings.episodes * settings.queries * settings.width * 4 / 1e6
    numbers |= {"layer_mb": layer, "layers_held": numbers["growth_mb"] / layer}
    Console().print(
        f"{settings.layers} layers x {settings.width}, {settings.episodes} episodes x {settings.queries} queries, "
        f"split by {settings.by}: {numbers['wall_s']:.0f} s, of which {numbers['cpu_s']:.0f} s of processor time "
        f"({numbers['cpu_s'] / settings.layers:.1f} s a layer).\nPeak memory +{numbers['growth_mb']:.0f} MB = "
        f"{numbers['layers_held']:.2f} x one layer of {layer:.0f} MB (promised: less than {PROMISED:.0f}; "
        f"{2 * numbers['layers_held']:.2f} x a layer as stored, float16); all layers would be "
        f"{settings.layers * layer:.0f} MB.\nThe signal is in layer {settings.layers // 2}; found in layer "
        f"{numbers['best']} with AUC {numbers['auc']:.3f}; {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, 1 thread"
    )
    if settings.out:
        given_settings = {name: str(value) for name, value in asdict(settings).items()}
        content = {"settings": given_settings, **numbers, "provenance": provenance()}
        write_atomic(settings.out, json.dumps(content, indent=2) + "\n")


def sweep(folder: Path, settings: Settings) -> dict[str, Any]:
    """Seconds and growth of the peak memory of one sweep."""
    store = RolloutStore.open(folder)
    Failure().labels(store)  # what reading tables needs once is not the sweep's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    found = fit_layers(Probe(("resid_post", 0), target=Failure()), store, by=settings.by)
    best = found.best()
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "growth_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6,
        "best": best.place.layer,
        "auc": best.score.auc,
    }


def write(folder: Path, settings: Settings) -> None:
    """A store in which failures show in the middle layer."""
    os.fsync = lambda handle: None  # the writing is not what is measured
    group = TokenGroup("action_read", tuple(f"blocks.{n}.hook_resid_post" for n in range(settings.layers)))
    store = RolloutStore.create(folder, Manifest((group,), {"suite": "synthetic"}))
    rng = np.random.default_rng(0)
    signal = rng.normal(size=settings.width) / np.sqrt(settings.width)
    base = rng.normal(size=(settings.queries, settings.width))
    for number in range(settings.episodes):
        success = bool(rng.random() < 0.5)
        layers = []
        for layer in range(settings.layers):
            rows = np.roll(base, rng.integers(settings.width), axis=1) + 0.3 * rng.normal(size=settings.width)
            layers.append(rows + 2.0 * signal * (not success and layer == settings.layers // 2))
        records = tuple(
            QueryRecord(
                i,
                8 * i,
                rng.normal(size=(8, 7)),
                np.zeros((8, 7)),
                rng.normal(size=9),
                activations={group.key(site): rows[i] for site, rows in zip(group.sites, layers, strict=True)},
            )
            for i in range(settings.queries)
        )
        unit = Unit("libero_spatial", number % TASKS, number // TASKS)
        store.append(EpisodeRecord(unit, "go", success, 8 * settings.queries, 220, records))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
