"""How early is an event foreseen, and do the probabilities mean what they say?

Lead time = control steps from the query at which the probability first exceeds a threshold to the start of the first
event of its episode. Queries whose label is masked raise no alarm: what is said during another contact is not about
this one. A threshold that is always exceeded has the longest lead times, so the share of episodes without any event
that exceed it stands beside them. A lead beyond the window of the labels tells a dangerous episode, not the moment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class LeadTime:
    """Lead times at one threshold.

    Attributes:
        threshold: of the probability (of the score where there is none).
        steps: control steps of lead of every event that was foreseen, sorted.
        events: episodes with an event, the first of each.
        false_alarms: episodes without any event in which the threshold is exceeded.
        quiet: episodes without any event.
    """

    threshold: float
    steps: tuple[int, ...]
    events: int
    false_alarms: int
    quiet: int

    @property
    def foreseen(self) -> float | None:
        """Share of the events before whose start the threshold was exceeded; None without events."""
        return len(self.steps) / self.events if self.events else None

    @property
    def median(self) -> float | None:
        """Median lead, control steps, of the foreseen events."""
        return float(np.median(self.steps)) if self.steps else None

    @property
    def false_alarm_rate(self) -> float | None:
        """Share of the quiet episodes that alarm; None without any."""
        return self.false_alarms / self.quiet if self.quiet else None


def lead_time(queries: pd.DataFrame, threshold: float) -> LeadTime:
    """Lead times in the queries of one output.

    Args:
        queries: columns episode, step, label, ahead, incident and probability (or score), as in `ProbeReport.queries`.
        threshold: the alarm is given when the probability is larger.

    Raises:
        ValueError: the target does not say when its events begin.
    """
    positive = queries["label"] == 1
    if queries.loc[positive, "ahead"].isna().any():
        raise ValueError("the labels of this target do not say when the event begins, so there is no lead time")
    value = queries["probability"] if queries["probability"].notna().all() else queries["score"]
    alarm = (value > threshold) & queries["label"].notna()
    ordered = queries.assign(alarm=alarm, begins=queries["step"] + queries["ahead"])
    steps, events, false_alarms, quiet = [], 0, 0, 0
    for _, episode in ordered.sort_values("step").groupby("episode", sort=False):
        alarms = episode.loc[episode["alarm"], "step"]
        begins = episode.loc[episode["label"] == 1, "begins"]
        if len(begins):
            events += 1
            lead = begins.iloc[0] - alarms.iloc[0] if len(alarms) else -1
            steps += [int(lead)] if lead >= 0 else []
        elif not episode["incident"].any():
            quiet += 1
            false_alarms += int(len(alarms) > 0)
    return LeadTime(threshold, tuple(sorted(steps)), events, false_alarms, quiet)


def reliability(queries: pd.DataFrame, bins: int) -> pd.DataFrame:
    """Observed frequency per bin of predicted probability.

    Returns:
        Columns low, high, probability (mean), frequency, queries; bins without queries are left out.

    Raises:
        ValueError: the estimator gives no probabilities.
    """
    known = queries[queries["label"].notna()]
    if known["probability"].isna().any():
        raise ValueError("the estimator gives no probabilities, so there is nothing to calibrate")
    place = np.minimum((known["probability"] * bins).astype(int), bins - 1)
    groups = known.groupby(place)
    found = pd.DataFrame({"probability": groups["probability"].mean(), "frequency": groups["label"].mean()})
    found["queries"] = groups.size()
    found.insert(0, "high", (found.index + 1) / bins)
    found.insert(0, "low", found.index / bins)
    return found.reset_index(drop=True)
