"""Episodes in which every dimension can be to blame: random drives of the arm, recorded like rollouts.

A policy that mostly succeeds collides in few ways (mini comes down too low: dz), and an audit on one kind of event says
nothing about the others. Here the arm is driven by random chunks: a direction, a turn and a gripper command that last
for 16 control steps, biased towards the table.

    python experiments/labels/pushes.py --out runs/pushes && python experiments/labels/audit.py --rollouts runs/pushes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from mist_interp.core.provenance import provenance
from mist_interp.data import Decision, Manifest, RolloutStore, Unit
from mist_interp.data.records import episode_key
from mist_interp.data.replay import Blindfolded
from mist_interp.data.rollout import Act, rollout
from mist_interp.libero import LiberoEnv, LiberoSuite

CHUNK = 8
LASTS = 2  # chunks


@dataclass(frozen=True)
class Settings:
    """Record random drives."""

    out: Path
    """Folder of the store."""

    suite: str = "libero_spatial"
    """LIBERO suite."""

    tasks: tuple[int, ...] = (0, 3, 6, 9)
    """Tasks of the suite."""

    per_task: int = 6
    """Episodes per task; start state and seed count up."""

    steps: int = 80
    """Control steps per episode."""


def main(settings: Settings) -> None:
    """Drive and record, resumably."""
    suite = LiberoSuite(settings.suite)
    manifest = Manifest((), {"policy": "random drives", "suite": suite.name, "steps": settings.steps})
    store = RolloutStore.create(settings.out, manifest)
    for index in settings.tasks:
        env = LiberoEnv(suite.tasks[index])
        try:
            for number in range(settings.per_task):
                unit = Unit(suite.name, index, number, policy_seed=number)
                if episode_key(unit) in store:
                    continue
                store.append(
                    rollout(
                        Blindfolded(env),
                        driver((index, number)),
                        unit=unit,
                        instruction=suite.tasks[index].instruction,
                        max_steps=settings.steps,
                        provenance=provenance(),
                    )
                )
        finally:
            env.close()
    print(f"{len(store)} episodes, {sum(len(contacts) for contacts in store.episodes()['contacts'])} contact events")


def driver(seed: tuple[int, int]) -> Act:
    """An `act` function that drives in random directions, the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    drive = np.zeros(7)

    def act(observation: object, query: int) -> Decision:
        nonlocal drive
        if query % LASTS == 0:
            drive = np.concatenate(
                [rng.normal(0, 0.4, 3) - (0, 0, 0.3), rng.normal(0, 0.25, 3), rng.choice([-1, 1], 1)]
            )
        actions = np.tile(np.clip(drive, -1, 1), (CHUNK, 1))
        return Decision(actions, chunk=actions)

    return act


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
