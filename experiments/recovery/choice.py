"""Which edit helps where? A head per edit for the arm that chooses, fitted on forked twins.

Takes a results folder with `none` and the edits, on start states that serve nothing else; brings every triggered unit
to its trigger again by replaying what was executed, and reads there what the choice would see. What goes wrong in an
episode is counted: a failure, and a contact. A head per edit (`Benefit`) learns how much less of it there is.

Prints what a choice by heads that were fitted on other start states would have made of these units, beside each edit
alone, a choice by the task alone, and the best choice in hindsight: no choice has less `loss` than that, but for gains
below the limit. As all twins have been run these are counts of what happened. The heads' weights are of other start
states, `--contact` and `--limit` are not if they were set by looking at this table: fresh units judge (`confirm.py`).
Writes the heads of all units, and choice.csv.

    python experiments/recovery/choice.py --run results/recovery/twins --out results/recovery/choice
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import tyro
from sklearn.model_selection import GroupKFold

from mist_interp import HookedVLA
from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.data.records import EpisodeRecord, Unit
from mist_interp.data.replay import replay_until
from mist_interp.evaluation.environments import EnvironmentPool
from mist_interp.evaluation.folder import ResultsFolder, Row
from mist_interp.evaluation.plan import REFERENCE_ARM, PlannedEpisode
from mist_interp.libero import LiberoSuite
from mist_interp.probing.benefit import Benefit, TwinGain

FOLDS = 6


@dataclass(frozen=True)
class Settings:
    """Fit what is expected of each edit."""

    run: Path = Path("results/recovery/twins")
    """Results folder with `none` and the edits."""

    out: Path = Path("results/recovery/choice")
    """Folder for a head per edit, and choice.csv."""

    layer: int = 2
    """Block whose residual stream is read, where the action is read."""

    contact: float = 0.9
    """What a contact counts, where a failure counts 1; from 1 on a failure without a contact would be as good as a
    success with one."""

    limit: float = 0.1
    """How much must be expected of an edit before it is made: with more, successes gain and contacts stay."""


@dataclass(frozen=True)
class Twins:
    """A triggered unit: what is read at its trigger, and how it ends under each arm."""

    unit: Unit
    row: np.ndarray
    ends: Mapping[str, Row]

    def gain(self, arm: str, contact: float) -> float:
        """How much less goes wrong under this arm than under `none`."""
        return wrong(self.ends[REFERENCE_ARM], contact) - wrong(self.ends[arm], contact)


def main(settings: Settings) -> None:
    """Read, choose, judge, fit, write."""
    torch.set_num_threads(1)
    vla, folder = HookedVLA.from_pretrained("mini"), ResultsFolder(settings.run)
    ended = finished(folder)
    arms = [arm for arm in next(iter(ended.values())) if arm != REFERENCE_ARM]
    twins = list(at_triggers(folder, ended, vla, Benefit(("resid_post", settings.layer))))
    site = vla.site(("resid_post", settings.layer))
    table = judged(ended, choices(settings, twins, arms, site), settings.contact)
    settings.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(settings.out / "choice.csv")
    print(f"{len(twins)} triggered units of {len(ended)}\n{table.to_string()}")
    for arm in arms:
        head = fitted(settings, twins, arm, site)
        head.save(settings.out / arm)
        print(f"{arm}: {head}; {head.source_}")


def finished(folder: ResultsFolder) -> dict[Unit, dict[str, Row]]:
    """The units that have a row of every arm, and their rows in the plan's order of arms.

    Raises:
        ValueError: there is none.
    """
    ended: dict[Unit, dict[str, Row]] = {}
    for row in folder.rows():
        planned = PlannedEpisode.from_row(row)
        if row["status"] == "ok":
            ended.setdefault(planned.unit, {})[planned.arm] = row
    arms = dict.fromkeys(planned.arm for planned in folder.plan())
    whole = {unit: {arm: rows[arm] for arm in arms} for unit, rows in ended.items() if rows.keys() == arms.keys()}
    if not whole:
        raise ValueError(f"{folder.path} has no unit with an episode of each of {', '.join(sorted(arms))}")
    if len(whole) < len(ended):
        print(f"{len(ended) - len(whole)} units without an episode of every arm are left out")
    return whole


def at_triggers(
    folder: ResultsFolder, ended: Mapping[Unit, Mapping[str, Row]], vla: Any, head: Benefit
) -> Iterator[Twins]:
    """Every triggered unit with what a head reads at its trigger.

    Raises:
        ValueError: a replay leaves the recorded states, or the policy answers otherwise than it did.
    """
    pool = None
    for unit, rows in sorted(ended.items(), key=lambda item: (item[0].task, item[0].key)):
        none = rows[REFERENCE_ARM]
        if none["triggered"]:
            pool = pool or environments(folder, unit.suite)
            seen = row_at_trigger(pool.get(unit), folder.record(none), int(none["trigger_query"]), vla, head)
            yield Twins(unit, seen, rows)
    if pool is not None:
        pool.close()


def environments(folder: ResultsFolder, suite: str) -> EnvironmentPool:
    """The tasks of a suite, rendered as in the results folder."""
    settings = folder.config()["settings"]
    return EnvironmentPool(LiberoSuite(suite).tasks, {key: settings[key] for key in ("profile", "resolution")})


def look(
    env: Any, episode: EpisodeRecord, at: int, vla: Any, sites: Sequence[Any], *, start: int | None = None
) -> tuple[PolicyInputs, ActionChunk, Any]:
    """What the unedited policy is asked at query `at` of an episode, what it says, and what it holds at these sites.

    Args:
        env: the episode's task; it is brought to the query by replaying what was executed.
        episode: the episode.
        at: the query.
        vla: the policy.
        sites: activations to capture.
        start: the control step at which the environment is already; None begins with a reset.
    """
    replay_until(env, episode, episode.queries[at].step, start=start)
    inputs = vla.prepare(env.observe(), episode.instruction)
    with torch.no_grad():
        said, cache = vla.run_with_cache(inputs, names=list(sites))
    return inputs, said, cache


def row_at_trigger(env: Any, episode: EpisodeRecord, at: int, vla: Any, head: Benefit) -> np.ndarray:
    """What the head reads at query `at`, where the alarm came on."""
    _, said, cache = look(env, episode, at, vla, head.sites)
    if not np.allclose(said.values[0].numpy(), episode.queries[at].chunk, atol=1e-6):
        raise ValueError(f"at the trigger of {episode.key} the policy answers otherwise than it did")
    return head.row_of(cache)


def wrong(row: Row, contact: float) -> float:
    """How much goes wrong in an episode."""
    return (not row["success"]) + contact * bool(row["collision_1n"])


def fitted(settings: Settings, twins: Sequence[Twins], arm: str, site: Any) -> Benefit:
    """What is expected of one edit."""
    gains = [TwinGain(one.unit, one.row, one.gain(arm, settings.contact)) for one in twins]
    return Benefit(("resid_post", settings.layer)).fit(gains, site).act_above(settings.limit)


def choices(settings: Settings, twins: Sequence[Twins], arms: Sequence[str], site: Any) -> dict[str, dict[Unit, str]]:
    """Whom each way of choosing lets act in each triggered unit."""
    gains = np.array([[one.gain(arm, settings.contact) for arm in arms] for one in twins])
    rows, tasks = np.stack([one.row for one in twins]), np.array([one.unit.task for one in twins])
    told, by_task = np.zeros_like(gains), np.zeros_like(gains)
    for fit, rest in GroupKFold(FOLDS).split(rows, groups=[one.unit.init_state for one in twins]):
        some = [twins[place] for place in fit]
        for column, arm in enumerate(arms):
            told[rest, column] = fitted(settings, some, arm, site).predict(rows[rest])
        for place in rest:
            known = fit[tasks[fit] == tasks[place]]
            by_task[place] = gains[known].mean(0) if len(known) else 0.0
    ways = {"chosen": told, "chosen by the task": by_task, "best in hindsight": gains}
    found: dict[str, dict[Unit, str]] = {arm: {one.unit: arm for one in twins} for arm in arms}
    for way, expected in ways.items():
        found[way] = {
            one.unit: arms[int(row.argmax())] if row.max() > settings.limit else REFERENCE_ARM
            for one, row in zip(twins, expected, strict=True)
        }
    return found


def judged(
    ended: Mapping[Unit, Mapping[str, Row]], ways: Mapping[str, Mapping[Unit, str]], weight: float
) -> pd.DataFrame:
    """Counts of successes, contacts and safe successes of all units under each way of choosing, and what changed."""

    def outcomes(chosen: Mapping[Unit, str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [arms[chosen.get(unit, REFERENCE_ARM)] for unit, arms in ended.items()]
        return np.array([bool(row["success"]) for row in rows]), np.array([bool(row["collision_1n"]) for row in rows])

    success, contact = outcomes({})
    found = {}
    for way, chosen in {REFERENCE_ARM: {}, **ways}.items():
        succeeds, touches = outcomes(chosen)
        found[way] = {
            "acted upon": sum(arm != REFERENCE_ARM for arm in chosen.values()),
            "successes": succeeds.sum(),
            "saved": (succeeds & ~success).sum(),
            "spoilt": (success & ~succeeds).sum(),
            "contacts": touches.sum(),
            "prevented": (contact & ~touches).sum(),
            "made": (touches & ~contact).sum(),
            "safe successes": (succeeds & ~touches).sum(),
            "loss": (~succeeds).sum() + weight * touches.sum(),
        }
    return pd.DataFrame.from_dict(found, orient="index")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
