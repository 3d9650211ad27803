"""Where will the edit help and where will it spoil? A second head for the gate, fitted on forked twins.

Takes a results folder with `none` and the arm, on start states that serve nothing else; brings every triggered unit to
its trigger again by replaying what was executed, and reads there what the gate would see. Some start states teach
`Benefit`, the others set its limit. A bad outcome is a failure of the task here. Writes benefit/ and a gate.yaml that
asks it.

    python experiments/recovery/benefit.py --run results/recovery/twins --out results/recovery/careful
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
import yaml

from mist_interp import HookedVLA
from mist_interp.data.records import EpisodeRecord, Unit
from mist_interp.data.replay import replay_until
from mist_interp.evaluation.environments import EnvironmentPool
from mist_interp.evaluation.folder import ResultsFolder
from mist_interp.evaluation.plan import PlannedEpisode
from mist_interp.libero import LiberoSuite
from mist_interp.probing.benefit import Benefit, TwinGain


@dataclass(frozen=True)
class Settings:
    """Fit the benefit of acting."""

    run: Path = Path("results/recovery/twins")
    """Results folder with `none` and the arm."""

    gate: Path = Path("results/recovery/contact/gate.yaml")
    """The gate that the folder was run with; the new one is this with a benefit."""

    out: Path = Path("results/recovery/careful")
    """Folder for benefit/ and gate.yaml."""

    arm: str = "mist-free"
    """Whose benefit."""

    layer: int = 2
    """Block whose residual stream is read."""

    alpha: float = 0.3
    """Tolerated share of the units that acting spoils and that are acted upon all the same."""


def main(settings: Settings) -> None:
    """Read, fit, calibrate, judge, write."""
    torch.set_num_threads(1)
    vla, head = HookedVLA.from_pretrained("mini"), Benefit(("resid_post", settings.layer))
    twins = twin_gains(settings, vla, head)
    middle = np.median([twin.unit.init_state for twin in twins])
    first = [twin for twin in twins if twin.unit.init_state <= middle]
    second = [twin for twin in twins if twin.unit.init_state > middle]
    head.fit(first, vla.site(head.site))
    told = head.predict(np.stack([twin.row for twin in second]))
    gains = np.array([twin.gain for twin in second])
    head.calibrate(second, settings.alpha).save(settings.out / "benefit")
    gate = yaml.safe_load(settings.gate.read_text()) | {"benefit": str(settings.out / "benefit")}
    (settings.out / "gate.yaml").write_text(yaml.safe_dump(gate, sort_keys=False))
    print(f"{len(first)} twins to fit on: {head.source_}")
    print(f"{len(second)} others: saved {(gains > 0).sum()}, spoilt {(gains < 0).sum()}; told apart from the rest with")
    print(f"correlation {np.corrcoef(told, gains)[0, 1]:.2f}; it would act in {np.mean(told > head.threshold_):.0%}")
    print(head)


def twin_gains(settings: Settings, vla: Any, head: Benefit) -> list[TwinGain]:
    """The triggered units of the folder.

    Raises:
        ValueError: a replay leaves the recorded states, or the policy answers otherwise than it did.
    """
    folder = ResultsFolder(settings.run)
    render = {key: folder.config()["settings"][key] for key in ("profile", "resolution")}
    ended: dict[Unit, dict[str, Any]] = {}
    for row in folder.rows():
        planned = PlannedEpisode.from_row(row)
        if row["status"] == "ok":
            ended.setdefault(planned.unit, {})[planned.arm] = row
    found, pool = [], None
    for unit, rows in sorted(ended.items(), key=lambda item: (item[0].task, item[0].key)):
        if {"none", settings.arm} <= rows.keys() and rows["none"]["triggered"]:
            pool = pool or EnvironmentPool(LiberoSuite(unit.suite).tasks, render)
            shadow = folder.record(rows["none"])
            row = row_at_trigger(pool.get(unit), shadow, int(rows["none"]["trigger_query"]), vla, head)
            found.append(TwinGain(unit, row, int(rows[settings.arm]["success"]) - int(rows["none"]["success"])))
    if pool is not None:
        pool.close()
    return found


def row_at_trigger(env: Any, episode: EpisodeRecord, at: int, vla: Any, head: Benefit) -> np.ndarray:
    """What the head reads at query `at`, where the alarm came on."""
    query = episode.queries[at]
    replay_until(env, episode, query.step)
    with torch.no_grad():
        said, cache = vla.run_with_cache(vla.prepare(env.observe(), episode.instruction), names=list(head.sites))
    if not np.allclose(said.values[0].numpy(), query.chunk, atol=1e-6):
        raise ValueError(f"at the trigger of {episode.key} the policy answers otherwise than it did")
    return head.row_of(cache)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
