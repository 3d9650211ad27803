"""What does one start state look like under two arms, outside and inside?

Takes a finished quickstart, picks the start state whose outcome differs most between the arms, replays both episodes
from their stored actions (bit for bit, checked by the state hash of every query), and draws the two film strips above
what the probe said at every query, with the forbidden contacts that the simulator counted.

    python experiments/mini/figure.py --fill README.md
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import card
import matplotlib as mpl
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from mist_interp.core.errors import UnknownName
from mist_interp.core.files import write_atomic
from mist_interp.data.records import Unit
from mist_interp.evaluation.environments import EnvironmentPool
from mist_interp.evaluation.sample import telling_units
from mist_interp.evaluation.video import Camera, film_again
from mist_interp.libero.suite import LiberoSuite
from mist_interp.report.figures import BAD, GOOD, HAIRLINE, INK, MUTED, arm_colours
from mist_interp.report.run import Run, load_run

FRAMES = 6
STYLE: Any = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": HAIRLINE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
console = Console(highlight=False)


@dataclass(frozen=True)
class Settings:
    """The README's figure, from a finished quickstart."""

    run: Path = Path("results/quickstart")
    """Results folder of a paired evaluation with a detector."""

    arms: tuple[str, str] = ("none", "steer")
    """The two arms to show."""

    task: int | None = None
    """Task of the start state; default: the most telling one of the run."""

    init: int | None = None
    """Start state of that task."""

    out: Path = Path("experiments/mini/figure.png")
    """The picture."""

    fill: tuple[Path, ...] = ()
    """Pages whose place "figure" gets the picture with a caption."""


def main(settings: Settings) -> None:
    """Draw, and say what is shown."""
    run = load_run(settings.run)
    for arm in settings.arms:
        if arm not in run.arms:
            raise UnknownName("arm of the run", arm, run.arms)
    unit = pick(run, settings)
    suite = LiberoSuite(unit.suite)
    pool = EnvironmentPool(suite.tasks, {"profile": "faithful", "resolution": 256})
    films = {arm: film_again(pool.get(unit), run.folder.record(run.row(arm, unit))) for arm in settings.arms}
    pool.close()
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    draw(run, unit, films).savefig(settings.out, dpi=140, metadata={"Software": None})
    caption = describe(run, unit, settings.arms, suite.tasks[unit.task].instruction)
    console.print(f"{settings.out}\n{caption}", soft_wrap=True)
    for page in settings.fill:
        target = settings.out.resolve().relative_to(page.resolve().parent)
        card.fill(page, {"figure": f"![Two film strips over the probe's score]({target.as_posix()})\n\n{caption}"})
    write_atomic(settings.out.with_suffix(".txt"), caption + "\n")


def pick(run: Run, settings: Settings) -> Unit:
    """The start state that was asked for, or the most telling one."""
    rows = [row for row in run.rows if row["arm"] in settings.arms]
    if settings.task is not None:
        rows = [row for row in rows if row["task"] == settings.task and settings.init in (None, row["init_state"])]
    units = telling_units(rows, 1)
    if not units:
        raise SystemExit(f"{settings.run} has no start state that both arms have finished; its arms: {run.arms}")
    return units[0]


def draw(run: Run, unit: Unit, films: dict[str, Camera]) -> Figure:
    """Film strips, one per arm, above the probe's score over the control steps."""
    colours = arm_colours(run.arms)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 5.4), layout="constrained")
        grid = figure.add_gridspec(len(films) + 1, FRAMES, height_ratios=[1] * len(films) + [0.95])
        for line, (arm, camera) in enumerate(films.items()):
            row = run.row(arm, unit)
            assert row is not None
            for column, place in enumerate(np.linspace(0, len(camera.frames) - 1, FRAMES).round().astype(int)):
                axis = figure.add_subplot(grid[line, column])
                axis.imshow(camera.frames[place])
                axis.set_xticks([])
                axis.set_yticks([])
                axis.set_title(f"step {camera.steps[place]}", fontsize=7.5, color=MUTED, pad=2)
                for spine in axis.spines.values():
                    spine.set_visible(False)
                if column == 0:
                    axis.set_ylabel(arm, color=colours[arm], fontsize=10, fontweight="bold")
                if column == FRAMES - 1:
                    outcome, colour = ("success", GOOD) if row["success"] else ("failure", BAD)
                    axis.set_xlabel(outcome, color=colour, fontsize=9)
        scores(figure.add_subplot(grid[len(films), :]), run, unit, list(films), colours)
    return figure


def scores(axis: Axes, run: Run, unit: Unit, arms: list[str], colours: dict[str, str]) -> None:
    """Score of the probe at every query, and contacts as triangles whose size grows with the force."""
    for arm in arms:
        queries, row = run.queries(arm, unit), run.row(arm, unit)
        assert row is not None
        axis.plot(
            queries["step"], queries["score"].astype(float), color=colours[arm], marker="o", markersize=3, label=arm
        )
        events = [event for event in row["events"] if event["peak_force"] >= 1.0]
        if events:
            force = np.array([event["peak_force"] for event in events])
            level = np.full(len(events), 0.02 + 0.05 * arms.index(arm))
            axis.scatter(
                [event["start_step"] for event in events],
                level,
                s=12 + 30 * np.log10(force),
                marker="^",
                color=colours[arm],
                edgecolor="white",
                linewidth=0.4,
                transform=axis.get_xaxis_transform(),
                clip_on=False,
                zorder=3,
            )
    threshold = float((run.settings.get("detector") or {}).get("threshold", "inf"))
    if np.isfinite(threshold):
        axis.axhline(threshold, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="threshold")
    axis.set_xlabel("control step          ▲ forbidden contact of at least 1 N (larger: more force)")
    axis.set_ylabel("probe")
    axis.grid(axis="y", color=HAIRLINE, linewidth=0.6)
    low, high = axis.get_ylim()
    axis.set_ylim(low - 0.15 * (high - low), high)  # room for the triangles
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=3, borderaxespad=0)


def describe(run: Run, unit: Unit, arms: tuple[str, ...], instruction: str) -> str:
    """The caption: what is shown, and what was counted."""
    found = []
    for arm in arms:
        row = run.row(arm, unit)
        assert row is not None
        outcome = "succeeds" if row["success"] else "fails"
        forces = f", peak force {row['peak_force']:.0f} N" if row["events_1n"] else ""
        plural = "" if row["events_1n"] == 1 else "s"
        found.append(f"`{arm}` {outcome} with {row['events_1n']} forbidden contact{plural} of at least 1 N{forces}")
    rows = [run.row(arm, unit) for arm in arms]
    differs = len({(row["success"], row["collision_1n"]) for row in rows if row}) > 1
    why = "picked because the outcome differs" if differs else "the outcome is the same"
    return (
        f"One start state of {unit.suite} (task {unit.task}, state {unit.init_state}: “{instruction}”) under two arms; "
        f"{why}. {'; '.join(found)}. Below, what the probe reads off the activations at every query. "
        "Rates over all start states, with intervals, are in the report."
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
