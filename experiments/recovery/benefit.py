"""Where will the edit help and where will it spoil? A second head for the gate, fitted on forked twins.

Takes a results folder with `none` and the arm, on start states that serve nothing else; brings every triggered unit to
its trigger again by replaying what was executed, and reads there what the gate would see. Some start states teach
`Benefit`, the others set its limit. Twice, for two kinds of bad outcome: a failure of the task, and whatever is not a
success without a contact. Each writes benefit/ and a gate.yaml that asks it, to failure/ and unsafe/.

    python experiments/recovery/benefit.py --run results/recovery/twins --out results/recovery/careful
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator, Sequence
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
from mist_interp.evaluation.folder import ResultsFolder, Row
from mist_interp.evaluation.plan import PlannedEpisode
from mist_interp.libero import LiberoSuite
from mist_interp.probing.benefit import Benefit, TwinGain

OUTCOMES: dict[str, Callable[[Row], bool]] = {
    "failure": lambda row: not row["success"],
    "unsafe": lambda row: not row["success"] or bool(row["collision_1n"]),
}


@dataclass(frozen=True)
class Settings:
    """Fit the benefit of acting."""

    run: Path = Path("results/recovery/twins")
    """Results folder with `none` and the arm."""

    gate: Path = Path("results/recovery/contact/gate.yaml")
    """The gate that the folder was run with; the new one is this with a benefit."""

    out: Path = Path("results/recovery/careful")
    """Folder for failure/ and unsafe/."""

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
    twins = list(triggered_twins(settings, vla, head))
    for name, bad in OUTCOMES.items():
        gains = [TwinGain(unit, row, int(bad(none)) - int(bad(arm))) for unit, row, none, arm in twins]
        write(settings, name, vla, Benefit(("resid_post", settings.layer)), gains)


def write(settings: Settings, name: str, vla: Any, head: Benefit, twins: Sequence[TwinGain]) -> None:
    """One head: fitted on the first half of the start states, its limit from the second."""
    middle = np.median([twin.unit.init_state for twin in twins])
    first = [twin for twin in twins if twin.unit.init_state <= middle]
    second = [twin for twin in twins if twin.unit.init_state > middle]
    head.fit(first, vla.site(head.site))
    told = head.predict(np.stack([twin.row for twin in second]))
    gains = np.array([twin.gain for twin in second])
    folder = settings.out / name
    head.calibrate(second, settings.alpha).save(folder / "benefit")
    gate = yaml.safe_load(settings.gate.read_text()) | {"benefit": str(folder / "benefit")}
    (folder / "gate.yaml").write_text(yaml.safe_dump(gate, sort_keys=False))
    print(f"{name}: {len(first)} twins to fit on: {head.source_}")
    print(f"{len(second)} others: saved {(gains > 0).sum()}, spoilt {(gains < 0).sum()}; told apart from the rest with")
    print(f"correlation {np.corrcoef(told, gains)[0, 1]:.2f}; it would act in {np.mean(told > head.threshold_):.0%}")
    print(head, flush=True)


def triggered_twins(settings: Settings, vla: Any, head: Benefit) -> Iterator[tuple[Unit, np.ndarray, Row, Row]]:
    """Of the triggered units of the folder: what is read at the trigger, and the rows of `none` and of the arm.

    Raises:
        ValueError: a replay leaves the recorded states, or the policy answers otherwise than it did.
    """
    folder = ResultsFolder(settings.run)
    render = {key: folder.config()["settings"][key] for key in ("profile", "resolution")}
    ended: dict[Unit, dict[str, Row]] = {}
    for row in folder.rows():
        planned = PlannedEpisode.from_row(row)
        if row["status"] == "ok":
            ended.setdefault(planned.unit, {})[planned.arm] = row
    pool = None
    for unit, rows in sorted(ended.items(), key=lambda item: (item[0].task, item[0].key)):
        if {"none", settings.arm} <= rows.keys() and rows["none"]["triggered"]:
            pool = pool or EnvironmentPool(LiberoSuite(unit.suite).tasks, render)
            none = rows["none"]
            seen = row_at_trigger(pool.get(unit), folder.record(none), int(none["trigger_query"]), vla, head)
            yield unit, seen, none, rows[settings.arm]
    if pool is not None:
        pool.close()


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
