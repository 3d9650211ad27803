"""Did the risk that the gate read come true, dimension by dimension, under each arm?

The row of an episode keeps per query what is needed to say so: the risk of each dimension, read off the unedited
forward pass, and the two labels of `mist_interp.probing.risk` for what was then executed: *detection* (this dimension
brought a forbidden contact about, or none came) and *attribution* (it did, or only others did). All queries of an arm
are judged together: the risk was fitted on other episodes, once.

Where it misleads: a warning that an arm has heeded counts as a false alarm. What the risk is worth stands in the row of
`none`; beside it, a lower number says that the arm keeps risks from coming true, or that they are read less well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data.records import ContactRecord, ReleaseRecord
from mist_interp.evaluation.metrics import PairedEpisodes, task_labels
from mist_interp.probing.attribution import Course
from mist_interp.probing.report import MIN_EPISODES
from mist_interp.probing.risk import Risk
from mist_interp.probing.scores import Judged, auc, auc_of_draws, episode_draws, interval

COLUMN = "foreseen"
CONTRASTS = ("detection", "attribution")
DEFINITION = (
    "area under the ROC curve of the risk of a dimension over the queries of an arm: detection, queries before a "
    f"forbidden contact of {Risk().force:g} N that this dimension brings about within the chunk and {Risk().horizon} "
    "control steps beyond it, against queries before none; attribution, the same against queries before a contact "
    f"that only other dimensions bring about; undefined with fewer than {MIN_EPISODES} episodes of either kind. Beside "
    "it what needs no activations: the number of the query, in the better direction, and how often the task's other "
    "episodes are positive"
)


def foreseen(
    queries: Sequence[Mapping[str, Any]],
    contacts: Sequence[ContactRecord],
    releases: Sequence[ReleaseRecord],
    steps: int,
) -> dict[str, Any] | None:
    """What was said and what came, query by query; None where no risk of a dimension was read.

    Args:
        queries: query rows of the whole episode; `step`, `chunk`, `executed`, `hand` and `risk` are read.
        contacts: forbidden events of the whole episode.
        releases: what was let go in it.
        steps: its length in control steps.

    Returns:
        `dims`, and per query and dimension `risk` and the labels `detection` and `attribution` (1, 0 or None: masked).
    """
    dims = [name for name in ACTION_NAMES if name in (queries[0]["risk"] or {})]
    if not dims:
        return None
    course = Course(
        np.concatenate([np.asarray(row["executed"]) for row in queries]),
        np.concatenate([np.asarray(row["hand"]) for row in queries]),
        tuple(contacts),
        tuple(releases),
    )
    risk, places = Risk(), [ACTION_NAMES.index(name) for name in dims]
    verdicts = [
        risk.judge(course, row["step"], row["step"] + len(row["chunk"]) + risk.horizon, steps) for row in queries
    ]
    return {
        "dims": dims,
        "risk": [[row["risk"][name] for name in dims] for row in queries],
        "detection": [_labels(verdict.values[places]) for verdict in verdicts],
        "attribution": [_labels(verdict.to_blame()[places]) for verdict in verdicts],
    }


def risk_auc(paired: PairedEpisodes, arm: str, *, draws: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Dimension -> contrast -> AUC with its interval and the number of episodes; empty where no risk was read.

    Intervals resample tasks and then episodes, see `mist_interp.probing.scores`.
    """
    rows = paired.of(arm)
    if COLUMN not in rows:
        return {}
    said = [json.loads(value) if isinstance(value, str) else value for value in rows[COLUMN]]
    dims: list[str] = next((one["dims"] for one in said if isinstance(one, Mapping)), [])
    known = [(place, one) for place, one in enumerate(said) if isinstance(one, Mapping) and one["dims"] == dims]
    if not known:
        return {}
    episode = np.concatenate([np.full(len(one["risk"]), place) for place, one in known])
    number = np.concatenate([np.arange(len(one["risk"])) for _, one in known])
    risk = np.concatenate([np.array(one["risk"], dtype=np.float64) for _, one in known])
    tasks = task_labels(rows)[episode]
    return {
        dim: {
            contrast: _estimate(risk[:, place], _column(known, contrast, place), episode, number, tasks, draws)
            for contrast in CONTRASTS
        }
        for place, dim in enumerate(dims)
    }


def _estimate(
    risk: Float[np.ndarray, " queries"],
    labels: Float[np.ndarray, " queries"],
    episode: Int[np.ndarray, " queries"],
    number: Int[np.ndarray, " queries"],
    task: Int[np.ndarray, " queries"],
    draws: int,
) -> dict[str, Any]:
    kept = ~np.isnan(labels)
    judged = Judged(labels[kept], np.zeros(int(kept.sum()), dtype=int), episode[kept], task[kept])
    positive, negative = judged.episodes_with(1), judged.episodes_with(0)
    counts = {"positive_episodes": positive, "negative_episodes": negative, "queries": int(kept.sum())}
    if min(positive, negative) < MIN_EPISODES:
        return {"value": None, "low": None, "high": None, "controls": {}, **counts}
    low, high = interval(auc_of_draws(risk[kept], judged, episode_draws(judged, draws)))
    clock = auc(number[kept].astype(np.float64), judged) or 0.0
    controls = {"step counter": max(clock, 1 - clock), "task id": auc(_task_rates(judged), judged)}
    return {"value": auc(risk[kept], judged), "low": low, "high": high, "controls": controls, **counts}


def _task_rates(judged: Judged) -> Float[np.ndarray, " queries"]:
    """Share of positive queries in the other episodes of the task; that of all where there is none."""
    frame = pd.DataFrame({"task": judged.task, "episode": judged.episode, "label": judged.labels})
    whole = frame.groupby("task")["label"].agg(["sum", "size"]).loc[judged.task].to_numpy()
    own = frame.groupby("episode")["label"].agg(["sum", "size"]).loc[judged.episode].to_numpy()
    positive, size = (whole - own).T
    return np.divide(positive, size, out=np.full(len(frame), judged.labels.mean()), where=size > 0)


def _column(known: Sequence[tuple[int, Any]], contrast: str, place: int) -> Float[np.ndarray, " queries"]:
    return np.concatenate([np.array(one[contrast], dtype=np.float64)[:, place] for _, one in known])


def _labels(values: Float[np.ndarray, " dims"]) -> list[int | None]:
    return [None if np.isnan(value) else int(value) for value in values]
