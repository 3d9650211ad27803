"""How is a judged probe shown?

One table for the probe and its controls, for every contrast on which its scores are judged; the margin of the probe
over the best control is the claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mist_interp.core.errors import UnknownName
from mist_interp.probing.foresight import LeadTime, lead_time, reliability
from mist_interp.probing.labels import DETECTION
from mist_interp.probing.scores import ECE_BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROBE = "probe"


@dataclass(frozen=True)
class Score:
    """One row of the table.

    Attributes:
        output: what is foreseen.
        reader: `probe` or the name of a control.
        auc: area under the curve; None when there are too few episodes of a kind (see `ProbeReport.flags`).
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        degenerate: the scores are constant, so the AUC is 0.5 by definition and not by measurement.
        average_precision: to be compared with `base_rate`.
        brier: mean squared error of the probabilities; None for an estimator without them.
        ece: expected calibration error.
        base_rate: share of positive queries.
        queries: judged queries.
        positive_episodes: episodes with at least one positive query.
        negative_episodes: episodes with at least one negative query.
        contrast: what the same scores are judged on: `detection`, `attribution` or `episode` (see `questions.py`).
    """

    output: str
    reader: str
    auc: float | None
    low: float | None
    high: float | None
    degenerate: bool
    average_precision: float | None
    brier: float | None
    ece: float | None
    base_rate: float
    queries: int
    positive_episodes: int
    negative_episodes: int
    contrast: str = DETECTION


@dataclass(frozen=True)
class Margin:
    """How much better the probe orders than the best control, on the same draws.

    Attributes:
        output: what is foreseen.
        best_control: the control with the largest AUC.
        value: difference of the AUCs; None where they are undefined.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        contrast: what the scores are judged on.
    """

    output: str
    best_control: str | None
    value: float | None
    low: float | None
    high: float | None
    contrast: str = DETECTION


@dataclass(frozen=True)
class Macro:
    """Mean over the outputs that have an AUC.

    Attributes:
        auc: mean AUC of the probe; None when no output has one.
        margin: mean margin over the best control of each output.
        counted: outputs in the mean.
        left_out: outputs without an AUC, for want of episodes.
    """

    auc: float | None
    margin: float | None
    counted: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class ProbeReport:
    """Result of judging a probe.

    Attributes:
        scores: the table, detection first.
        margins: one per output and contrast.
        site: where the probe reads.
        tokens: which tokens it reads.
        split: how episodes were split into fitting and judging.
        flags: what limits the claim, in words.
        masked: why queries were not judged, with counts.
        queries: what the probe said of every judged query, for `lead_time` and `reliability`; kept neither in files nor
            in comparisons.
    """

    scores: tuple[Score, ...]
    margins: tuple[Margin, ...]
    site: str
    tokens: str
    split: str
    flags: tuple[str, ...] = ()
    masked: Mapping[str, int] = field(default_factory=dict)
    queries: pd.DataFrame | None = field(default=None, compare=False, repr=False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What is foreseen."""
        return tuple(dict.fromkeys(margin.output for margin in self.margins))

    @property
    def contrasts(self) -> tuple[str, ...]:
        """What the scores are judged on; the first is what was fitted."""
        return tuple(dict.fromkeys(margin.contrast for margin in self.margins))

    @property
    def controls(self) -> tuple[Score, ...]:
        """The rows of the controls."""
        return tuple(score for score in self.scores if score.reader != PROBE)

    @property
    def macro_auc(self) -> float | None:
        """Mean AUC of the probe over the outputs that have one, of the first contrast; None when none has."""
        return self.macro().auc

    def macro(self, contrast: str | None = None) -> Macro:
        """Mean over outputs of AUC and margin; those with too few episodes are left out, and named.

        Raises:
            UnknownName: no such contrast in this report.
        """
        some = self.only(contrast)
        known = [score for score in some.scores if score.reader == PROBE and score.auc is not None]
        margins = [margin.value for margin in some.margins if margin.value is not None]
        counted = tuple(score.output for score in known)
        return Macro(
            float(np.mean([score.auc for score in known])) if known else None,
            float(np.mean(margins)) if margins else None,
            counted,
            tuple(output for output in self.outputs if output not in counted),
        )

    def only(self, contrast: str | None = None) -> ProbeReport:
        """The report on one contrast; default: the first.

        Raises:
            UnknownName: no such contrast in this report.
        """
        wanted = self.contrasts[0] if contrast is None else contrast
        if wanted not in self.contrasts:
            raise UnknownName("contrast of this report", wanted, self.contrasts)
        scores = tuple(score for score in self.scores if score.contrast == wanted)
        return replace(self, scores=scores, margins=tuple(m for m in self.margins if m.contrast == wanted))

    def score(self, output: str | None = None, reader: str = PROBE, contrast: str | None = None) -> Score:
        """One row of the table; the output may be left out when there is only one.

        Raises:
            UnknownName: no such output, reader or contrast.
        """
        some, wanted = self.only(contrast).scores, output or self.outputs[0]
        for what, given, possible in (
            ("output", wanted, self.outputs),
            ("reader", reader, tuple(dict.fromkeys(score.reader for score in some))),
        ):
            if given not in possible:
                raise UnknownName(f"{what} of this report", given, possible)
        return next(score for score in some if (score.output, score.reader) == (wanted, reader))

    def margin(self, output: str | None = None, contrast: str | None = None) -> Margin:
        """The margin of an output.

        Raises:
            UnknownName: no such output or contrast.
        """
        wanted = output or self.outputs[0]
        if wanted not in self.outputs:
            raise UnknownName("output of this report", wanted, self.outputs)
        return next(margin for margin in self.only(contrast).margins if margin.output == wanted)

    def to_frame(self) -> pd.DataFrame:
        """The table, one row per contrast, output and reader, with the margin in the probe's rows."""
        frame = pd.DataFrame([asdict(score) for score in self.scores])
        for column in ("best_control", "value", "low", "high"):
            name = column if column == "best_control" else f"margin_{column}".removesuffix("_value")
            values = {(margin.output, margin.contrast): getattr(margin, column) for margin in self.margins}
            own = [values[s.output, s.contrast] if s.reader == PROBE else None for s in self.scores]
            frame[name] = own
        return frame

    def to_markdown(self) -> str:
        """One table per contrast: AUC with interval, best control, margin, counts; then macro means and flags."""
        lines = []
        for contrast in self.contrasts:
            lines += [f"**{contrast}** ({self.site}, {self.tokens}; {self.split})", "", *_HEAD]
            for margin in self.only(contrast).margins:
                own = self.score(margin.output, contrast=contrast)
                rival = (
                    None if margin.best_control is None else self.score(own.output, margin.best_control, contrast).auc
                )
                best = "–" if rival is None else f"{margin.best_control} {rival:.2f}"
                auc, over = (_span(one, sign) for one, sign in ((own, ""), (margin, "+")))
                counts = f"{own.positive_episodes} / {own.negative_episodes}"
                lines.append(f"| {own.output} | {auc} | {best} | {over} | {counts} | {_number(own.brier)} |")
            macro = self.macro(contrast)
            left = f", without {', '.join(macro.left_out)}" if macro.left_out else ""
            mean = f"mean over {len(macro.counted)} of {len(self.outputs)} outputs{left}"
            lines += ["", f"{mean}: AUC {_number(macro.auc)}, margin {_number(macro.margin)}", ""]
        return "\n".join([*lines, *(f"- {flag}" for flag in self.flags)]).rstrip() + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without `queries`."""
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "queries"}
        content |= {"scores": [asdict(s) for s in self.scores], "margins": [asdict(m) for m in self.margins]}
        return {**content, "masked": dict(self.masked)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ProbeReport:
        """Inverse of `to_dict`."""
        scores = tuple(Score(**row) for row in content["scores"])
        margins = tuple(Margin(**row) for row in content["margins"])
        return cls(**{**content, "scores": scores, "margins": margins, "flags": tuple(content["flags"])})

    def lead_time(self, threshold: float, output: str | None = None) -> LeadTime:
        """How long before the event does the probability of the probe first reach a threshold?

        Raises:
            UnknownName: no such output.
            ValueError: the report was read from a file, or the target does not say when its events begin.
        """
        return lead_time(self._queries(output), threshold)

    def reliability(self, output: str | None = None, bins: int = ECE_BINS) -> pd.DataFrame:
        """Per bin of predicted probability: how often it happened, and in how many queries; for a plot.

        Raises:
            UnknownName: no such output.
            ValueError: the report was read from a file, or the estimator gives no probabilities.
        """
        return reliability(self._queries(output), bins)

    def _queries(self, output: str | None) -> pd.DataFrame:
        if self.queries is None:
            raise ValueError("this report holds no queries: it was read from a file, or is part of a sweep")
        wanted = output or self.outputs[0]
        if wanted not in self.outputs:
            raise UnknownName("output of this report", wanted, self.outputs)
        mine: pd.DataFrame = self.queries[self.queries["output"] == wanted]
        return mine

    def plot(self, output: str | None = None, ax: Axes | None = None, contrast: str | None = None) -> Axes:
        """AUC with interval of the probe and its controls (needs the `report` extra)."""
        import matplotlib.pyplot as plt

        wanted = output or self.outputs[0]
        rows = [s for s in self.only(contrast).scores if s.output == wanted and s.auc is not None]
        ax = ax or plt.subplots(figsize=(6, 0.45 * len(rows) + 1))[1]
        for place, row in enumerate(reversed(rows)):
            color = "C0" if row.reader == PROBE else "0.6"
            if row.low is not None and row.high is not None:
                ax.plot([row.low, row.high], [place, place], color=color)
            ax.plot([row.auc or 0.0], [place], "o", color=color)
        ax.set_yticks(range(len(rows)), [row.reader for row in reversed(rows)])
        ax.axvline(0.5, color="0.8", zorder=0)
        ax.set(xlim=(0, 1), xlabel=f"AUC, {wanted}")
        return ax


_HEAD = (
    "| output | AUC (95 %) | best control | margin (95 %) | episodes +/− | Brier |",
    "|---|---|---|---|---|---|",
)


def _span(one: Score | Margin, sign: str) -> str:
    value = one.auc if isinstance(one, Score) else one.value
    if value is None:
        return "–"
    interval = "" if one.low is None or one.high is None else f" ({one.low:{sign}.2f} to {one.high:{sign}.2f})"
    return f"{value:{sign}.2f}{interval}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
