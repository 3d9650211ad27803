"""Which direction leads from twins that end badly to their twins that an edit has saved?

Takes a results folder with `none` and edits (`run.sh twins`). Of every triggered unit that ends badly under `none` (a
failure, or a contact) and well under an edit, both twins are replayed, and at the same queries after the trigger the
unedited policy is asked what it would do: rows of the twin that was saved, by the edit that saves most units, and of
the one that was not. The difference of their means, within each task, is the direction of recovery. Writes it, and says
what it does to the motion.

    python experiments/recovery/contrast.py --run results/recovery/twins --out results/recovery/contrast
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import tyro
from choice import environments, finished, look

from mist_interp import HookedVLA
from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.inputs import PolicyInputs
from mist_interp.data.activation_set import ActivationSet
from mist_interp.data.capture import pooled
from mist_interp.data.records import EpisodeRecord, Unit
from mist_interp.evaluation.folder import ResultsFolder, Row
from mist_interp.evaluation.plan import REFERENCE_ARM
from mist_interp.steering import SteeringDirection

TOKENS = "action_read"


@dataclass(frozen=True)
class Settings:
    """Make the direction of recovery."""

    run: Path = Path("results/recovery/twins")
    """Results folder with `none` and the edits."""

    out: Path = Path("results/recovery/contrast")
    """Folder for the direction."""

    layer: int = 2
    """Block behind which it is read and added."""

    queries: int = 3
    """How many queries after the trigger are compared."""


def main(settings: Settings) -> None:
    """Pair, replay, contrast, write."""
    torch.set_num_threads(1)
    vla, folder = HookedVLA.from_pretrained("mini"), ResultsFolder(settings.run)
    site = vla.site(("resid_post", settings.layer))
    saved = savers(finished(folder))
    rows: dict[bool, list[np.ndarray]] = {True: [], False: []}
    units: list[Unit] = []
    asked: list[PolicyInputs] = []
    pool = environments(folder, next(iter(saved)).suite)
    for unit, (failed, recovered) in sorted(saved.items(), key=lambda item: (item[0].task, item[0].key)):
        twins = {False: folder.record(failed), True: folder.record(recovered)}
        first, env = int(failed["trigger_query"]) + 1, pool.get(unit)
        after = range(first, min(first + settings.queries, *(len(one.queries) for one in twins.values())))
        units += [unit] * len(after)
        for ends_well, episode in twins.items():
            found, inputs = read_at(env, episode, after, vla, site)
            rows[ends_well] += found
            asked += [] if ends_well else inputs
    pool.close()
    facts = {"model": "mini", "run": folder.path.name}
    pos, neg = (ActivationSet(np.stack(rows[kind]), tuple(units), site, TOKENS, source=facts) for kind in (True, False))
    direction = SteeringDirection.from_contrast(pos, neg)
    direction.save(settings.out)
    print(f"{len(saved)} pairs of twins, {len(units)} queries of each; {direction}")
    print(moved(vla, asked, direction).to_string())


def savers(ended: Mapping[Unit, Mapping[str, Row]]) -> dict[Unit, tuple[Row, Row]]:
    """Unit -> the episode of `none`, which ends badly, and that of an edit which ends well.

    Of several such edits it is the one that saves most units, so that few edits make up the contrast.
    """
    triggered = {unit: rows for unit, rows in ended.items() if rows[REFERENCE_ARM]["triggered"]}
    bad = {unit: rows for unit, rows in triggered.items() if not well(rows[REFERENCE_ARM])}
    counts = {arm: sum(well(rows[arm]) for rows in bad.values()) for arm in next(iter(ended.values()))}
    best_first = sorted(counts, key=lambda arm: -counts[arm])
    found = {}
    for unit, rows in bad.items():
        arm = next((arm for arm in best_first if well(rows[arm])), None)
        if arm is not None:
            found[unit] = (rows[REFERENCE_ARM], rows[arm])
    return found


def well(row: Row) -> bool:
    """Whether an episode ends in success without a contact."""
    return bool(row["success"] and not row["collision_1n"])


def read_at(
    env: Any, episode: EpisodeRecord, queries: Sequence[int], vla: HookedVLA, site: Any
) -> tuple[list[np.ndarray], list[PolicyInputs]]:
    """What the unedited policy holds at these queries of an episode, and what it is asked there."""
    rows, asked, start = [], [], None
    for index in queries:
        inputs, _, cache = look(env, episode, index, vla, [site], start=start)
        start = episode.queries[index].step
        rows.append(pooled(cache, site, TOKENS, "mean")[0].numpy())
        asked.append(inputs)
    return rows, asked


def moved(vla: HookedVLA, asked: Sequence[PolicyInputs], direction: SteeringDirection) -> pd.DataFrame:
    """By how much the direction moves the chunk's mean, in normalised units, at the median of the queries."""
    found = {}
    with torch.no_grad():
        clean = [vla(inputs).normalized.mean((0, 1)) for inputs in asked]
        for coef in (1.0, 2.0, 4.0):
            with direction.scope(vla, coef):
                steered = [vla(inputs).normalized.mean((0, 1)) for inputs in asked]
            change = torch.stack(steered) - torch.stack(clean)
            found[coef] = dict(zip(ACTION_NAMES, change.median(0).values.tolist(), strict=True))
    return pd.DataFrame.from_dict(found, orient="index").round(3)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
