"""What may be claimed of a probe?

The probe and its controls on the same queries, with intervals from the same draws of episodes, and the margin of the
probe over the best control. The margin is the claim; the AUC alone is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8

from mist_interp.probing.controls import SHUFFLED
from mist_interp.probing.questions import EPISODE, Question
from mist_interp.probing.score_table import PROBE as PROBE
from mist_interp.probing.score_table import Macro as Macro
from mist_interp.probing.score_table import Margin, ProbeReport, Score
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

MIN_EPISODES = 20

# Scores, and probabilities where there are any, of the judged rows.
Judgement = tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"] | None]
# How often each draw holds each episode; None where there are too few episodes for an AUC.
Weights = UInt8[np.ndarray, "draws episodes"] | None


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

    def of(self, question: Question, calibrated: bool) -> Judgement:
        """Scores of the rows of a question; probabilities if they speak of its labels."""
        chances = self.probabilities[:, question.place] if self.probabilities is not None and calibrated else None
        return question.of(self.scores[:, question.place]), None if chances is None else question.of(chances)


@dataclass(frozen=True)
class Reading:
    """One reader on one question: its row of the table, and its AUC in every draw."""

    score: Score
    sampled: Float[np.ndarray, " draws"] | None


def make_report(
    predictions: Mapping[str, Predictions],
    judged: Sequence[Question],
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
        judged: what the scores are judged on, see `questions`.
        site: where the probe reads.
        tokens: which tokens.
        split: how the episodes were split.
        masked: why queries were not judged, with counts.
        min_episodes: with fewer positive or negative episodes an AUC is not reported. Below 20 the report is flagged.
        draws: resamplings of the episodes.
        seed: of the resampling.
    """
    found = []
    for question in judged:
        weights = weights_of(question, min_episodes, draws, seed)
        found.append(readings(predictions, question, weights, calibrated=question.contrast == judged[0].contrast))
    return report_of(found, judged, site=site, tokens=tokens, split=split, masked=masked, min_episodes=min_episodes)


def weights_of(question: Question, min_episodes: int, draws: int, seed: int) -> Weights:
    """Draws of the episodes of a question; None when there are too few of a kind."""
    rows = question.rows
    if min(rows.episodes_with(0), rows.episodes_with(1)) < max(1, min_episodes):
        return None
    return np.minimum(episode_draws(rows, draws, seed), 255).astype(np.uint8)


def readings(
    predictions: Mapping[str, Predictions], question: Question, weights: Weights, calibrated: bool
) -> dict[str, Reading]:
    """Every reader on one question."""
    readers: dict[str, list[Judgement]] = {}
    for fit, prediction in predictions.items():
        readers.setdefault(SHUFFLED if fit.startswith(SHUFFLED) else fit, []).append(
            prediction.of(question, calibrated)
        )
    counts = None if weights is None else weights.astype(np.float64)
    found = {}
    for reader, fits in readers.items():
        sampled = None if counts is None else _draws(fits, question.rows, counts)
        found[reader] = Reading(_score(question, reader, fits, sampled), sampled)
    return found


def report_of(
    found: Sequence[Mapping[str, Reading]],
    judged: Sequence[Question],
    *,
    site: str,
    tokens: str,
    split: str,
    masked: Mapping[str, int],
    min_episodes: int,
) -> ProbeReport:
    """Put what was read, question by question, into one report."""
    scores = [reading.score for each in found for reading in each.values()]
    flags = [flag for question in judged if (flag := _too_few(question, judged, min_episodes))]
    margins = tuple(_margin(question, each) for question, each in zip(judged, found, strict=True))
    flags += _suspicions(scores)
    return ProbeReport(tuple(scores), margins, site, tokens, split, tuple(flags), dict(masked))


def with_queries(report: ProbeReport, columns: Mapping[str, np.ndarray], probe: Predictions) -> ProbeReport:
    """The report, with what the probe said of every query.

    Args:
        report: a report.
        columns: per query; two-dimensional ones have a column per output.
        probe: its predictions.
    """
    values = {**columns, "score": probe.scores, "probability": probe.probabilities}
    parts = []
    for place, output in enumerate(report.outputs):
        of_output = {n: v[:, place] if v is not None and np.ndim(v) == 2 else v for n, v in values.items()}
        parts.append(pd.DataFrame({"output": output, **{n: np.nan if v is None else v for n, v in of_output.items()}}))
    every = pd.concat(parts, ignore_index=True)
    return replace(report, queries=every[every["score"].notna() & (every["fold"] >= 0)])


def too_few(name: str, rows: Judged, min_episodes: int) -> str | None:
    """What to say about an output with few episodes of a kind; None when there are enough."""
    positive, negative = rows.episodes_with(1), rows.episodes_with(0)
    if min(positive, negative) >= MIN_EPISODES:
        return None
    counts = f"{name}: {positive} positive and {negative} negative episodes, fewer than {MIN_EPISODES} of a kind"
    if min(positive, negative) < min_episodes:
        return f"{counts}: no AUC is reported"
    return f"{counts} (the limit was lowered to {min_episodes}): read it as a demonstration, not as a result"


def _too_few(question: Question, judged: Sequence[Question], min_episodes: int) -> str | None:
    """Episodes are only spoken of where their queries are enough."""
    if question.contrast == EPISODE:
        first = next(one for one in judged if one.output == question.output)
        if too_few(first.name, first.rows, min_episodes):
            return None
    return too_few(question.name, question.rows, min_episodes)


def _draws(
    fits: list[Judgement], rows: Judged, weights: Float[np.ndarray, "draws episodes"]
) -> Float[np.ndarray, " draws"]:
    """AUC per draw; several fits take turns, so that the interval also holds their differences."""
    values = np.empty(len(weights))
    for turn, (scores, _) in enumerate(fits):
        values[turn :: len(fits)] = auc_of_draws(scores, rows, weights[turn :: len(fits)])
    return values


def _score(
    question: Question, reader: str, fits: list[Judgement], sampled: Float[np.ndarray, " draws"] | None
) -> Score:
    """One row; values of several fits are averaged."""
    low, high = (None, None) if sampled is None else interval(sampled)
    rows = question.rows

    def mean(measure: Callable[[Judgement], float | None]) -> float | None:
        values = [None if sampled is None else measure(fit) for fit in fits]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if len(known) == len(fits) else None

    return Score(
        output=question.output,
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
        contrast=question.contrast,
    )


def _margin(question: Question, found: Mapping[str, Reading]) -> Margin:
    own = found[PROBE]
    rivals = [reading for name, reading in found.items() if name != PROBE and reading.score.auc is not None]
    if own.score.auc is None or own.sampled is None or not rivals:
        return Margin(question.output, None, None, None, None, question.contrast)
    best = max(rivals, key=lambda reading: reading.score.auc or 0.0)
    assert best.sampled is not None  # a control has an AUC exactly where it has draws
    low, high = interval(own.sampled - best.sampled)
    value = own.score.auc - (best.score.auc or 0.0)
    return Margin(question.output, best.score.reader, value, low, high, question.contrast)


def _suspicions(scores: list[Score]) -> list[str]:
    found = []
    for score in scores:
        name = score.output if score.contrast == scores[0].contrast else f"{score.output}, {score.contrast}"
        if score.reader == PROBE and score.degenerate:
            found.append(f"{name}: the probe's scores are constant (degenerate)")
        if score.reader == SHUFFLED and score.low is not None and score.low > 0.5:
            found.append(f"{name}: shuffled labels score above chance, so the procedure leaks")
    return found
