"""Which dimension of the actions is about to cause a collision?

Seven labels per query, one per action dimension, from recorded contacts alone (`attribution.py` has the mathematics):

    y_d = 1       a forbidden event begins in the chunk or the `horizon` control steps beyond it, and d is to blame
    y_d = 0       no event begins there
    masked        an event begins, but d is not to blame; or nothing that was commanded closed the gap (unattributed);
                  or the episode ends inside the window (censored); or the robot is in contact, or was during the last
                  three control steps

A label never depends on how large an action is: without geometry there is no label. With `contrast="attribution"` the
question is who is to blame *given* an event: 1 to blame, 0 not, masked where there is no event.

With several events in one window a dimension is to blame if it is for any of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.errors import UnknownName
from mist_interp.data.records import Array, ContactRecord, ReleaseRecord
from mist_interp.data.store import RolloutStore
from mist_interp.data.tables import read_contact
from mist_interp.probing.attribution import GRIPPER, Blame, Course, Rule, blame
from mist_interp.probing.audit import Audit, Opinion, asked
from mist_interp.probing.labels import ATTRIBUTION, DETECTION, Labels

# A contact is over when this many control steps have passed without it.
CONTACT_FREE_STEPS = 3
CONTRASTS = (DETECTION, ATTRIBUTION)
# N; what never reached it is in no record.
RECORDED_FORCE = 1.0

IN_CONTACT = "in contact"
CENSORED = "the episode ends inside the window"
UNATTRIBUTED = "unattributed (no commanded motion closed the gap)"
NO_GEOMETRY = "no geometry is recorded"
NOT_AUDITED = "not judged by the audit"
NOT_NECESSARY = "unattributed (the event happens without any one dimension)"
NO_EVENT = "no event"
OTHERS = "an event, but of other dimensions"


@dataclass(frozen=True)
class Verdict:
    """The labels of one query.

    Attributes:
        values: (7,) 1, 0 or NaN.
        reasons: why each is masked; None where it is not.
        blames: what begins in the window.
    """

    values: Float[Array, "7"]
    reasons: tuple[str | None, ...]
    blames: tuple[Blame, ...] = ()

    def to_blame(self) -> Float[Array, "7"]:
        """Of a verdict on detection, the one on attribution: among events 1 to blame, 0 not, else NaN."""
        others = np.array([reason == OTHERS for reason in self.reasons])
        return np.where(self.values == 1, 1.0, np.where(others, 0.0, np.nan))

    def ahead(self, step: int) -> Float[Array, "7"]:
        """Control steps from the query at `step` to the first event that each dimension is to blame for, else NaN."""
        own = np.full((len(ACTION_NAMES), len(self.blames) + 1), np.nan)
        for place, each in enumerate(self.blames):
            own[each.own == 1, place] = each.step - step
        found: Array = np.fmin.reduce(own, axis=1)
        return np.where(self.values == 1, found, np.nan)


@dataclass(frozen=True)
class Risk:
    """Which dimension of the actions is about to cause a collision?

    Attributes:
        horizon: control steps beyond the end of the chunk.
        gamma: weight of an action one control step earlier.
        share: a dimension with this share of the closed gap is to blame.
        force: an event counts from this peak force (N) on.
        finger_speed: a finger that closes the gap faster than this (m/s) by its own joint is to blame.
        contrast: `detection` (to blame against no event) or `attribution` (to blame against not, among events).
        audit: where geometry agrees with the store's knockout audit (`audit.py`) by less than kappa 0.4, the audit's
            labels count. Kappa is that of all findings in the store's folder, also if the store is a view of some
            episodes.
        dimensions: outputs; a policy that never collides along a dimension has no positive to learn it from.
    """

    horizon: int = 10
    gamma: float = Rule.gamma
    share: float = Rule.share
    force: float = Rule.force
    finger_speed: float = Rule.finger_speed
    contrast: str = "detection"
    audit: bool = False
    dimensions: tuple[str, ...] = ACTION_NAMES

    def __post_init__(self) -> None:
        object.__setattr__(self, "dimensions", tuple(self.dimensions))  # a list, when read from a file
        for name in self.dimensions:
            if name not in ACTION_NAMES:
                raise UnknownName("action dimension", name, ACTION_NAMES)
        if not self.dimensions:
            raise ValueError(f"dimensions are empty; choose some of {', '.join(ACTION_NAMES)}")
        if self.contrast not in CONTRASTS:
            raise UnknownName("contrast", self.contrast, CONTRASTS)
        if self.horizon < 0 or not 0 < self.gamma <= 1 or not 0 < self.share <= 1:
            raise ValueError(f"horizon >= 0, 0 < gamma <= 1 and 0 < share <= 1 are needed; got {self}")
        if not self.force >= RECORDED_FORCE:
            raise ValueError(f"force={self.force} N; contacts are recorded from {RECORDED_FORCE:g} N on")

    @property
    def name(self) -> str:
        """Name in tables."""
        return "risk" if self.contrast == "detection" else "risk, attribution"

    @property
    def asks(self) -> str:
        """What an audit must have asked to speak for these labels: their window and their rule."""
        return f"horizon={self.horizon:g} " + " ".join(f"{name}={value:g}" for name, value in asdict(self.rule).items())

    @property
    def rule(self) -> Rule:
        """The numbers of the definition."""
        return Rule(self.gamma, self.share, self.force, self.finger_speed)

    def labels(self, store: RolloutStore) -> Labels:
        """Labels of all queries; the outputs are the names of the dimensions.

        `masked` counts queries by reason; a reason that holds for one dimension alone begins with its name. Labels for
        detection bring those for attribution along, so that the same scores are judged on both.

        Raises:
            ValueError: the store does not record what is needed, see `mist_interp.data.replay.upgrade`; or its audit
                was made of other episodes, or with another horizon or force.
            FileNotFoundError: the audit's labels are to count, and the store has none.
        """
        queries = _queries(store)
        verdicts = list(self.verdicts(store, queries))
        places = [ACTION_NAMES.index(name) for name in self.dimensions]
        detection = self.contrast == DETECTION
        return Labels(
            np.stack([verdict.values for verdict in verdicts])[:, places],
            self.dimensions,
            queries["episode"].to_numpy(),
            queries["query"].to_numpy(),
            counted(verdicts, places),
            self.contrast,
            {ATTRIBUTION: np.stack([verdict.to_blame() for verdict in verdicts])[:, places]} if detection else {},
            np.array([bool(verdict.blames) or IN_CONTACT in verdict.reasons for verdict in verdicts]),
            np.stack([v.ahead(int(step)) for v, step in zip(verdicts, queries["step"], strict=True)])[:, places],
            queries["step"].to_numpy(),
        )

    def verdicts(self, store: RolloutStore, queries: pd.DataFrame | None = None) -> Iterator[Verdict]:
        """Verdicts of all queries, in the order of `store.queries()`."""
        queries = _queries(store) if queries is None else queries
        episodes = store.episodes().set_index("episode")
        audit = Audit.of(store) if self.audit else None
        for key, rows in queries.groupby("episode", sort=False):
            episode = episodes.loc[key]
            course = course_of(episode, rows)
            for step, chunk in zip(rows["step"], rows["chunk"], strict=True):
                end = int(step) + len(chunk) + self.horizon
                opinion = None if audit is None else self.opinion(audit, str(key), course, int(step), end)
                yield self.judge(course, int(step), end, int(episode["steps"]), opinion)

    def opinion(self, audit: Audit, episode: str, course: Course, step: int, end: int) -> Opinion:
        """What an audit says of a query.

        Args:
            audit: of the store.
            episode: key.
            course: the episode.
            step: control step of the query.
            end: first control step behind its window; recorded actions may end before.

        Raises:
            ValueError: the audit was made of other episodes, or by another rule.
        """
        return audit.opinion(episode, step, self.asks, asked(course.actions[step:end], self.force))

    def judge(self, course: Course, step: int, end: int, steps: int, opinion: Opinion | None = None) -> Verdict:
        """Labels of a query.

        Args:
            course: the episode.
            step: control step of the query.
            end: first control step behind its window.
            steps: length of the episode.
            opinion: what a knockout audit says of the query, where geometry is not to be trusted.
        """
        touched = [contact for contact in course.contacts if contact.peak_force >= self.force]
        # Between the first touch and the last contact-free step nothing is foreseen, it is being lived through.
        if any(contact.start_step < step <= contact.end_step + CONTACT_FREE_STEPS for contact in touched):
            return Verdict(np.full(len(ACTION_NAMES), np.nan), (IN_CONTACT,) * len(ACTION_NAMES))
        blames = blame(course, step, end, self.rule)
        if opinion is not None:
            # What is only dropped is audited by nobody: its geometry counts.
            blames = [
                replace(each, own=opinion.instead_of(each.own, each.step)) if each.contacts else each for each in blames
            ]
        values, reasons = np.full(len(ACTION_NAMES), np.nan), []
        for place in range(len(ACTION_NAMES)):
            # What is only dropped is the gripper's affair; to the arm it is no event.
            events = [each for each in blames if each.contacts or place == GRIPPER]
            reason = self._reason(place, events, censored=end > steps, opinion=opinion)
            reasons.append(reason)
            if reason is None:
                values[place] = float(any(each.own[place] == 1 for each in events))
        return Verdict(values, tuple(reasons), tuple(blames))

    def _reason(self, place: int, events: list[Blame], censored: bool, opinion: Opinion | None) -> str | None:
        """Why a dimension is masked; None if it is not."""
        if not events:
            if self.contrast == "attribution":
                return NO_EVENT
            return CENSORED if censored else None
        own = np.array([each.own[place] for each in events])
        if (own == 1).any():
            return None
        if not np.isnan(own).all():
            return OTHERS if self.contrast == "detection" else None
        if opinion is not None and opinion.replaced[place]:
            return NOT_NECESSARY if all(each.step in opinion.necessary for each in events) else NOT_AUDITED
        known = [contact for each in events for contact in each.contacts if contact.gain is not None]
        return UNATTRIBUTED if known else NO_GEOMETRY


def counted(verdicts: Iterable[Verdict], places: Sequence[int] = range(len(ACTION_NAMES))) -> dict[str, int]:
    """Number of masked queries by reason; one that holds for some dimensions only begins with `pose:` or their name.

    Args:
        verdicts: of the queries.
        places: dimensions that count.
    """
    counts: Counter[str] = Counter()
    pose = [place for place in places if place != GRIPPER]
    for verdict in verdicts:
        for reason in {verdict.reasons[place] for place in places} - {None}:
            mine = [place for place in places if verdict.reasons[place] == reason]
            whose = [ACTION_NAMES[place] for place in mine]
            if len(mine) == len(places):
                whose = [""]
            elif len(pose) > 1 and set(pose) <= set(mine):
                whose = ["pose", *(ACTION_NAMES[place] for place in mine if place == GRIPPER)]
            counts.update(f"{name}: {reason}" if name else str(reason) for name in whose)
    order = ["", "pose", *ACTION_NAMES]
    return dict(sorted(counts.items(), key=lambda item: (order.index(_whose(item[0])), item[0])))


def _whose(reason: str) -> str:
    """The dimension that a counted reason speaks of; empty if of all."""
    name, colon, _ = reason.partition(": ")
    return name if colon else ""


def course_of(episode: Any, rows: pd.DataFrame) -> Course:
    """Course of an episode.

    Args:
        episode: its row of `store.episodes()`.
        rows: its rows of `store.queries()`.
    """
    contacts: tuple[ContactRecord, ...] = tuple(read_contact(contact) for contact in episode["contacts"])
    releases = tuple(ReleaseRecord(**release) for release in episode["releases"])
    if not contacts and not releases:  # most episodes; their actions are not needed, an audit has no finding in them
        return Course(np.zeros((0, 7)), np.zeros((0, 13)))
    actions = np.concatenate([np.stack(list(part)) for part in rows["executed"]])
    hand = np.concatenate([np.stack(list(part)) for part in rows["hand"]])
    return Course(actions, hand, contacts, releases)


def _queries(store: RolloutStore) -> pd.DataFrame:
    store.check_outcomes()
    if store.manifest.version < 2:
        raise ValueError(
            f"{store.folder} was recorded in layout 1, without the geometry of contacts; "
            "mist_interp.data.replay.upgrade replays it into the present one (mist label RUN --upgrade OUT)"
        )
    return store.queries(["episode", "query", "step", "chunk", "executed", "hand"])
