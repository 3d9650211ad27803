"""What may be claimed of a probe?

One table: the probe and its controls on the same queries, with intervals, and the margin of the probe over the best
control. The margin is the claim; the AUC alone is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from mist_interp.probing.controls import SHUFFLED, SHUFFLED_FITS
from mist_interp.probing.scores import (
    DRAWS,
    Judged,
    auc,
    auc_of_draws,
    average_precision,
    brier,
    calibration_error,
    episode_draws,
    interval,
    is_constant,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROBE = "probe"
MIN_EPISODES = 20

# Scores, and probabilities where there are any, of the judged rows.
Judgement = tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"] | None]


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


@dataclass(frozen=True)
class Margin:
    """How much better the probe orders than the best control, on the same draws.

    Attributes:
        output: what is foreseen.
        best_control: the control with the largest AUC.
        value: difference of the AUCs; None where they are undefined.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
    """

    output: str
    best_control: str | None
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ProbeReport:
    """Result of judging a probe.

    Attributes:
        scores: the table.
        margins: one per output.
        site: where the probe reads.
        tokens: which tokens it reads.
        split: how episodes were split into fitting and judging.
        flags: what limits the claim, in words.
        masked: why queries were not judged, with counts.
    """

    scores: tuple[Score, ...]
    margins: tuple[Margin, ...]
    site: str
    tokens: str
    split: str
    flags: tuple[str, ...] = ()
    masked: Mapping[str, int] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What is foreseen."""
        return tuple(margin.output for margin in self.margins)

    @property
    def controls(self) -> tuple[Score, ...]:
        """The rows of the controls."""
        return tuple(score for score in self.scores if score.reader != PROBE)

    @property
    def macro_auc(self) -> float | None:
        """Mean AUC of the probe over the outputs that have one; None when none has."""
        known = [score.auc for score in self.scores if score.reader == PROBE and score.auc is not None]
        return float(np.mean(known)) if known else None

    def score(self, output: str | None = None, reader: str = PROBE) -> Score:
        """One row of the table; the output may be left out when there is only one."""
        wanted = output or self.outputs[0]
        return next(score for score in self.scores if (score.output, score.reader) == (wanted, reader))

    def to_frame(self) -> pd.DataFrame:
        """The table, one row per output and reader, with the margin in the probe's rows."""
        frame = pd.DataFrame([asdict(score) for score in self.scores])
        for column in ("best_control", "value", "low", "high"):
            name = column if column == "best_control" else f"margin_{column}".removesuffix("_value")
            values = {margin.output: getattr(margin, column) for margin in self.margins}
            frame[name] = [values[score.output] if score.reader == PROBE else None for score in self.scores]
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def plot(self, output: str | None = None, ax: Axes | None = None) -> Axes:
        """AUC with interval of the probe and its controls (needs the `report` extra)."""
        import matplotlib.pyplot as plt

        wanted = output or self.outputs[0]
        rows = [score for score in self.scores if score.output == wanted and score.auc is not None]
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


@dataclass(frozen=True)
class Predictions:
    """Scores of one reader on all queries of a store.

    Attributes:
        scores: (queries, outputs); NaN where not judged.
        probabilities: (queries, outputs), or None for an estimator without them.
    """

    scores: Float[np.ndarray, "queries outputs"]
    probabilities: Float[np.ndarray, "queries outputs"] | None

    def at(self, mask: Bool[np.ndarray, " queries"], output: int) -> Judgement:
        """Scores and probabilities of some queries for one output."""
        chances = None if self.probabilities is None else self.probabilities[mask, output]
        return self.scores[mask, output], chances


def make_report(
    predictions: Mapping[str, Predictions],
    judged: Mapping[str, tuple[np.ndarray, Judged]],
    *,
    site: str,
    tokens: str,
    split: str,
    masked: Mapping[str, int],
    min_episodes: int = MIN_EPISODES,
    draws: int = DRAWS,
    seed: int = 0,
) -> ProbeReport:
    """Table of a probe and its controls.

    Args:
        predictions: fit -> its scores, the probe under the name `probe`; the fits on shuffled labels make one row.
        judged: output -> the judged rows (a mask over queries) and what is known of them.
        site: where the probe reads.
        tokens: which tokens.
        split: how the episodes were split.
        masked: why queries were not judged, with counts.
        min_episodes: with fewer positive or negative episodes an AUC is not reported. Below 20 the report is flagged.
        draws: resamplings of the episodes.
        seed: of the resampling.
    """
    scores: list[Score] = []
    margins: list[Margin] = []
    flags: list[str] = []
    for place, (output, (mask, rows)) in enumerate(judged.items()):
        flag = too_few(output, rows, min_episodes)
        flags += [flag] if flag else []
        enough = min(rows.episodes_with(0), rows.episodes_with(1)) >= min_episodes
        weights = episode_draws(rows, draws, seed) if enough else np.zeros((0, 0))
        sampled: dict[str, np.ndarray] = {}
        for reader, fits in _by_reader(predictions).items():
            judged_fits = [fit.at(mask, place) for fit in fits]
            if enough:
                sampled[reader] = _draws(judged_fits, rows, weights)
            scores.append(_score(output, reader, judged_fits, rows, sampled.get(reader)))
        margins.append(_margin(output, [score for score in scores if score.output == output], sampled))
    flags += _suspicions(scores)
    return ProbeReport(tuple(scores), tuple(margins), site, tokens, split, tuple(flags), dict(masked))


def too_few(output: str, rows: Judged, min_episodes: int) -> str | None:
    """What to say about an output with few episodes of a kind; None when there are enough."""
    positive, negative = rows.episodes_with(1), rows.episodes_with(0)
    if min(positive, negative) >= MIN_EPISODES:
        return None
    counts = f"{output}: {positive} positive and {negative} negative episodes, fewer than {MIN_EPISODES} of a kind"
    if min(positive, negative) < min_episodes:
        return f"{counts}: no AUC is reported"
    return f"{counts} (the limit was lowered to {min_episodes}): read it as a demonstration, not as a result"


def _by_reader(predictions: Mapping[str, Predictions]) -> dict[str, list[Predictions]]:
    readers: dict[str, list[Predictions]] = {}
    for fit, prediction in predictions.items():
        readers.setdefault(SHUFFLED if fit in SHUFFLED_FITS else fit, []).append(prediction)
    return readers


def _draws(
    fits: list[Judgement], rows: Judged, weights: Float[np.ndarray, "draws episodes"]
) -> Float[np.ndarray, " draws"]:
    """AUC per draw; several fits take turns, so that the interval also holds their differences."""
    values = np.empty(len(weights))
    for turn, (scores, _) in enumerate(fits):
        values[turn :: len(fits)] = auc_of_draws(scores, rows, weights[turn :: len(fits)])
    return values


def _score(
    output: str, reader: str, fits: list[Judgement], rows: Judged, sampled: Float[np.ndarray, " draws"] | None
) -> Score:
    """One row; values of several fits are averaged."""
    low, high = (None, None) if sampled is None else interval(sampled)

    def mean(measure: Callable[[Judgement], float | None]) -> float | None:
        values = [None if sampled is None else measure(fit) for fit in fits]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if len(known) == len(fits) else None

    return Score(
        output=output,
        reader=reader,
        auc=mean(lambda fit: auc(fit[0], rows)),
        low=low,
        high=high,
        degenerate=len(rows.labels) > 0 and all(is_constant(values, rows) for values, _ in fits),
        average_precision=mean(lambda fit: average_precision(fit[0], rows)),
        brier=mean(lambda fit: None if fit[1] is None else brier(fit[1], rows)),
        ece=mean(lambda fit: None if fit[1] is None else calibration_error(fit[1], rows)),
        base_rate=float(rows.labels.mean()) if len(rows.labels) else float("nan"),
        queries=len(rows.labels),
        positive_episodes=rows.episodes_with(1),
        negative_episodes=rows.episodes_with(0),
    )


def _margin(output: str, scores: list[Score], sampled: Mapping[str, np.ndarray]) -> Margin:
    own = next(score for score in scores if score.reader == PROBE)
    rivals = [score for score in scores if score.reader != PROBE and score.auc is not None]
    if own.auc is None or not rivals:
        return Margin(output, None, None, None, None)
    best = max(rivals, key=lambda score: score.auc or 0.0)
    low, high = interval(sampled[PROBE] - sampled[best.reader])
    return Margin(output, best.reader, own.auc - (best.auc or 0.0), low, high)


def _suspicions(scores: list[Score]) -> list[str]:
    found = []
    for score in scores:
        if score.reader == PROBE and score.degenerate:
            found.append(f"{score.output}: the probe's scores are constant (degenerate)")
        if score.reader == SHUFFLED and score.low is not None and score.low > 0.5:
            found.append(f"{score.output}: shuffled labels score above chance, so the procedure leaks")
    return found
