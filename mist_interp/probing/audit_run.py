"""How is an episode audited?

The episode is replayed from its record up to each query that sees an event coming; there the simulator is forked, and
the actions that were executed from there to the end of the query's window run again without one dimension, or with
every subset of them. A fork that does not reproduce the event with all dimensions is reported and never counted.

Where it misleads: recorded actions end with the episode. If that is soon after the event, an event that would only have
come later without a dimension counts as gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data.records import EpisodeRecord
from mist_interp.data.replay import replay_until
from mist_interp.libero.knockout import all_subsets, happens, necessary
from mist_interp.probing.attribution import Blame, Course
from mist_interp.probing.audit import Finding, shapley
from mist_interp.probing.risk import Risk

Key = tuple[str, int, int]


def audit_episode(
    env: Any, episode: EpisodeRecord, risk: Risk, *, subsets: bool = False, skip: Collection[Key] = ()
) -> Iterator[Finding]:
    """Audit all events of an episode from every query whose window they begin in.

    Args:
        env: a `LiberoEnv` of the episode's task, fixtures placed with the episode's seed.
        episode: what is audited; its record must hold the geometry of contacts.
        risk: the geometric labels; its window, force and rule are used.
        subsets: run all 128 subsets for Shapley values instead of 7 replays.
        skip: findings that exist, by `Finding.key`.

    Raises:
        ValueError: the replay leaves the recorded states.
    """
    course = Course.of(episode)
    fork, at = None, None
    for query in episode.queries:
        end = query.step + len(query.chunk) + risk.horizon
        verdict = risk.judge(course, query.step, end, episode.steps)
        todo = [b for b in verdict.blames if b.contacts and (episode.key, query.step, b.step) not in skip]
        if not todo:
            continue
        if fork is not None:
            env.restore(fork)
        replay_until(env, episode, query.step, at)
        fork, at = env.save(), query.step
        actions = course.actions[query.step : end]
        for blame in todo:
            yield _audit(env, fork, actions, episode.key, query.index, query.step, blame, risk, subsets)


def _audit(
    env: Any,
    fork: Any,
    actions: np.ndarray,
    episode: str,
    query: int,
    step: int,
    blame: Blame,
    risk: Risk,
    subsets: bool,
) -> Finding:
    contacts = {(contact.kind, contact.body_other) for contact in blame.contacts}
    everything = np.ones(len(ACTION_NAMES), dtype=bool)
    reproduced = happens(env, fork, actions, contacts, everything, risk.force)
    missing, values = None, None
    if reproduced and subsets:
        table = all_subsets(env, fork, actions, contacts, risk.force)
        missing = ~table[[len(table) - 1 - 2**place for place in range(len(ACTION_NAMES))]]
        values = tuple(float(value) for value in shapley(table))
    elif reproduced:
        missing = necessary(env, fork, actions, contacts, risk.force)
    return Finding(
        episode=episode,
        query=query,
        step=step,
        event=blame.step,
        bodies=tuple((contact.body_robot, contact.body_other) for contact in blame.contacts),
        geometric=_plain(blame.own),
        shares=_plain(blame.shares),
        reproduced=reproduced,
        necessary=None if missing is None else tuple(bool(value) for value in missing),
        shapley=values,
    )


def _plain(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in values)
