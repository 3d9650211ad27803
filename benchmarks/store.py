"""How long does one layer of many queries take to read, beside the same data in one Array2D column?

Synthetic activations, as large as those of 200 episodes of 30 queries, are written twice: into a `RolloutStore` (one
column per layer) and, with `datasets`, into one `Array2D` column of layers x width per query, as data sets of hidden
states usually come. Then one layer of all queries is read from both, several times in turn, and compared for
equality. Promised is less than 2 % of the time. The page cache is warm for both, so what is timed is reading and
decoding, not the disk. `datasets` turns Parquet into files of its own when it first opens them; a later reading, from
these, is timed as well.

    python benchmarks/store.py                      4096 wide, 33 layers: 1.6 GB twice
    python benchmarks/store.py --width 1024         a quarter of it
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tyro
from datasets import Array2D, Dataset, Features, Value, disable_progress_bars
from datasets.arrow_writer import ArrowWriter
from rich.console import Console
from rich.table import Table

from mist_interp.core.files import write_atomic
from mist_interp.core.provenance import provenance
from mist_interp.data import EpisodeRecord, Manifest, QueryRecord, RolloutStore, Unit
from mist_interp.data.manifest import TokenGroup

PROMISED = 0.02


@dataclass(frozen=True)
class Settings:
    """Time one layer from the store and from an Array2D column."""

    episodes: int = 200
    """Episodes."""

    queries: int = 30
    """Queries of each."""

    layers: int = 33
    """Layers that are stored."""

    width: int = 4096
    """Width of each."""

    repeats: int = 3
    """Readings of each kind."""

    scratch: Path | None = None
    """Folder for the data, which is deleted afterwards; default: that of the system."""

    out: Path | None = None
    """JSON with the numbers, the machine and the versions."""


def main(settings: Settings) -> None:
    """Write both, read both, print one table."""
    layer = settings.layers // 2
    disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=settings.scratch) as scratch:
        store = write_store(Path(scratch) / "store", settings)
        column = write_column(Path(scratch) / "column", settings)
        site = store.manifest.groups[0].sites[layer]
        cache = Path(scratch) / "cache"

        def first() -> np.ndarray:
            shutil.rmtree(cache, ignore_errors=True)
            return read_column(column, layer, cache)

        arms: dict[str, Callable[[], np.ndarray]] = {
            "a column per layer (RolloutStore)": lambda: store.load(site)[0],
            "one Array2D column (datasets), first time": first,
            "one Array2D column (datasets), again": lambda: read_column(column, layer, cache),
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for _ in range(settings.repeats):
            found = []
            for name, read in arms.items():
                wall, cpu = time.perf_counter(), time.process_time()
                found.append(read())
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            if not all(np.array_equal(found[0], other) for other in found[1:]):
                raise RuntimeError("they hold different numbers, so their times cannot be compared")
    typical = {name: [median(pair[kind] for pair in rows) for kind in (0, 1)] for name, rows in seconds.items()}
    ours = next(iter(typical.values()))
    shares = {name: {"wall": ours[0] / wall, "cpu": ours[1] / cpu} for name, (wall, cpu) in list(typical.items())[1:]}
    table = Table(f"layer {layer} of {settings.episodes * settings.queries} queries", "wall s", "CPU s", "ours, of it")
    for name, (wall, cpu) in typical.items():
        share = f"{100 * shares[name]['wall']:.2f} % / {100 * shares[name]['cpu']:.2f} %" if name in shares else ""
        table.add_row(name, f"{wall:.3f}", f"{cpu:.3f}", share)
    console = Console()
    console.print(table)
    console.print(
        f"Promised: less than {100 * PROMISED:.0f} %. {settings.layers} layers x {settings.width}, float16, median of "
        f"{settings.repeats}, page cache warm; {platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    )
    if settings.out:
        given = {name: str(value) for name, value in asdict(settings).items()}
        numbers: dict[str, Any] = {"settings": given, "seconds": seconds, "shares": shares, "provenance": provenance()}
        write_atomic(settings.out, json.dumps(numbers, indent=2) + "\n")


def activations(settings: Settings) -> Iterator[np.ndarray]:
    """Per episode (queries, layers, width) float16."""
    base = np.random.default_rng(0).normal(size=(settings.queries, settings.layers, settings.width)).astype(np.float16)
    for number in range(settings.episodes):
        yield np.roll(base, number, axis=2)


def write_store(folder: Path, settings: Settings) -> RolloutStore:
    """As the package keeps them."""
    os.fsync = lambda handle: None  # the writing is not what is measured
    group = TokenGroup("action_read", tuple(f"blocks.{n}.hook_resid_post" for n in range(settings.layers)))
    store = RolloutStore.create(folder, Manifest((group,), {"suite": "synthetic"}))
    chunk, state = np.zeros((8, 7)), np.zeros(9)
    for number, rows in enumerate(activations(settings)):
        records = tuple(
            QueryRecord(
                i, 8 * i, chunk, chunk, state, activations={group.key(s): row[n] for n, s in enumerate(group.sites)}
            )
            for i, row in enumerate(rows)
        )
        unit = Unit("libero_spatial", number // 50, number % 50)
        store.append(EpisodeRecord(unit, "go", True, 8 * len(records), 220, records))
    return store


def write_column(folder: Path, settings: Settings) -> Path:
    """As one column of layers x width, in Parquet."""
    folder.mkdir()
    shape = (settings.layers, settings.width)
    features = Features({"episode": Value("int32"), "activations": Array2D(shape, "float16")})
    for number, rows in enumerate(activations(settings)):
        arrow = folder / "episode.arrow"
        with ArrowWriter(path=str(arrow), features=features) as writer:
            writer.write_batch({"episode": [number] * len(rows), "activations": list(rows)})
            writer.finalize()
        Dataset.from_file(str(arrow)).to_parquet(folder / f"{number:05d}.parquet")
        arrow.unlink()
    return folder


def read_column(folder: Path, layer: int, cache: Path) -> np.ndarray:
    """One layer of all rows; the column holds all layers, so all are decoded."""
    files = sorted(str(path) for path in folder.glob("*.parquet"))
    rows = Dataset.from_parquet(files, cache_dir=str(cache), columns=["activations"])
    batches = rows.with_format("numpy", dtype=np.float16).iter(batch_size=256)
    return np.concatenate([batch["activations"][:, layer].astype(np.float32) for batch in batches])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
