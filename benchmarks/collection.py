"""What does recording activations cost an episode, beside the same episode without?

The loop of collection runs each start state several times in one environment: bare (`rollout` with a policy that only
acts), recording (with the residual stream of all layers, pooled over the action tokens, as `mist collect` does by
default) and recording with the write to disk. Every start state is run in the order A B B A (the next one B A A B), so
that warm-up and drift hit both alike; the share is of paired times. The arms must execute the same actions, which is
checked. Allowed contacts are recorded in all of them: measured apart, they cost a control step of 12 ms 0.2 % while
nothing is touched, 2.8 % while an object is held and 3.7 % while it stands on its goal.

    python benchmarks/collection.py --out results/benchmarks/collection.json
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from mist_interp import HookedVLA
from mist_interp.core.files import write_atomic
from mist_interp.core.provenance import provenance
from mist_interp.data import Decision, Manifest, RolloutStore, Unit
from mist_interp.data.capture import caching_act, token_groups
from mist_interp.data.rollout import rollout
from mist_interp.libero import LiberoEnv, LiberoSuite

ARMS = ACTING, RECORDING, WRITING = "acting only", "recording", "recording and writing"


@dataclass(frozen=True)
class Seconds:
    """Wall time, and processor time of this process, which a busy neighbour disturbs less."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Seconds:
        """The clocks."""
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)


@dataclass(frozen=True)
class Settings:
    """Seconds of an episode: acting only, recording, and recording with the write."""

    policy: str = "mini"
    """Policy that acts."""

    suite: str = "libero_spatial"
    """Its suite."""

    task: int = 0
    """Task of the suite."""

    episodes: int = 4
    """Start states; each is one round of all arms."""

    max_steps: int = 120
    """Step limit of an episode."""

    out: Path | None = None
    """JSON with the numbers, the machine and the versions."""


def main(settings: Settings) -> None:
    """Time all arms and print one table."""
    torch.set_num_threads(1)
    console = Console()
    vla = HookedVLA.from_pretrained(settings.policy)
    task = LiberoSuite(settings.suite).tasks[settings.task]
    groups = token_groups(vla, "resid_post", "action_read", "mean")
    acts = {ACTING: acting(vla, task.instruction), RECORDING: caching_act(vla, task.instruction, groups)}
    rows: dict[str, list[Seconds]] = {name: [] for name in ARMS}
    size, queries = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        store = RolloutStore.create(folder, Manifest(groups))
        env = LiberoEnv(task)
        for number in range(-1, settings.episodes):  # the first round builds the renderer and is not counted
            spent: dict[str, list[Seconds]] = {name: [] for name in ARMS}
            executed = []
            first, second = ARMS[:2] if number % 2 else ARMS[1::-1]
            for name in (first, second, second, first):
                unit = Unit(settings.suite, settings.task, max(number, 0))
                limit = settings.max_steps if number >= 0 else 16
                begun = Seconds.now()
                record = rollout(env, acts[name], unit=unit, instruction=task.instruction, max_steps=limit)
                spent[name].append(Seconds.now() - begun)
                executed.append(np.concatenate([query.executed for query in record.queries]))
                if name == RECORDING:
                    store.append(record)
                    spent[WRITING].append(Seconds.now() - begun)
            if not all(np.array_equal(actions, executed[0]) for actions in executed):
                raise RuntimeError("the arms executed different actions, so their times cannot be compared")
            if number >= 0:
                queries += len(record.queries)
                for name, pair in spent.items():
                    rows[name].append(pair[0] + pair[1])
        env.close()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    table = Table("an episode", "wall s", "CPU s", "wall, against acting only", "CPU, against acting only")
    shares = {name: {kind: paired_share(rows[name], rows[ACTING], kind) for kind in ("wall", "cpu")} for name in ARMS}
    for name in ARMS:
        medians = [f"{median(getattr(row, kind) for row in rows[name]) / 2:.2f}" for kind in ("wall", "cpu")]
        cells = [
            "{1:+.1f} % ({0:+.1f} to {2:+.1f})".format(*(100 * x for x in share)) for share in shares[name].values()
        ]
        table.add_row(name, *medians, *cells)
    console.print(table)
    console.print(
        f"{settings.episodes} start states, each arm twice, at most {settings.max_steps} steps; {queries} queries, "
        f"{size / 1e3 / max(queries, 1):.0f} kB a query; {platform.processor() or platform.machine()}, 1 thread"
    )
    if settings.out:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        numbers: dict[str, Any] = {"overhead": shares, "provenance": provenance()}
        numbers["seconds"] = {name: [(row.wall / 2, row.cpu / 2) for row in rows[name]] for name in ARMS}
        write_atomic(settings.out, json.dumps(numbers, indent=2) + "\n")


def acting(vla: Any, instruction: str) -> Callable[[Any, int], Decision]:
    """An `act` function that records nothing."""

    def act(observation: Any, query: int) -> Decision:
        with torch.no_grad():
            chunk = vla(vla.prepare(observation, instruction))
        return Decision(chunk.to_env()[0].double().cpu().numpy(), chunk.values[0].double().cpu().numpy())

    return act


def paired_share(times: list[Seconds], reference: list[Seconds], kind: str) -> tuple[float, float, float]:
    """Smallest, median and largest extra time of a pair, as a share of the reference."""
    extra = [getattr(time, kind) / getattr(base, kind) - 1 for time, base in zip(times, reference, strict=True)]
    return min(extra), median(extra), max(extra)


if __name__ == "__main__":
    main(tyro.cli(Settings))
