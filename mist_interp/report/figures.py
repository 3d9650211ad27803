"""Which picture answers whether an arm helps, and when the detector sees trouble?

Figures are matplotlib objects without pyplot (no window, no global state) and become inline SVG whose text uses
the page's own font. One colour per arm throughout the page; the reference arm is grey.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mist_interp.evaluation.plan import REFERENCE_ARM

INK, MUTED, HAIRLINE = "#1d2129", "#6d7480", "#d9dce1"
GOOD, BAD = "#2f7d5b", "#b5433a"
REFERENCE_COLOUR = "#7b828e"
ARM_COLOURS = ("#1f6f9f", "#c2862a", "#7a4f9a", "#2f7d5b", "#b5433a", "#4b5aa8", "#98713f", "#2b8c8c")
WIDTH = 9.2
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": HAIRLINE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.left": False,
}


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """A colour for every arm; the reference is grey."""
    others = [arm for arm in arms if arm != REFERENCE_ARM]
    colours = {arm: ARM_COLOURS[index % len(ARM_COLOURS)] for index, arm in enumerate(others)}
    return {REFERENCE_ARM: REFERENCE_COLOUR, **colours}


def rates_figure(summary: Mapping[str, Any]) -> str:
    """Success rate, collision rates and paired change of both against the reference, with intervals, as SVG."""
    arms = list(summary["arms"])
    colours = arm_colours(arms)
    changes = [entry for entry in summary["comparisons"] if entry["reference"] == REFERENCE_ARM]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 0.95 + 0.34 * len(arms)), layout="constrained")
        axes = figure.subplots(1, 3 if changes else 2, sharey=True)
        for row, arm in enumerate(arms):
            metrics = summary["arms"][arm]["metrics"]
            _whisker(axes[0], row, metrics["success_rate"], colours[arm])
            _whisker(axes[1], row - 0.12, metrics["collision_rate_1n"], colours[arm])
            _whisker(axes[1], row + 0.16, metrics["collision_rate_10n"], colours[arm], hollow=True)
        _percent_axis(axes[0], "Success rate", "% of units")
        _percent_axis(axes[1], "Collision rate", "% of units:   ● 1 N   ○ 10 N")
        if changes:
            for entry in changes:
                row = arms.index(entry["arm"])
                success = entry["metric"] == "success_rate"
                colour = colours[entry["arm"]]
                _whisker(axes[2], row + (-0.12 if success else 0.16), entry["difference"], colour, square=not success)
            axes[2].axvline(0, color=MUTED, linewidth=0.8, zorder=0)
            axes[2].set_title(f"Change against {REFERENCE_ARM}")
            axes[2].set_xlabel("points:   ● success   ■ collision 1 N")
            span = max(10.0, *(abs(x) for x in axes[2].get_xlim()))
            axes[2].set_xlim(-span, span)
            axes[2].grid(axis="x", color=HAIRLINE, linewidth=0.6)
        axes[0].set_yticks(range(len(arms)), arms)
        axes[0].set_ylim(len(arms) - 0.5, -0.5)
        for axis in axes:
            axis.set_axisbelow(True)
        return _svg(figure)


def _whisker(
    axis: Axes, y: float, estimate: Mapping[str, Any], colour: str, *, hollow: bool = False, square: bool = False
) -> None:
    if estimate["low"] is None:
        return
    low, value, high = (100 * estimate[end] for end in ("low", "value", "high"))
    axis.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt", alpha=0.75)
    axis.plot(
        [value],
        [y],
        marker="s" if square else "o",
        markersize=5.2 if square else 6,
        color=colour,
        markerfacecolor="white" if hollow else colour,
        markeredgewidth=1.4,
    )


def _percent_axis(axis: Axes, title: str, label: str) -> None:
    axis.set_title(title)
    axis.set_xlim(-3, 103)
    axis.set_xticks([0, 25, 50, 75, 100])
    axis.set_xlabel(label)
    axis.grid(axis="x", color=HAIRLINE, linewidth=0.6)


def score_figure(scores: pd.DataFrame, threshold: float | None, arm: str) -> str:
    """Detector score over control steps, by outcome: median and middle half of the episodes still running, as SVG.

    Args:
        scores: columns `key`, `step`, `score`, `success`, `collision_1n`; one row per query.
        threshold: where the detector fires.
        arm: whose episodes these are, for the title.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        panels = (
            ("success", "By outcome", {True: ("success", GOOD), False: ("failure", BAD)}),
            ("collision_1n", "By collision", {False: ("no contact", GOOD), True: ("contact ≥ 1 N", BAD)}),
        )
        for axis, (column, title, groups) in zip(axes, panels, strict=True):
            for value, (label, colour) in groups.items():
                group = scores[scores[column].astype(bool) == value]
                if group.empty:
                    continue
                bands = group.groupby("step")["score"].quantile([0.25, 0.5, 0.75]).unstack()
                count = group["key"].nunique()
                axis.fill_between(bands.index, bands[0.25], bands[0.75], color=colour, alpha=0.16, linewidth=0)
                axis.plot(bands.index, bands[0.5], color=colour, linewidth=1.6, label=f"{label} ({count})")
            if threshold is not None and np.isfinite(threshold):
                axis.axhline(threshold, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
                axis.annotate(
                    "threshold",
                    (1, threshold),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="right",
                    color=MUTED,
                    fontsize=8,
                )
            axis.set_title(title)
            axis.set_xlabel(f"control step of arm {arm}")
            axis.grid(axis="y", color=HAIRLINE, linewidth=0.6)
            axis.set_axisbelow(True)
            # Beside the title: inside the axes it would cover the curves.
            axis.legend(
                frameon=False,
                fontsize=8.5,
                loc="lower right",
                bbox_to_anchor=(1, 0.97),
                ncols=2,
                handlelength=1.4,
                columnspacing=1.2,
                borderaxespad=0,
                labelcolor=INK,
            )
        axes[0].set_ylabel("score")
        return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Fixed ids and no date: the same data give the same page.
    with mpl.rc_context({"svg.hashsalt": "mist"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
