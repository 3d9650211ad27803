"""How does a policy fail, and along which dimensions?

Three pictures of the same episodes: in which way they failed under each perturbation; how many had an event to blame on
each dimension; and by how much the actions of episodes that are going to fail differ from those that are going to
succeed, per dimension and phase (standardised difference, both kinds cut at the shortest episode of the task, so that
the clock does not count).

    python experiments/study/failures.py --rollouts runs/study/mini
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

from mist_interp.analysis.figures import STYLE
from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data import RolloutStore
from mist_interp.data.failure_types import FAILURE_TYPES, failure_types
from mist_interp.probing import Failure, Risk

PHASES = 6
COLOURS = ("#8a5a9e", "#4c78a8", "#72b7b2", "#c2862a", "#b3443d", "#999999")


@dataclass(frozen=True)
class Settings:
    """Show how a policy fails."""

    rollouts: Path = Path("runs/study/mini")
    """Recorded rollouts."""

    out: Path = Path("results/study")
    """Folder for the tables and the figure."""


def main(settings: Settings) -> None:
    """Three tables and a figure."""
    store = RolloutStore.open(settings.rollouts)
    settings.out.mkdir(parents=True, exist_ok=True)
    types = failure_types(store)
    ways = pd.crosstab(types["perturbation"], types["type"])
    blamed = blamed_episodes(store, types)
    shift = action_shift(store)
    for name, table in {"failure_types": ways, "blamed": blamed, "action_shift": shift}.items():
        table.to_csv(settings.out / f"{name}.csv")
        print(f"{name}\n{table.round(2).to_string()}\n")
    draw(ways, blamed, shift).savefig(settings.out / "failures.png", dpi=150)


def blamed_episodes(store: RolloutStore, types: pd.DataFrame) -> pd.DataFrame:
    """Share of the episodes of each outcome in which an event was to blame on each dimension."""
    labels = Risk().labels(store)
    hit = pd.DataFrame(labels.values == 1, columns=ACTION_NAMES).groupby(labels.episode).any()
    table = hit.groupby(types.set_index("episode")["type"]).mean()
    return table.assign(episodes=types["type"].value_counts())


def action_shift(store: RolloutStore) -> pd.DataFrame:
    """Cohen's d of the actions, failures minus successes, within tasks: a row per phase, a column per dimension."""
    labels = Failure(cut=True).labels(store)
    queries = store.queries(["episode", "chunk"])
    actions = np.stack([np.mean(list(chunk), axis=0) for chunk in queries["chunk"]])
    task = store.episodes().set_index("episode")["task"].loc[queries["episode"]].to_numpy()
    known = ~np.isnan(labels.values[:, 0])
    phase = np.zeros(len(labels), dtype=int)
    for each in np.unique(task[known]):
        rows = known & (task == each)
        phase[rows] = np.minimum(PHASES - 1, PHASES * labels.query[rows] // (labels.query[rows].max() + 1))
    frame = pd.DataFrame(actions, columns=ACTION_NAMES)[known]
    frame = frame.assign(task=task[known], phase=phase[known], failed=labels.values[known, 0] == 1)
    names = list(ACTION_NAMES)
    centred = frame[names] - frame.groupby(["task", "phase"])[names].transform("mean")
    means = centred.groupby([frame["phase"], frame["failed"]]).mean()
    # Successes and failures are unequally many in a task: the difference is taken within tasks.
    inside = [
        (rows[rows["failed"]][names].mean() - rows[~rows["failed"]][names].mean()).rename((phase, task))
        for (phase, task), rows in frame.groupby(["phase", "task"])
        if rows["failed"].any() and not rows["failed"].all()
    ]
    difference = pd.DataFrame(inside).groupby(level=0).mean()
    difference.index.name = means.index.names[0]
    return difference / centred.groupby(frame["phase"]).std()


def draw(ways: pd.DataFrame, blamed: pd.DataFrame, shift: pd.DataFrame) -> Figure:
    """The three tables as pictures."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.4))
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.1, 1.1))
        share = ways.div(ways.sum(axis=1), axis=0)
        start = np.zeros(len(share))
        for name, colour in zip(("success", *FAILURE_TYPES), ("#d5e3d0", *COLOURS), strict=True):
            if name in share:
                left.barh(share.index, share[name], left=start, color=colour, label=name, height=0.7)
                start += share[name].to_numpy()
        left.set(title="How episodes end", xlabel="share of episodes", xlim=(0, 1))
        left.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)
        heat(middle, blamed[list(ACTION_NAMES)], "Episodes with an event to blame", "viridis", (0, None), ".0%")
        heat(right, shift, "Actions of failures − successes (d)", "RdBu_r", (-1, 1), ".1f")
        right.set_ylabel("phase (sixths of the compared part)")
    return figure


def heat(axis, table: pd.DataFrame, title: str, colours: str, limits: tuple[float, float | None], form: str) -> None:  # type: ignore[no-untyped-def]
    """A table with its numbers in its cells."""
    image = axis.imshow(table, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    axis.set(title=title, xticks=range(table.shape[1]), yticks=range(len(table)))
    axis.set_xticklabels(table.columns, rotation=45, ha="right")
    axis.set_yticklabels(table.index)
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        dark = sum(image.cmap(image.norm(value))[:3]) < 1.5
        axis.text(column, row, format(value, form), ha="center", va="center", color="w" if dark else "k", fontsize=7)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
