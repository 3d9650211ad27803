"""What opens the gate: the risk of a forbidden contact per dimension, read off the activations of `mini`.

Fits a linear probe for the dimensions that bring a contact about on one range of start states, sets the conformal alarm
on another, and writes both with a gate.yaml that `mist eval --detector` reads. Prints how well each dimension is told
in start states that were not fitted on, beside the controls, and how many contacts the alarm sees coming.

    python experiments/recovery/risk.py --rollouts runs/study/mini --out results/recovery/contact
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

from mist_interp.data import RolloutStore
from mist_interp.probing import Probe, Risk
from mist_interp.probing.conformal import ConformalAlarm
from mist_interp.probing.scored import ScoredEpisodes

FORCE = 1.0  # N, from which a contact counts


@dataclass(frozen=True)
class Settings:
    """Fit the risk of contacts and set its alarm."""

    rollouts: Path = Path("runs/study/mini")
    """Recorded rollouts."""

    out: Path = Path("results/recovery/contact")
    """Folder for risk/, alarm/, gate.yaml and table.csv."""

    layer: int = 2
    """Block whose residual stream is read."""

    dims: tuple[str, ...] = ("dx", "dy", "dz")
    """Dimensions whose risk is read."""

    alarm_on: tuple[str, ...] = ("dz",)
    """Those of them that may raise the alarm; the others did not pay for their false alarms on `mini`."""

    horizon: int = 10
    """Control steps beyond the end of the chunk within which a contact counts."""

    train: tuple[int, int] = (0, 13)
    """Start states to fit on: from, up to but without. All conditions are used."""

    calibrate: tuple[int, int] = (13, 20)
    """Start states to set the alarm on, undisturbed ones: for others its promise is void."""

    alpha: float = 0.3
    """Tolerated share of false alarms."""

    joint: str = "split"
    """How several dimensions share it: max or split."""

    over_time: bool = False
    """A limit per query instead of one: half of the calm episodes give its course, the others how far above it is."""


def main(settings: Settings) -> None:
    """Fit, calibrate, judge, write."""
    store = RolloutStore.open(settings.rollouts)
    train, rest = part(store, settings.train), part(store, settings.calibrate)
    risk = Risk(horizon=settings.horizon, dimensions=settings.dims, force=FORCE)
    probe = Probe(("resid_post", settings.layer), target=risk).fit(train)
    probe.save(settings.out / "risk")
    calm = part(store, settings.calibrate, ("none",))
    places = [settings.dims.index(name) for name in settings.alarm_on]
    scored = ScoredEpisodes.of(calm, probe.predict_proba(calm)[:, places], settings.alarm_on, FORCE).safe()
    band, scored = scored.halves() if settings.over_time else (None, scored)
    alarm = ConformalAlarm.calibrate(
        scored, settings.alpha, trained_on=probe.trained_on_, joint=settings.joint, band=band
    )
    alarm.save(settings.out / "alarm")
    gate = {"risk": str(settings.out / "risk"), "alarm": str(settings.out / "alarm")}
    (settings.out / "gate.yaml").write_text(yaml.safe_dump(gate, sort_keys=False))
    report = probe.evaluate(rest)
    report.to_frame().to_csv(settings.out / "table.csv", index=False)
    print(f"{len(train)} episodes to fit on, {len(rest)} to judge on, of which {len(scored)} set the alarm")
    print(f"\n{report.to_markdown()}\n{alarm}\n")
    print(foreseen(rest, probe.predict_proba(rest)[:, places], alarm).to_string())


def part(store: RolloutStore, span: tuple[int, int], perturbations: tuple[str, ...] = ()) -> RolloutStore:
    """The episodes of these start states and, where named, perturbations."""
    inits = store.episodes(["init_state"])["init_state"].unique()
    return store.where(
        inits=inits[(inits >= span[0]) & (inits < span[1])], perturbations=perturbations if perturbations else None
    )


def foreseen(store: RolloutStore, risk: np.ndarray, alarm: ConformalAlarm) -> pd.DataFrame:
    """Per condition: episodes with a contact, in how many the alarm comes before it, and how many others have one."""
    queries = store.queries(["episode", "step"])
    episodes = store.episodes(["episode", "perturbation", "contacts"]).set_index("episode")
    rows = []
    for key, places in queries.groupby("episode", sort=False).indices.items():
        begins = [c["start_step"] for c in episodes.at[key, "contacts"] if c["peak_force"] >= FORCE]
        at = alarm.first(risk[places])
        ahead = at is not None and bool(begins) and queries["step"].iloc[places[at]] < min(begins)
        rows.append((episodes.at[key, "perturbation"], bool(begins), ahead, at is not None and not begins))
    table = pd.DataFrame(rows, columns=["condition", "contact", "alarm before it", "alarm without contact"])
    found = table.groupby("condition").sum()
    found.insert(0, "episodes", table.groupby("condition").size())
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
