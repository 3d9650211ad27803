"""Another opening of the gate and aim of the edit: the deviation from the expert, read off the activations of `mini`.

Fits `Deviation` on one range of start states, calibrates the alarm on another, and writes both with a gate.yaml that
`mist eval --detector` reads. Prints how well each dimension is read in start states and in tasks that were left out.

    python experiments/recovery/deviation.py --advice runs/study/advice --out results/recovery/deviation
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
import yaml
from risk import part
from sklearn.metrics import roc_auc_score

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data import RolloutStore
from mist_interp.evaluation.folder import ResultsFolder
from mist_interp.evaluation.plan import PlannedEpisode
from mist_interp.models import load_policy
from mist_interp.probing.advice import Advice
from mist_interp.probing.conformal import ConformalAlarm
from mist_interp.probing.deviation import Deviation, Note, deviations, half_range_of
from mist_interp.probing.scored import ScoredEpisodes

LARGE = 0.4  # normalised units; a deviation to be told from smaller ones in the table


@dataclass(frozen=True)
class Settings:
    """Fit the deviation and calibrate its alarm."""

    rollouts: Path = Path("runs/study/mini")
    """Recorded rollouts."""

    advice: Path = Path("runs/study/advice")
    """What the expert says to them."""

    out: Path = Path("results/recovery/deviation")
    """Folder for deviation/, alarm/, gate.yaml and table.csv."""

    tutored: Path | None = None
    """Folder of `tutor.py`: the expert's answers in states that the edited policy came into."""

    layer: int = 2
    """Block whose residual stream is read."""

    penalty: float = 30.0
    """Of the ridge regression."""

    segments: int = 2
    """Equal parts of the chunk that have a deviation of their own."""

    train: tuple[int, int] = (0, 13)
    """Start states to fit on: from, up to but without."""

    calibrate: tuple[int, int] = (13, 20)
    """Start states to set the alarm on."""

    perturbations: tuple[str, ...] = ("none", "push1")
    """Episodes for the alarm: those of the evaluation, or its promise is void. The fit takes all."""

    dims: tuple[str, ...] = ("dx", "dy", "dz", "gripper")
    """Dimensions that may raise the alarm; turns are read too badly in states that an edit leads to."""

    alpha: float = 0.2
    """Tolerated share of false alarms."""

    joint: str = "max"
    """How the dimensions share it: max or split."""

    release: float = 0.3
    """How far below its limit a dimension's deviation must fall to switch its alarm off."""


def main(settings: Settings) -> None:
    """Fit, calibrate, judge, write."""
    half_range = half_range_of(load_policy("mini"))
    store, advice = RolloutStore.open(settings.rollouts), Advice(settings.advice)
    train = part(store.only([key for key in store.keys if key in advice]), settings.train)
    rest = part(store, settings.calibrate, settings.perturbations)
    deviation = Deviation(("resid_post", settings.layer), alpha=settings.penalty, segments=settings.segments)
    more = notes(settings)
    deviation.fit(train, advice, half_range, more)
    deviation.save(settings.out / "deviation")
    places = [ACTION_NAMES.index(name) for name in settings.dims]
    scored = ScoredEpisodes.of(rest, deviation.risk(rest)[:, places], settings.dims)
    first, second = scored.safe().halves()
    honest = ConformalAlarm.calibrate(first, settings.alpha, trained_on=deviation.trained_on_, joint=settings.joint)
    alarm = ConformalAlarm.calibrate(
        scored.safe(), settings.alpha, trained_on=deviation.trained_on_, joint=settings.joint
    )
    alarm.save(settings.out / "alarm")
    gate = {
        "risk": str(settings.out / "deviation"),
        "alarm": str(settings.out / "alarm"),
        "release": settings.release,
    }
    (settings.out / "gate.yaml").write_text(yaml.safe_dump(gate, sort_keys=False))
    table = judged(train, advice, half_range, deviation)
    table.to_csv(settings.out / "table.csv")
    print(f"{len(train)} + {len(more)} episodes to fit on, {len(rest)} to calibrate on\n{table.round(2).to_string()}")
    print(f"\n{alarm}")
    print(f"with half of them: {honest.measured_on(second)}")


def notes(settings: Settings) -> list[Note]:
    """What was noted in finished episodes of the edited policy, of the start states that are fitted on."""
    found = []
    for run in sorted(settings.tutored.glob("*/run")) if settings.tutored else ():
        for row in ResultsFolder(run).rows():
            unit = PlannedEpisode.from_row(row).unit
            if row["status"] == "ok" and settings.train[0] <= unit.init_state < settings.train[1]:
                with np.load(run.parent / "notes" / f"{unit.key.replace('/', '+')}.npz") as content:
                    found.append(Note(unit, content["rows"].astype(np.float32), content["deviation"]))
    return found


def judged(store: RolloutStore, advice: Advice, half_range: np.ndarray, deviation: Deviation) -> pd.DataFrame:
    """Per dimension: share of the variance explained, and AUC for a large deviation, in what was left out."""
    true = deviations(store, advice, half_range)[:, 0]
    large = np.abs(true) > LARGE
    columns: dict[str, np.ndarray] = {"large deviations": large.mean(0)}
    for by in ("init_state", "task"):
        found = deviation.out_of_fold(store, advice, half_range, by).mean(1)
        columns[f"R2, {by} left out"] = 1 - ((true - found) ** 2).sum(0) / ((true - true.mean(0)) ** 2).sum(0)
        columns[f"AUC, {by} left out"] = np.array(
            [roc_auc_score(large[:, d], np.abs(found[:, d])) for d in range(len(ACTION_NAMES))]
        )
    return pd.DataFrame(columns, index=list(ACTION_NAMES))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
