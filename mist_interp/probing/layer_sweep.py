"""What came of judging one probe definition at many places?

A table of all places, curves of AUC over depth with the best control beside them, a map of layers and dimensions, and
the best place, with what is to be said of having chosen it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mist_interp.core.errors import UnknownName
from mist_interp.core.files import write_atomic
from mist_interp.core.names import Site
from mist_interp.probing.score_table import PROBE, Margin, ProbeReport, Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = 1
FILE = "sweep.json"
OPTIMISTIC = (
    "chosen on the queries on which it was judged, so its AUC is optimistic; ask fit_layers for nested=True, or judge "
    "it on other episodes"
)


@dataclass(frozen=True)
class Place:
    """Where a probe reads.

    Attributes:
        site: a site with a layer.
        tokens: token selector.
        pool: how the tokens were pooled.
    """

    site: Site
    tokens: str
    pool: str = "mean"

    @property
    def name(self) -> str:
        """Site and tokens."""
        return f"{self.site.name} @ {self.tokens}"

    @property
    def layer(self) -> int:
        """Number of the layer."""
        assert self.site.layer is not None  # a sweep has layers only
        return self.site.layer


@dataclass(frozen=True)
class Best:
    """The best place for one output.

    Attributes:
        place: where.
        score: of the probe there.
        margin: over the best control.
        remark: what is to be said of having chosen it.
    """

    place: Place
    score: Score
    margin: Margin
    remark: str = OPTIMISTIC


@dataclass(frozen=True)
class LayerSweep:
    """Result of `fit_layers`.

    Attributes:
        places: where the probe was judged.
        reports: one per place; the controls are the same in all.
        target: what is foreseen.
        nested: report of the layer that was chosen inside each training fold; None if this was not asked for.
        chosen: output -> per fold, which place that was.
    """

    places: tuple[Place, ...]
    reports: tuple[ProbeReport, ...]
    target: str
    nested: ProbeReport | None = None
    chosen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What is foreseen."""
        return self.reports[0].outputs

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers, ascending."""
        return tuple(sorted({place.layer for place in self.places}))

    @property
    def tokens(self) -> tuple[str, ...]:
        """Token groups."""
        return tuple(dict.fromkeys(place.tokens for place in self.places))

    def report(self, layer: int, tokens: str | None = None) -> ProbeReport:
        """The report of one place.

        Raises:
            UnknownName: no such layer or tokens in this sweep.
        """
        wanted = self._tokens(tokens)
        if layer not in self.layers:
            raise UnknownName("layer of this sweep", layer, map(str, self.layers))
        return next(
            report
            for place, report in zip(self.places, self.reports, strict=True)
            if (place.layer, place.tokens) == (layer, wanted)
        )

    def best(self, output: str | None = None, *, contrast: str | None = None) -> Best:
        """The place with the largest AUC for an output; `remark` says how far to trust it.

        Raises:
            UnknownName: no such output or contrast.
            ValueError: no place has an AUC, for want of episodes.
        """
        wanted = output or self.outputs[0]
        found = [
            Best(place, score, report.margin(wanted, contrast))
            for place, report in zip(self.places, self.reports, strict=True)
            if (score := report.score(wanted, contrast=contrast)).auc is not None
        ]
        if not found:
            raise ValueError(f"{wanted}: too few episodes for an AUC at any place; {'; '.join(self.reports[0].flags)}")
        return max(found, key=lambda best: best.score.auc or 0.0)

    def to_frame(self) -> pd.DataFrame:
        """One row per place, contrast, output and reader."""
        frames = []
        for place, report in zip(self.places, self.reports, strict=True):
            where = {"layer": place.layer, "site": place.site.name, "tokens": place.tokens}
            frame = report.to_frame()
            frames.append(pd.concat([pd.DataFrame([where] * len(frame)), frame], axis=1))
        return pd.concat([frame.dropna(axis=1, how="all") for frame in frames], ignore_index=True)

    def matrix(self, contrast: str | None = None, tokens: str | None = None) -> pd.DataFrame:
        """AUC of the probe: a row per layer, a column per output, NaN without one."""
        wanted = self._tokens(tokens)
        rows = {
            layer: {o: self.report(layer, wanted).score(o, contrast=contrast).auc for o in self.outputs}
            for layer in self.layers
            if any((place.layer, place.tokens) == (layer, wanted) for place in self.places)
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(self.outputs)).astype(float)

    def plot(self, output: str | None = None, *, contrast: str | None = None, ax: Axes | None = None) -> Axes:
        """AUC over depth with intervals, one curve per output (and token group), its best control dashed.

        Args:
            output: only this one.
            contrast: default: the first, detection.
            ax: where to draw (needs the `report` extra).
        """
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(6.5, 4))[1]
        frame = self.to_frame()
        frame = frame[frame["contrast"] == (contrast or self.reports[0].contrasts[0])]
        for number, name in enumerate(self.outputs if output is None else [output]):
            rivals = [s.auc for s in self.reports[0].only(contrast).controls if s.output == name and s.auc is not None]
            for turn, tokens in enumerate(self.tokens):
                kept = (frame["output"] == name) & (frame["tokens"] == tokens) & (frame["reader"] == PROBE)
                rows = frame[kept].dropna(subset=["auc"]).sort_values("layer")
                label = name if len(self.tokens) == 1 else f"{name}, {tokens}"
                color, style = f"C{number}", ("-", "--", ":", "-.")[turn % 4]
                ax.plot(rows["layer"], rows["auc"], style, marker="o", markersize=3, color=color, label=label)
                ax.fill_between(rows["layer"], rows["low"], rows["high"], color=color, alpha=0.12, linewidth=0)
            if rivals:
                ax.axhline(max(rivals), color=f"C{number}", linestyle=(0, (1, 2)), linewidth=1)
        ax.axhline(0.5, color="0.8", zorder=0)
        ax.set(xlabel="layer", ylabel="AUC (dotted: best control)", title=self.target)
        ax.legend(frameon=False, fontsize="small")
        return ax

    def plot_map(self, *, contrast: str | None = None, tokens: str | None = None, ax: Axes | None = None) -> Axes:
        """Layers against outputs, coloured by AUC; white where there are too few episodes."""
        import matplotlib.pyplot as plt

        values = self.matrix(contrast, tokens)
        ax = ax or plt.subplots(figsize=(0.8 * len(self.outputs) + 2, 0.32 * len(values) + 1.5))[1]
        image = ax.imshow(values, vmin=0, vmax=1, cmap="RdBu_r", aspect="auto", origin="lower")
        ax.set_xticks(range(len(self.outputs)), list(self.outputs), rotation=45, ha="right")
        ax.set_yticks(range(len(values)), [str(layer) for layer in values.index])
        for (row, column), value in np.ndenumerate(values.to_numpy()):
            ax.text(column, row, "–" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", fontsize=7)
        ax.set(ylabel="layer", title=f"{self.target}, {contrast or self.reports[0].contrasts[0]}")
        ax.figure.colorbar(image, ax=ax, label="AUC")
        return ax

    def save(self, folder: str | Path) -> None:
        """Write `sweep.json`."""
        content = {
            "format": FORMAT,
            "target": self.target,
            "places": [(place.site.name, place.tokens, place.pool) for place in self.places],
            "reports": [report.to_dict() for report in self.reports],
            "nested": None if self.nested is None else self.nested.to_dict(),
            "chosen": dict(self.chosen),
        }
        write_atomic(Path(folder) / FILE, json.dumps(content) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> LayerSweep:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: there is no sweep in this folder.
            ValueError: a format that this version does not know.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"no sweep in {Path(folder)}: {FILE} is missing")
        content: dict[str, Any] = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"{path} has format {content['format']}; this package reads {FORMAT}")
        return cls(
            tuple(Place(Site(site), tokens, pool) for site, tokens, pool in content["places"]),
            tuple(ProbeReport.from_dict(report) for report in content["reports"]),
            content["target"],
            None if content["nested"] is None else ProbeReport.from_dict(content["nested"]),
            {output: tuple(places) for output, places in content["chosen"].items()},
        )

    def _tokens(self, tokens: str | None) -> str:
        wanted = tokens or self.tokens[0]
        if wanted not in self.tokens:
            raise UnknownName("token group of this sweep", wanted, self.tokens)
        return wanted
