"""What would the expert have done at each query of the recorded rollouts (`mist_interp.probing.advice`)?

Writes one file per episode to <out>/advice; run it again and it goes on; processes share the folder with --shard i/n.

    python experiments/recovery/advise.py --rollouts runs/study/mini --out runs/study
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.progress import track

from mist_interp.data import RolloutStore
from mist_interp.data.replay import Environments
from mist_interp.probing.advice import Advice, advise


@dataclass(frozen=True)
class Settings:
    """Ask the expert."""

    rollouts: Path = Path("runs/study/mini")
    """Recorded rollouts of libero_spatial."""

    out: Path = Path("runs/study")
    """Folder in which the folder `advice` is made."""

    perturbations: tuple[str, ...] = ("none", "push1", "noise0.3", "bias0.15")
    """Of which episodes, in this order."""

    inits: int = 13
    """Of start states below this one: those that the deviation is fitted on."""

    shard: str = "0/1"
    """i/n: this process asks on every n-th episode, from the i-th."""


def main(settings: Settings) -> None:
    """Ask, resumably."""
    store, advice = RolloutStore.open(settings.rollouts), Advice(settings.out / "advice")
    rows = store.episodes(["episode", "task", "init_state", "perturbation"])
    rows = rows[rows["init_state"] < settings.inits]
    keys = [
        key
        for name in settings.perturbations
        for key in rows.loc[rows["perturbation"] == name].sort_values(["task", "init_state"])["episode"]
    ]
    index, count = (int(part) for part in settings.shard.split("/"))
    with Environments() as environments:
        for key in track([key for key in keys[index::count] if key not in advice], "episodes"):
            episode = store.episode(key)
            advice.append(key, advise(environments.of(episode), episode))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
