"""How does a result look?

Matplotlib figures without pyplot: no window and no global state. Two axes make a heat map, whose colours are centred on
zero where the numbers have both signs; a third axis makes small multiples; one axis makes a line, or bars where the
labels are words. Numbers that could be printed in their cells are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mist_interp.core.errors import UnknownName

if TYPE_CHECKING:
    from mist_interp.analysis.result import Result

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
}
SIGNED, POSITIVE = "RdBu_r", "viridis"
PRINTED_CELLS = 120  # more cannot be read


def draw(result: Result, x: str | None = None, y: str | None = None, columns: int = 4, title: str = "") -> Figure:
    """Draw a result of one, two or three axes.

    Args:
        result: what to draw.
        x: axis that runs to the right; by default the last one, of three the second.
        y: axis that runs down; by default the first one left.
        columns: small multiples per row.
        title: text above; by default what the result says of itself.

    Raises:
        UnknownName: no such axis.
        ValueError: none or more than three axes: `result.sel(...)` picks one place of an axis.
    """
    names = [str(axis) for axis in result.values.dims]
    if not 1 <= len(names) <= 3:
        raise ValueError(f"a figure has one to three axes, this result has {names}; fix some with result.sel(...)")
    for name in (x, y):
        if name is not None and name not in names:
            raise UnknownName("axis", name, names)
    with mpl.rc_context(STYLE):
        if len(names) == 1:
            figure = Figure(figsize=(6.4, 3.2))
            _line(figure.add_subplot(), result)
        else:
            x = x or next(name for name in (names[-1 if len(names) == 2 else 1], *names) if name != y)
            y = y or next(name for name in names if name != x)
            figure = _maps(result, x, y, columns)
        figure.suptitle(title or result.what, fontsize=9, x=0.01, ha="left")
    return figure


def _line(axes: Axes, result: Result) -> None:
    ((name, labels),) = result.axes.items()
    if all(isinstance(label, int | float) for label in labels):
        axes.plot(labels, result.values, marker="o", markersize=3)
        axes.set_xlabel(name)
        axes.set_ylabel(result.unit)
        axes.axhline(0, color="0.8", lw=0.8, zorder=0) if (result.values < 0).any() else None
    else:
        axes.barh(range(len(labels)), result.values)
        axes.set_yticks(range(len(labels)), [str(label) for label in labels])
        axes.invert_yaxis()
        axes.set_xlabel(result.unit)
        axes.axvline(0, color="0.8", lw=0.8, zorder=0) if (result.values < 0).any() else None


def line_panels(
    values: np.ndarray,
    panels: list[Any],
    places: list[Any],
    xlabel: str,
    ylabel: str,
    title: str = "",
    columns: int = 4,
    lines: list[str] | None = None,
) -> Figure:
    """Small multiples of lines.

    Args:
        values: (panel, line, place).
        panels: title of each panel.
        places: labels along x.
        xlabel: of the places.
        ylabel: unit of the values.
        title: above all panels.
        columns: panels per row.
        lines: names of the lines, for a legend.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * columns + 0.6, 1.9 * rows + 0.6))
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.remove()
                continue
            axes.plot(range(len(places)), values[place].T, lw=1.2, alpha=1.0 if lines else 0.6)
            axes.set_title(str(panels[place]))
            axes.set_xticks(*_ticks(places, 12))
            lowest = place + columns >= len(panels)
            axes.set_xlabel(xlabel if lowest else "")
            axes.tick_params(labelbottom=lowest)
        figure.supylabel(ylabel, fontsize=9)
        if lines:
            figure.legend(grid[0, 0].lines, lines, loc="outside lower center", ncols=min(len(lines), 5))
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return figure


def _maps(result: Result, x: str, y: str, columns: int) -> Figure:
    rest = [name for name in result.axes if name not in (x, y)]
    panels = [(f"{rest[0]} {label}", result.sel(**{rest[0]: label})) for label in result.axes[rest[0]]] if rest else []
    panels = panels or [("", result)]
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width, height = (min(3.0 + 0.3 * len(result.axes[x]), 9.0), min(1.2 + 0.26 * len(result.axes[y]), 8.0))
    scale = 1.0 if len(panels) == 1 else 0.6
    figure = Figure(figsize=(scale * width * columns, scale * height * rows + 0.5))
    low, high = _limits(result.values.values)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        label, panel = panels[place]
        image = heat_map(axes, panel.values.transpose(y, x).values, panel.axes[y], panel.axes[x], low, high)
        axes.set_title(label)
        axes.set_xlabel(x if place // columns == rows - 1 else "")
        axes.set_ylabel(y if place % columns == 0 else "")
    figure.colorbar(image, ax=grid, label=result.unit, shrink=0.8)
    return figure


def heat_map(axes: Axes, values: np.ndarray, rows: list[Any], cols: list[Any], low: float, high: float) -> Any:
    """One heat map into given axes; the numbers are printed where there are few."""
    image = axes.imshow(values, cmap=SIGNED if low < 0 else POSITIVE, vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(*_ticks(cols), rotation=90 if max(len(str(label)) for label in cols) > 3 else 0)
    axes.set_yticks(*_ticks(rows))
    if values.size <= PRINTED_CELLS:
        for (row, col), value in np.ndenumerate(values):
            shade = np.mean(image.cmap(image.norm(value))[:3])
            axes.text(col, row, f"{value:.2g}", ha="center", va="center", fontsize=6, color="k" if shade > 0.5 else "w")
    return image


def _ticks(labels: list[Any], most: int = 32) -> tuple[list[int], list[str]]:
    step = -(-len(labels) // most)
    return list(range(0, len(labels), step)), [str(label) for label in labels[::step]]


def _limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    high = float(np.abs(finite).max(initial=0.0)) or 1.0
    return (-high if (finite < 0).any() else 0.0), high
