"""Can one dimension of `mini`'s action be moved through the network, and the others held? On real frames.

Two figures: the cross-talk matrix of every layer, and how the change that is realised follows the one that is
commanded, beside the length of the edit it takes.

Measured, 10 frames of libero_spatial (start states 20 and 21), a command of 0.05: behind blocks 1, 2 and 3 a dimension
does 0.85 (gripper) to 1.03 of what it is told and the others at most 0.11 (droll on dpitch), median 0.007. Behind block
0 it takes an edit a quarter as long as the states, and dx moves with droll, dyaw and the gripper (0.43, 0.27, 0.74 of
the command). Elsewhere dz follows its command within 8 % up to 0.2, and falls to 0.7 of it at -0.8.

    python experiments/steering/crosstalk.py
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "analysis"))
from scenes import asked, begin, scenes

from mist_interp.analysis.cross_talk import Doses, cross_talk_matrix, dose_response
from mist_interp.analysis.figures import STYLE, heat_map
from mist_interp.analysis.result import Result


@dataclass(frozen=True)
class Settings:
    """Cross talk and dose-response of the smallest edits on real frames."""

    policy: str = "mini"
    """Policy to look into."""

    per_task: int = 2
    """Start states per task from which frames are taken."""

    frames: int = 10
    """Frames that are looked at."""

    size: float = 0.05
    """Commanded change for the matrix, normalised."""

    dim: str = "dz"
    """Dimension of the dose-response."""

    sizes: tuple[float, ...] = (-0.8, -0.4, -0.2, -0.05, 0.05, 0.2, 0.4, 0.8)
    """Commanded changes for the dose-response, normalised."""

    out: Path = Path("results/steering")
    """Folder of figures and numbers."""


def main(settings: Settings) -> None:
    """Write the figures and print what they show."""
    vla = begin(settings.policy, settings.out)
    shots = scenes(settings.per_task)
    chosen = np.random.default_rng(0).permutation(len(shots))[: settings.frames]
    inputs = asked(vla, [shots[k] for k in sorted(chosen)])
    matrix = cross_talk_matrix(vla, inputs, size=settings.size)
    doses = dose_response(vla, inputs, settings.dim, settings.sizes)
    matrix.save(settings.out / "cross_talk.json")
    doses.change.save(settings.out / "dose.json")
    doses.norm.save(settings.out / "dose_norm.json")
    matrices(matrix).savefig(settings.out / "cross_talk.png", dpi=150)
    lines(doses, settings.dim).savefig(settings.out / "dose.png", dpi=150)
    for layer in matrix.axes["layer"]:
        values = matrix.sel(layer=layer).values.values
        own, others = np.diag(values), values[~np.eye(len(values), dtype=bool)]
        answer = doses.change.sel(layer=layer, dim=settings.dim).values.values / np.array(settings.sizes)
        length = doses.norm.sel(layer=layer).values.values
        doubt = ", ".join(f"{s:+g}: {a:.2f} ({n:.0%})" for s, a, n in zip(settings.sizes, answer, length, strict=True))
        print(
            f"layer {layer}: own {own.min():.2f} to {own.max():.2f}, others at most {np.abs(others).max():.3f}, "
            f"median {np.median(np.abs(others)):.3f}; {settings.dim} realised/commanded (length of the edit): {doubt}"
        )


def matrices(result: Result) -> Figure:
    """A heat map per layer."""
    names = result.axes["commanded"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.0 * len(result.axes["layer"]) + 0.8, 3.2), layout="constrained")
        panels = figure.subplots(1, len(result.axes["layer"]), sharey=True, squeeze=False)[0]
        for axes, layer in zip(panels, result.axes["layer"], strict=True):
            values = result.sel(layer=layer).values.values
            image = heat_map(axes, np.round(values, 2) + 0.0, names, names, -1.0, 1.0)
            axes.set(title=f"edit behind block {layer}", xlabel="realised")
            axes.tick_params(axis="x", rotation=60)
        panels[0].set_ylabel("commanded")
        figure.colorbar(image, ax=list(panels), shrink=0.8, label=result.unit)
    return figure


def lines(doses: Doses, dim: str) -> Figure:
    """Realised against commanded, the largest change of the other numbers, and the length of the edit."""
    sizes = np.array(doses.change.axes["size"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for layer in doses.change.axes["layer"]:
            values = doses.change.sel(layer=layer).values
            others = np.abs(values.drop_sel(dim=dim).values).max(1)
            left.plot(sizes, values.sel(dim=dim), ".-", label=f"block {layer}")
            middle.plot(sizes, others, ".-")
            right.plot(sizes, doses.norm.sel(layer=layer).values, ".-")
        left.axline((0, 0), slope=1, color="0.7", lw=0.8)
        left.set(xlabel=f"commanded {dim}", ylabel=f"realised {dim}", title="normalised action, mean of the chunk")
        middle.set(xlabel=f"commanded {dim}", title="largest change of another number")
        right.set(xlabel=f"commanded {dim}", title="length of the edit / of the states")
        left.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    torch.manual_seed(0)
    main(tyro.cli(Settings))
