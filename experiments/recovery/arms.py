"""Which arms does the study of recovery compare, and with what strength?

Writes two lists that `mist eval --arms` reads: `main.yaml` (the arm under test beside its placebos and rivals) and
`ablations.yaml` (one thing changed at a time, for the validation split). Also made here, from training start states
only: the direction of success (difference of means) and the neurons that move dz most.

    python experiments/recovery/arms.py --rollouts runs/study/mini --fit results/recovery/fit
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
import yaml

from mist_interp import HookedVLA
from mist_interp.analysis.neurons import neuron_effects, neuron_table
from mist_interp.data import RolloutStore
from mist_interp.libero import LiberoEnv, LiberoSuite
from mist_interp.probing.contrasts import contrast_sets
from mist_interp.steering import SteeringDirection

PLACEBOS = ("random-direction", "reversed", "wrong-dimension", "noise")


@dataclass(frozen=True)
class Settings:
    """Write the lists of arms."""

    rollouts: Path = Path("runs/study/mini")
    """Recorded rollouts."""

    fit: Path = Path("results/recovery/fit")
    """Folder of `fit.py`; the lists are written there."""

    run: Path = Path("results/recovery/main")
    """Results folder of the main table: the sham triggers take their number from its `none`."""

    train: tuple[int, int] = (0, 13)
    """Start states that directions are made from: from, up to but without."""

    layer: int = 2
    """Block behind which `mist` edits."""

    dims: tuple[str, ...] = ("dx", "dy", "dz", "gripper")
    """Dimensions that `mist` may move."""

    size: float = 1.0
    """Share of the deviation that is to be made up."""


def main(settings: Settings) -> None:
    """Directions, neurons, lists."""
    made = settings.fit / "success_direction"
    store = RolloutStore.open(settings.rollouts)
    rows = store.episodes(["episode", "init_state"])
    train = store.only(rows.loc[rows["init_state"].between(settings.train[0], settings.train[1] - 1), "episode"])
    failed, succeeded = contrast_sets(train, ("resid_post", settings.layer), target="failure")
    SteeringDirection.from_contrast(succeeded, failed).save(made)
    mist = edit(settings)
    lists: dict[str, list[Any]] = {
        "main": [
            "none",
            "safe-stop",
            "generic-slow",
            mist,
            "failsafe-style",
            {**mist, "kind": "action-correction"},
            *({**mist, "kind": kind} for kind in PLACEBOS),
            {"kind": "concept-neurons", "neurons": raising(), "when": "fired"},
            {"kind": "sham-triggers", "arm": mist, "of": str(settings.run)},
            {"kind": "constant-steer", "direction": str(made)},
        ],
        "ablations": ablations(settings, mist),
    }
    for name, arms in lists.items():
        (settings.fit / f"{name}.yaml").write_text(yaml.safe_dump(arms, sort_keys=False))
        print(f"{name}: {', '.join(arm if isinstance(arm, str) else arm.get('name', arm['kind']) for arm in arms)}")


def edit(settings: Settings) -> dict[str, Any]:
    """The arm under test."""
    return {
        "kind": "mist",
        "wanted": "learned",
        "target": str(settings.fit / "deviation"),
        "size": settings.size,
        "layer": settings.layer,
        "dims": list(settings.dims),
        "otherwise": list(settings.dims),
        "rounds": 3,
        "stride": 0.5,
        "adapt": False,
    }


def ablations(settings: Settings, mist: dict[str, Any]) -> list[Any]:
    """One thing changed at a time."""
    unlearned = {key: value for key, value in mist.items() if key != "target"}
    others = [layer for layer in range(4) if layer != settings.layer]
    return [
        "none",
        mist,
        *({**mist, "layer": layer, "name": f"layer-{layer}"} for layer in others),
        *({**mist, "size": size, "name": f"size-{size}"} for size in (0.5, 1.5)),
        {**mist, "rounds": 1, "name": "one-round"},
        {**mist, "hold": False, "name": "hold-nothing"},
        {**mist, "generic": True, "name": "all-dimensions-at-once"},
        {**mist, "dims": ["dz", "gripper"], "name": "dz-and-gripper"},
        {**unlearned, "wanted": "retreat", "size": 0.3, "name": "retreat"},
        {**unlearned, "wanted": "brake", "size": 0.7, "name": "brake"},
        {**mist, "when": "triggered", "name": "from-the-trigger-on"},
    ]


def raising(count: int = 4) -> list[list[int]]:
    """The neurons that raise dz most, by the direct path, at the first pictures of four tasks."""
    vla, suite, inputs = HookedVLA.from_pretrained("mini"), LiberoSuite("libero_spatial"), []
    for task in suite.tasks[:4]:
        env = LiberoEnv(task)
        env.reset(0)
        inputs.append(vla.prepare(env.observe(), task.instruction))
        env.close()
    effects = neuron_effects(vla, type(inputs[0]).cat(inputs))
    table = neuron_table(effects, 3 * count)
    found = table[(table["dim"] == "dz") & (table["effect"] > 0)].head(count)
    return [[int(row.layer), int(row.neuron)] for row in found.itertuples()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Settings, description=__doc__))
