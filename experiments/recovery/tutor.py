"""What would the expert do in the states that the *edited* policy comes into?

A read-out fitted on the unedited policy's states is asked about others as soon as it is acted upon. Here the edit of
the arm `mist` is live at every query of training start states; beside what the read-out sees, the expert's chunk is
noted, rehearsed on a fork of the simulator (DAgger: Ross et al., 2011). `deviation.py` takes the files up.

Run it again and it goes on; processes share the folder with --shard i/n.

    python experiments/recovery/tutor.py --fit results/recovery/first --out runs/study/tutored
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from mist_interp.core.files import write_atomic
from mist_interp.data.records import Unit
from mist_interp.evaluation import evaluate
from mist_interp.evaluation.arms import ArmLog, Mist, Query
from mist_interp.evaluation.environments import make_libero_env
from mist_interp.libero.expert import Expert
from mist_interp.probing.advice import as_dataset, rehearsed
from mist_interp.probing.deviation import Deviation, half_range_of


@dataclass(frozen=True)
class Settings:
    """Ask the expert beside the edited policy."""

    fit: Path = Path("results/recovery/first")
    """Folder with the deviation of `deviation.py`."""

    out: Path = Path("runs/study/tutored")
    """Folder for a file per episode, and for the results folder of the run."""

    inits: tuple[int, int] = (0, 13)
    """Start states: from, up to but without; only those that may be fitted on."""

    perturbations: tuple[str, ...] = ("push1", "none")
    """One after the other."""

    layer: int = 2
    """Block behind which the edit is made."""

    shard: str = "0/1"
    """i/n: this process's part of the episodes."""


@dataclass
class World:
    """The running environment and its expert, for an arm that sees more than a policy does."""

    env: Any = None
    expert: Any = None

    def make(self, task: Any, unit: Unit, render: dict[str, Any]) -> Any:
        """An environment that is remembered."""
        self.env = make_libero_env(task, unit, render)
        return self.env


@dataclass(frozen=True)
class Tutored:
    """The edit of `mist`, and beside it the notes: rows of the read-out, and what the expert does otherwise."""

    edit: Mist
    world: World
    folder: Path
    notes: dict[str, list[np.ndarray]] = field(default_factory=dict)
    name: str = "tutored"
    gated: bool = False

    @property
    def sites(self) -> tuple[Any, ...]:
        """See `Arm`."""
        return self.edit.sites

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        return {"kind": "tutored", "edit": self.edit.config()}

    def act(self, vla: Any, inputs: Any, query: Query) -> Any:
        """Note, then edit; the file is written anew at each query, so the last one has all."""
        assert self.edit.target is not None
        if query.index == 0:
            self.notes.clear()
            self.world.expert = Expert(self.world.env)
        with torch.no_grad():
            said, cache = vla.run_with_cache(inputs, names=list(self.sites))
        asked = as_dataset(rehearsed(self.world.env, self.world.expert, said.values.shape[1]))
        note = {
            "rows": self.edit.target.rows_of(cache)[0].astype(np.float16),
            "deviation": (asked - said.values[0].double().numpy()) / half_range_of(vla.policy),
        }
        for key, value in note.items():
            self.notes.setdefault(key, []).append(value)
        buffer = io.BytesIO()
        np.savez(buffer, **{key: np.stack(values) for key, values in self.notes.items()})
        write_atomic(self.folder / f"{query.unit.key.replace('/', '+')}.npz", buffer.getvalue())
        chunk, log = self.edit.act(vla, inputs, replace(query, clean=said, cache=cache))
        return chunk, ArmLog(self.name, log.edit_norm)


def main(settings: Settings) -> None:
    """Run, resumably."""
    torch.set_num_threads(1)
    world, target = World(), Deviation.load(settings.fit / "deviation")
    edit = Mist(
        ("resid_post", settings.layer),
        size=1.0,
        wanted="learned",
        target=target,
        generic=True,
        rounds=3,
        stride=0.5,
        adapt=False,
        when="always",
    )
    for perturbation in settings.perturbations:
        folder = settings.out / perturbation
        (folder / "notes").mkdir(parents=True, exist_ok=True)
        evaluate(
            "mini",
            "libero_spatial",
            [Tutored(edit, world, folder / "notes")],
            out=folder / "run",
            inits=range(*settings.inits),
            perturbations=[perturbation],
            shard=settings.shard,
            make_env=world.make,
        )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
