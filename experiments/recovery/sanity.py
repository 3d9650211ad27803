"""Can the evaluation tell good from bad where everything is real: `mini`, LIBERO, the fitted gate?

Two arms whose worth is known. From the trigger on the *oracle* lets the scripted expert drive, who sees the simulator's
state, and the *saboteur* drives the hand down into whatever is below. A fair evaluation finds a high causal recovery
rate and little harm in the one, and the reverse in the other.

    python experiments/recovery/sanity.py --gate results/recovery/contact/gate.yaml --out results/recovery/sanity
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from mist_interp.core.actions import ActionChunk
from mist_interp.data.records import Unit
from mist_interp.evaluation import NoEdit, evaluate
from mist_interp.evaluation.arms import Arm, ArmLog, Query
from mist_interp.evaluation.environments import make_libero_env
from mist_interp.evaluation.gate_files import read_gate
from mist_interp.libero.expert import Expert

CHUNK = 8


@dataclass(frozen=True)
class Settings:
    """Run `none`, oracle and saboteur."""

    gate: Path = Path("results/recovery/contact/gate.yaml")
    """The gate that they wait for."""

    out: Path = Path("results/recovery/sanity")
    """Results folder."""

    inits: tuple[int, ...] = tuple(range(20, 25))
    """Start states of every task of libero_spatial."""


def main(settings: Settings) -> None:
    """Run and print the counts."""
    torch.set_num_threads(1)
    world = World()
    result = evaluate(
        "mini",
        "libero_spatial",
        known_arms(world),
        out=settings.out,
        inits=settings.inits,
        detector=read_gate(settings.gate),
        make_env=world.make,
        videos="none",
    )
    for name, facts in result.summary()["twins"]["arms"].items():
        for outcome in ("failure", "event"):
            found = facts[outcome]
            saved = f"{found['recovered']} of {found['bad_under_reference']} saved"
            print(f"{name}, {outcome}: {saved}, {found['harmed']} of {found['good_under_reference']} spoilt")


@dataclass
class World:
    """Hands the running environment to arms that see more than a policy does."""

    env: Any = None
    experts: dict[Unit, Expert] = field(default_factory=dict)

    def make(self, task: Any, unit: Unit, render: dict[str, Any]) -> Any:
        """Builds the environment for `evaluate`."""
        self.env = make_libero_env(task, unit, render)
        return self.env


@dataclass(frozen=True)
class Scripted:
    """From the trigger on someone else drives; before it the policy does."""

    world: World = field(default_factory=World)
    name: str = "idle"
    gated: bool = True

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        return {"kind": self.name}

    def act(self, vla: Any, inputs: Any, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        if not query.triggered:
            return vla(inputs), ArmLog()
        return self.drive(vla, inputs, query), ArmLog(self.name, 1.0)

    def drive(self, vla: Any, inputs: Any, query: Query) -> ActionChunk:
        """What is done instead: nothing else."""
        return vla(inputs)


class Oracle(Scripted):
    """The scripted expert rehearses a chunk, and the world is put back."""

    def drive(self, vla: Any, inputs: Any, query: Query) -> ActionChunk:
        """See `Scripted`."""
        env, actions = self.world.env, []
        expert = self.world.experts.setdefault(query.unit, Expert(env))  # it keeps the hand as it was at the trigger
        before = env.save()
        for _ in range(CHUNK):
            actions.append(expert.act())
            env.step(actions[-1])
        env.restore(before)
        return chunk_of(np.stack(actions)[:, :6], np.stack(actions)[:, 6])


class Saboteur(Scripted):
    """Drives the hand down into whatever is below."""

    def drive(self, vla: Any, inputs: Any, query: Query) -> ActionChunk:
        """See `Scripted`."""
        return chunk_of(np.tile([0.0, 0.0, -1.0, 0.0, 0.0, 0.0], (CHUNK, 1)), gripper=1.0)


def known_arms(world: World) -> tuple[Arm, ...]:
    """`none`, an arm that is good and one that is bad."""
    return NoEdit(), Oracle(world, "oracle"), Saboteur(world, "saboteur")


def chunk_of(pose: np.ndarray, gripper: Any) -> ActionChunk:
    """A chunk that sends this pose and this gripper command (-1 opens) to the environment."""
    values = torch.zeros(1, len(pose), 7, dtype=torch.float64)
    values[0, :, :6] = torch.as_tensor(pose)
    values[0, :, 6] = torch.as_tensor(np.where(np.asarray(gripper) < 0, 1.0, 0.0))
    return ActionChunk(values, values)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
