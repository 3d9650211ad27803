"""What do forks save an evaluation of several arms, and what does a second process bring it?

    forks      `none` and 8 arms that wait for the gate: begun at the trigger of `none`, against all run from the start
    workers    `none` alone on units of all ten tasks: two processes against one, their start included

Both ways must end in the same rows, which is checked. What forks save depends on how many units are triggered and when,
so both are stated. The second process loads the policy and the simulator as well, as it does in every run.

Measured on a two-core x86-64 virtual machine: forked 35 % of the time from the start, with 3 of 8 units triggered (aim:
50 %); two processes 1.77 x the episodes per minute of one, on 120 units of ten tasks (aim: 1.7).

Needs a fitted gate (`bash experiments/recovery/run.sh risk`).

    python benchmarks/evaluation.py --gate results/recovery/contact/gate.yaml --out results/benchmarks/evaluation.json
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from mist_interp.core.files import write_atomic
from mist_interp.core.provenance import provenance
from mist_interp.evaluation import Evaluation, evaluate
from mist_interp.evaluation.arm_texts import parse_arms
from mist_interp.evaluation.gate_files import read_gate

ARMS = (
    "safe-stop",
    "generic-slow",
    "mist:layer=2",
    "failsafe-style",
    "action-correction:layer=2",
    "random-direction:layer=2",
    "reversed:layer=2",
    "wrong-dimension:layer=2",
)
SAME = ("success", "steps", "events", "trigger_query", "prefix_hash")


@dataclass(frozen=True)
class Settings:
    """Time an evaluation with and without forks, and with one and two processes."""

    gate: Path = Path("results/recovery/contact/gate.yaml")
    """The gate that the arms wait for."""

    tasks: tuple[int, ...] = (0, 3, 6, 9)
    """Tasks of libero_spatial."""

    inits: tuple[int, ...] = (25, 26)
    """Start states of each; none that the gate was fitted on."""

    perturbation: str = "push0.4"
    """What disturbs the robot."""

    many: tuple[int, ...] = tuple(range(25, 37))
    """Start states of every task that two processes share."""

    out: Path | None = None
    """JSON with the numbers, the machine and the versions."""


def main(settings: Settings) -> None:
    """Time both comparisons and print them."""
    torch.set_num_threads(1)
    console = Console()
    numbers: dict[str, Any] = {"provenance": provenance()}
    with tempfile.TemporaryDirectory() as folder:
        runs, seconds = {}, {}
        shared = {"tasks": range(10), "inits": settings.many, "perturbations": ("none",)}
        for name, options in {
            "from the start": {"arms": ("none", *ARMS), "fork": False},
            "forked": {"arms": ("none", *ARMS)},
            "one process": {"arms": ("none",), **shared},
            "two processes": {"arms": ("none",), "workers": 2, **shared},
        }.items():
            begun = time.perf_counter()
            runs[name] = timed(settings, Path(folder) / name.replace(" ", "-"), **options)
            seconds[name] = time.perf_counter() - begun
            console.print(f"{name}: {seconds[name]:.0f} s")
        check_same(runs["from the start"], runs["forked"])
        check_same(runs["one process"], runs["two processes"])
        shadow = [row for row in runs["forked"].folder.rows() if row["arm"] == "none"]
    triggered = [row for row in shadow if row["triggered"]]
    when = sum(row["trigger_query"] / row["queries"] for row in triggered) / max(1, len(triggered))
    numbers |= {
        "forked, as a share of running from the start": seconds["forked"] / seconds["from the start"],
        "episodes per minute of two processes, against one": seconds["one process"] / seconds["two processes"],
        "seconds": seconds,
        "units": len(shadow),
        "triggered": len(triggered),
        "mean place of the trigger in its episode": when,
    }
    for key, value in numbers.items():
        if isinstance(value, int | float):
            console.print(f"{key}: {value:.3g}")
    console.print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread per process")
    if settings.out:
        write_atomic(settings.out, json.dumps(numbers, indent=2) + "\n")


def timed(settings: Settings, out: Path, arms: tuple[str, ...], **options: Any) -> Evaluation:
    """One evaluation into an empty folder."""
    units = {"tasks": settings.tasks, "inits": settings.inits, "perturbations": (settings.perturbation,)}
    gate = read_gate(settings.gate)
    return evaluate("mini", "libero_spatial", parse_arms(arms), out=out, detector=gate, **{**units, **options})


def check_same(one: Evaluation, other: Evaluation) -> None:
    """Refuse to compare the times of runs whose rows differ."""
    rows = [{row["key"]: [row[name] for name in SAME] for row in run.folder.rows()} for run in (one, other)]
    if rows[0] != rows[1]:
        raise RuntimeError(f"{one.folder.path.name} and {other.folder.path.name} end in different rows")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
