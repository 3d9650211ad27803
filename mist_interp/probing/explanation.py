"""Why is a label what it is?

For one query: what begins in its window, how each unit of each dimension closes the gap of that, what was commanded,
what came of it, and what was made of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.errors import UnknownName
from mist_interp.data.records import EpisodeRecord
from mist_interp.data.store import RolloutStore
from mist_interp.probing.attribution import Blame, Course, closing, gains
from mist_interp.probing.audit import Audit
from mist_interp.probing.risk import Risk, Verdict


@dataclass(frozen=True)
class Explanation:
    """The labels of one query with what led to them.

    Attributes:
        record: the episode.
        course: its actions, path of the hand and contacts.
        query: number of the query.
        step: control step of the query.
        end: first control step behind its window.
        verdict: the labels.
        risk: the settings.
    """

    record: EpisodeRecord
    course: Course
    query: int
    step: int
    end: int
    verdict: Verdict
    risk: Risk

    @property
    def first(self) -> Blame | None:
        """The first event of the window; None if nothing begins in it."""
        return self.verdict.blames[0] if self.verdict.blames else None

    def headline(self) -> str:
        """One sentence: which query, which window."""
        return (
            f"{self.record.key}, query {self.query} at control step {self.step}: what begins in steps {self.step} to "
            f"{self.end - 1} of {self.record.steps}?"
        )

    def events(self) -> list[str]:
        """One sentence per contact and drop in the window."""
        said = []
        for blame in self.verdict.blames:
            for c in blame.contacts:
                where, normal = (", ".join(f"{value:+.3f}" for value in v) for v in (c.point, c.normal))
                text = f"step {c.start_step}: {c.body_robot} touches {c.body_other} ({c.kind}), {c.peak_force:.1f} N "
                text += f"at most, {c.start_force or 0.0:.1f} N in this step; point ({where}) m, normal ({normal})"
                if c.finger_speed is not None:
                    text += f"; the finger's own joint closed the gap at {1000 * c.finger_speed:.1f} mm/s"
                said.append(text)
            said += [
                f"step {r.step}: {r.body} is let go by an open command and lands on {r.landed_on}, not at its goal"
                for r in blame.drops
            ]
        return said

    def table(self) -> pd.DataFrame:
        """One row per dimension; per event what was commanded, what a unit closes, what comes of it, the share.

        Columns: `dimension`, `label` (1, 0, NaN), `why` (why it is masked), and, for the event at control step s,
        `action@s` (mean of the executed actions, discounted as in A_d), `gain@s` (mm per unit, weighted by force),
        `commanded@s` (A_d, mm: what the actions asked for; in one control step the arm does a part of it), `share@s`;
        NaN where a column does not apply.
        """
        columns: dict[str, object] = {
            "dimension": ACTION_NAMES,
            "label": self.verdict.values,
            "why": [reason or "" for reason in self.verdict.reasons],
        }
        for blame in self.verdict.blames:
            if blame.contacts:
                action, gain = self._mean_action(blame), self._mean_gain(blame)
                columns[f"action@{blame.step}"] = action
                columns[f"gain@{blame.step}"] = np.append(1000 * gain, np.nan)
                columns[f"commanded@{blame.step}"] = np.append(1000 * blame.closed, np.nan)
                columns[f"share@{blame.step}"] = np.append(blame.shares, np.nan)
        return pd.DataFrame(columns)

    def _mean_action(self, blame: Blame) -> np.ndarray:
        actions = self.course.actions[self.step : blame.step + 1]
        ones = np.ones_like(actions)
        return closing(actions, ones, self.risk.gamma) / closing(ones, ones, self.risk.gamma)

    def _mean_gain(self, blame: Blame) -> np.ndarray:
        forces = np.array([contact.start_force or 0.0 for contact in blame.contacts])
        last = np.stack([gains(contact, self.course, self.step)[-1] for contact in blame.contacts])
        mean: np.ndarray = (forces[:, None] * last).sum(0) / max(forces.sum(), 1e-12)
        return mean


def explain(store: RolloutStore, episode: str, query: int, risk: Risk | None = None) -> Explanation:
    """Explain the labels of one query.

    Args:
        store: recorded rollouts.
        episode: key of the episode.
        query: number of the query in it.
        risk: settings of the labels; default: those of the definition.

    Raises:
        UnknownName: there is no such episode or query.
        ValueError: the record lacks the path of the hand, or the store's audit asked something else.
        FileNotFoundError: the labels of an audit are to count, and the store has none.
    """
    risk = risk or Risk()
    record = store.episode(episode)
    if not 0 <= query < len(record.queries):
        raise UnknownName(f"query of {episode}", str(query), [str(each.index) for each in record.queries])
    course, asked = Course.of(record), record.queries[query]
    end = asked.step + len(asked.chunk) + risk.horizon
    opinion = risk.opinion(Audit.of(store), episode, course, asked.step, end) if risk.audit else None
    verdict = risk.judge(course, asked.step, end, record.steps, opinion)
    return Explanation(record, course, query, asked.step, end, verdict, risk)
