"""Where did the hand touch, in which direction, and which dimension brought it there?

The frame right after the event began, with the way of the end effector since the query, the lever from it to the
contact point, and the contact's normal; beside it how far each dimension was commanded to close the gap, and its share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import wrap

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data.records import ContactRecord
from mist_interp.probing.attribution import GRIPPER, Blame
from mist_interp.probing.explanation import Explanation

INK, MUTED, HAIRLINE = "#1d2129", "#6d7480", "#d9dce1"
TO_BLAME, OTHER = "#b5433a", "#9aa1ac"
WAY, LEVER, NORMAL = "#ffd166", "#ffffff", "#ff4d4d"
# Length of the drawn normal, m.
ARROW = 0.1
LINE = 170  # characters over the pictures
CLOSE_UP = 0.3  # share of the picture that the close-up shows

Project = Callable[[Float[np.ndarray, "points 3"]], Float[np.ndarray, "points 2"]]


def label_figure(
    explained: Explanation, frame: UInt8[np.ndarray, "height width 3"], project: Project, shown: int
) -> Figure:
    """Picture of an explanation.

    Args:
        explained: the labels of a query.
        frame: picture of a camera the right way up.
        project: world points (m) to pixels of that picture.
        shown: control step after which the picture was taken.
    """
    blame = explained.first
    with mpl.rc_context({"font.size": 9, "axes.edgecolor": HAIRLINE, "text.color": INK}):
        figure = Figure(figsize=(13, 5.2), layout="constrained")
        whole, close, bars = figure.subplots(1, 3, width_ratios=(1, 1, 0.95))
        for axis in (whole, close):
            axis.imshow(frame)
            axis.set_axis_off()
        whole.set_title(f"after control step {shown}", loc="left", fontsize=9, color=MUTED)
        if blame is None:
            bars.set_axis_off()
            close.set_title("nothing begins in the window", loc="left", fontsize=9, color=MUTED)
        else:
            for axis in (whole, close):
                _draw_event(axis, explained, blame, project)
            _zoom(close, blame, project, len(frame))
            close.legend(loc="lower left", fontsize=8, framealpha=0.85)
            _draw_shares(bars, explained, blame)
        said = [line for text in (explained.headline(), *explained.events()[:3]) for line in wrap(text, LINE)]
        figure.suptitle("\n".join(said), x=0.01, ha="left", fontsize=9)
    return figure


def _draw_event(axis: Axes, explained: Explanation, blame: Blame, project: Project) -> None:
    way = project(explained.course.hand[explained.step : blame.step + 1, :3])
    axis.plot(*way.T, color=WAY, lw=1.6, marker=".", ms=4, label="end effector since the query")
    for place, contact in enumerate(blame.contacts):
        label = place == 0
        point, normal = np.array(contact.point), np.array(contact.normal)
        if contact.eef is not None:
            lever = project(np.array([contact.eef, contact.point]))
            axis.plot(*lever.T, color=LEVER, lw=1.2, ls="--", label="lever from it to the contact" if label else None)
            axis.plot(*lever[0], "o", color=WAY, mec=INK, ms=6)
        start, tip = project(np.array([point, point + ARROW * normal]))
        axis.annotate("", tip, start, arrowprops={"arrowstyle": "-|>", "color": NORMAL, "lw": 2.2})
        axis.plot(
            *start, "X", color=NORMAL, mec="white", ms=8, label="contact point, normal (10 cm)" if label else None
        )


def _zoom(axis: Axes, blame: Blame, project: Project, size: int) -> None:
    places: Sequence[ContactRecord] = blame.contacts
    if not places:
        return
    x, y = project(np.mean([contact.point for contact in places], axis=0)[None])[0]
    half = 0.5 * CLOSE_UP * size
    x, y = np.clip((x, y), half, size - half)
    axis.set_xlim(x - half, x + half)
    axis.set_ylim(y + half, y - half)


def _draw_shares(axis: Axes, explained: Explanation, blame: Blame) -> None:
    table = explained.table()
    y = np.arange(len(ACTION_NAMES))
    known = blame.contacts and not np.isnan(blame.shares).all()
    values = np.append(np.nan_to_num(blame.shares), 0.0)
    colours = [TO_BLAME if value == 1 else OTHER for value in blame.own]
    axis.barh(y, values, 0.62, color=colours)
    axis.axvline(explained.risk.share, color=MUTED, lw=0.8, ls=":")
    for place, value in enumerate(values[:GRIPPER]):
        if blame.contacts and not np.isnan(blame.closed).all():
            action = table[f"action@{blame.step}"][place]
            text = f"{1000 * blame.closed[place]:+.1f} mm commanded, mean action {action:+.2f}"
            axis.text(value + 0.02, place, text, va="center", fontsize=8, color=MUTED)
    speeds = [contact.finger_speed for contact in blame.contacts if contact.finger_speed is not None]
    said = (
        "dropped" if blame.drops else f"finger joint {1000 * max(speeds):+.1f} mm/s" if speeds else "no finger touches"
    )
    axis.text(0.02, GRIPPER, said, va="center", fontsize=8, color=TO_BLAME if blame.own[GRIPPER] == 1 else MUTED)
    labels = ["masked" if np.isnan(value) else f"{value:.0f}" for value in explained.verdict.values]
    axis.set_yticks(y, [f"{name}   y = {label}" for name, label in zip(ACTION_NAMES, labels, strict=True)])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.75)
    axis.set_xticks([0, 0.2, 0.5, 1.0])
    axis.set_xlabel(
        "share of what was commanded to close the gap"
        if known
        else "unattributed: nothing that was commanded closed the gap"
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=0)
