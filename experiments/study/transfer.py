"""Can the risk be read in one policy with what was learned of another?

Brings the hidden states of `mini` and `mini-base` to common features without labels (whitened; or matched on the states
of the same moments), fits one read-out on the labels of each and of both, and judges each policy in tasks that neither
the labels nor the adapters have seen. A matrix per target: rows say whose labels were fitted, columns who is judged.

    python experiments/study/transfer.py --rollouts runs/study/mini runs/study/mini-base
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import torch
import tyro
from matplotlib.figure import Figure

from mist_interp.analysis.figures import STYLE
from mist_interp.data import RolloutStore
from mist_interp.data.activation_set import unit_of_episode
from mist_interp.data.records import Unit
from mist_interp.probing import PolicyPredictor, Risk, Transfer, transfer
from mist_interp.probing.networks import MLP

WAYS = ("whitened", "matched")


@dataclass(frozen=True)
class Settings:
    """Transfer of read-outs between two policies."""

    rollouts: tuple[Path, Path] = (Path("runs/study/mini"), Path("runs/study/mini-base"))
    """Recorded rollouts of the two."""

    policies: tuple[str, str] = ("mini", "mini-base")
    """Their names."""

    out: Path = Path("results/study")
    """Folder for the table and the figure."""

    layer: int = 2
    """Block whose residual stream is read, in both."""

    dimensions: tuple[str, ...] = ("dz", "gripper")
    """Of the risk of contacts; few others have positives in both policies."""

    draws: int = 2000
    """Bootstrap draws."""


def main(settings: Settings) -> None:
    """Both targets, both ways."""
    torch.set_num_threads(1)
    settings.out.mkdir(parents=True, exist_ok=True)
    stores = shared(
        {name: RolloutStore.open(path) for name, path in zip(settings.policies, settings.rollouts, strict=True)}
    )
    print(", ".join(f"{name}: {len(store)} episodes" for name, store in stores.items()))
    found = {}
    for target in ("failure", Risk(dimensions=settings.dimensions)):
        for way in WAYS:
            reader = PolicyPredictor(("resid_post", settings.layer), way=way, network=MLP((64,)), target=target)
            name = target if isinstance(target, str) else "contact"
            found[name, way] = transfer(reader, stores, draws=settings.draws)
            print(f"\n{name}, {way}, mean over outputs\n{found[name, way].to_frame().round(2).to_string()}", flush=True)
    cells = pd.concat(
        {key: pd.DataFrame([vars(score) for score in one.scores]) for key, one in found.items()},
        names=["target", "way"],
    )
    cells.to_csv(settings.out / "transfer.csv")
    draw(found).savefig(settings.out / "transfer.png", dpi=150)


def shared(stores: dict[str, RolloutStore]) -> dict[str, RolloutStore]:
    """Only the situations (task, start state, condition) that all policies were in."""
    units = {name: {*unit_of_episode(store).values()} for name, store in stores.items()}
    common = set.intersection(*({situation(unit) for unit in of} for of in units.values()))
    return {
        name: store.where(units=[unit for unit in units[name] if situation(unit) in common])
        for name, store in stores.items()
    }


def situation(unit: Unit) -> tuple[str, int, int, str]:
    """What policies share, whatever their seeds."""
    return unit.suite, unit.task, unit.init_state, unit.perturbation


def draw(found: dict[tuple[str, str], Transfer]) -> Figure:
    """A matrix per target and way."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(found), 3.4), layout="constrained")
        for axis, ((target, way), one) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
            one.plot(ax=axis).set_title(f"{target}, {way}")
    return figure


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
