"""Which dimension of the actions closed the gap of a contact?

For a forbidden event that starts in control step t_c, seen from the query at control step t:

    c_d(s) = a_d(s) g_d(s)                          executed clipped action times closing gain (`core/closing.py`), m
    A_d(t) = sum over s = t .. t_c of gamma^(t_c - s) c_d(s)
    rho_d  = max(0, A_d) / sum over the six pose dimensions of max(0, A_j)

The gain of what moves with the hand is taken at every step: the lever from the end effector to the point turns with the
hand, the normal is the obstacle's. That of an arm's link is the one recorded when the event began. Events that begin in
the same control step are one: their A_d are averaged with the normal forces of that step as weights. If nothing that
was commanded closed the gap (the obstacle came, or the arm swung on), no dimension is to blame and the event is
*unattributed*. Actions that did not close the gap never make a share, however large they are.

The gripper is not a pose dimension. It is to blame if a finger touches something forbidden because its own joint moved
it there, or if an object is let go outside its goal while the command is "open".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.closing import POSE_DIMENSIONS, hand_gain
from mist_interp.data.records import Array, ContactRecord, EpisodeRecord, ReleaseRecord

GRIPPER = POSE_DIMENSIONS
# Sums of products of floats are never exactly 0; a nanometre is no motion.
NO_MOTION = 1e-9


@dataclass(frozen=True)
class Rule:
    """Numbers of the definition.

    Attributes:
        gamma: weight of an action one control step earlier.
        share: a dimension with this share or more is to blame.
        force: an event counts from this peak force (N) on.
        finger_speed: a finger that closes the gap faster than this (m/s) by its own joint is to blame.
    """

    gamma: float = 0.9
    share: float = 0.2
    force: float = 1.0
    finger_speed: float = 0.005


@dataclass(frozen=True)
class Course:
    """What labels need of an episode.

    Attributes:
        actions: (steps, 7) executed, clipped.
        hand: (steps, 13) the end effector before each of them: position, quaternion (xyzw), velocities.
        contacts: forbidden events, all forces.
        releases: what was let go.
    """

    actions: Float[Array, "steps 7"]
    hand: Float[Array, "steps 13"]
    contacts: tuple[ContactRecord, ...] = ()
    releases: tuple[ReleaseRecord, ...] = ()

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if self.actions.shape != (steps, len(ACTION_NAMES)) or self.hand.shape != (steps, 13):
            raise ValueError(f"actions {self.actions.shape} and hand {self.hand.shape}, expected (n, 7) and (n, 13)")

    @classmethod
    def of(cls, episode: EpisodeRecord) -> Course:
        """The course of a recorded episode.

        Raises:
            ValueError: the path of the hand was not recorded.
        """
        paths = [query.hand for query in episode.queries if query.hand is not None]
        if len(paths) < len(episode.queries):
            raise ValueError(f"{episode.key} does not record the path of the hand; replay it (mist_interp.data.replay)")
        actions = np.concatenate([query.executed for query in episode.queries])
        return cls(actions, np.concatenate(paths), episode.contacts, episode.releases)


@dataclass(frozen=True)
class Blame:
    """What began in one control step, and which dimensions are to blame for it, seen from one query.

    Attributes:
        step: control step in which it began.
        contacts: the forbidden events that began then; none if something was only dropped.
        drops: objects that were dropped then.
        closed: (6,) A_d in m; NaN where no geometry is recorded.
        shares: (6,) rho_d, summing to 1; NaN where unattributed.
        own: (7,) 1 to blame, 0 not, NaN unknown.
    """

    step: int
    contacts: tuple[ContactRecord, ...]
    drops: tuple[ReleaseRecord, ...]
    closed: Float[Array, "6"]
    shares: Float[Array, "6"]
    own: Float[Array, "7"]


def gains(contact: ContactRecord, course: Course, start: int) -> Float[Array, "n 6"]:
    """Closing gain of a contact for the actions of control steps `start` to that of the contact, both included.

    Returns:
        m per unit; NaN if the record lacks the geometry.
    """
    steps = np.arange(start, contact.start_step + 1)
    if contact.gain is None or contact.eef is None:
        return np.full((len(steps), POSE_DIMENSIONS), np.nan)
    if contact.kind.startswith("arm-") or contact.kind.endswith("-self"):
        return np.tile(np.asarray(contact.gain), (len(steps), 1))
    turns = Rotation.from_quat(course.hand[steps, 3:7])
    lever = np.subtract(contact.point, contact.eef)
    return hand_gain(np.asarray(contact.normal), (turns * turns[-1].inv()).apply(lever))


def closing(
    actions: Float[Array, "n dims"], gain: Float[Array, "n dims"], gamma: float = Rule.gamma
) -> Float[Array, " dims"]:
    """A_d: discounted sum over control steps, the last of which is that of the contact, of action times gain, m."""
    weights = gamma ** np.arange(len(actions) - 1, -1, -1)
    total: Array = (weights[:, None] * actions * gain).sum(0)
    return total


def shares(closed: Float[Array, " dims"]) -> Float[Array, " dims"]:
    """rho_d: what each dimension has of all that closed the gap; NaN if nothing did, or if that is unknown."""
    positive = np.maximum(closed, 0.0)
    total = float(positive.sum())
    return positive / total if total > NO_MOTION else np.full(len(closed), np.nan)


def blame(course: Course, query: int, end: int, rule: Rule) -> list[Blame]:
    """All that begins in control steps `query` to `end` - 1, by time, as seen from the query at step `query`."""
    contacts = [c for c in course.contacts if c.peak_force >= rule.force and query <= c.start_step < end]
    drops = [r for r in course.releases if query <= r.step < end and is_drop(r, course)]
    steps = sorted({c.start_step for c in contacts} | {r.step for r in drops})
    return [
        _blame(
            course,
            query,
            step,
            tuple(c for c in contacts if c.start_step == step),
            tuple(r for r in drops if r.step == step),
            rule,
        )
        for step in steps
    ]


def is_drop(release: ReleaseRecord, course: Course) -> bool:
    """Whether an open command let go of an object that had been lifted, and it did not come down at its goal."""
    commanded = float(course.actions[release.step, GRIPPER]) < 0
    return release.lifted and release.at_goal is False and commanded


def pushed_by_finger(contact: ContactRecord, rule: Rule) -> bool:
    """Whether a finger touches something because its own joint moved it there."""
    return contact.kind.startswith("finger-") and (contact.finger_speed or 0.0) > rule.finger_speed


def _blame(
    course: Course,
    query: int,
    step: int,
    contacts: tuple[ContactRecord, ...],
    drops: tuple[ReleaseRecord, ...],
    rule: Rule,
) -> Blame:
    closed = _closed_together(course, query, contacts, rule)
    rho = shares(closed)
    own = np.full(len(ACTION_NAMES), np.nan)
    own[:GRIPPER] = np.where(np.isnan(rho), np.nan, rho >= rule.share)
    own[GRIPPER] = bool(drops) or any(pushed_by_finger(contact, rule) for contact in contacts)
    return Blame(step, contacts, drops, closed, rho, own)


def _closed_together(course: Course, query: int, contacts: Sequence[ContactRecord], rule: Rule) -> Float[Array, "6"]:
    total, weight = np.zeros(POSE_DIMENSIONS), 0.0
    for contact in contacts:
        gain = gains(contact, course, query)
        if not np.isnan(gain).any():
            force = contact.start_force or 0.0
            actions = course.actions[query : contact.start_step + 1, :GRIPPER]
            total += force * closing(actions, gain, rule.gamma)
            weight += force
    return total / weight if weight > 0 else np.full(POSE_DIMENSIONS, np.nan)
