"""How is an episode audited?

The episode is replayed from its record up to each query that sees an event coming; there the simulator is forked, and
the actions that were executed from there to the end of the query's window run again: all of them, without one
dimension, or with every subset of them. These runs are made once per query and answer for all events that it sees: an
event is the run of contact that one of its contacts begins or belongs to, and a dimension is necessary if none of its
runs survives without it (`libero/knockout.py`). An event that does not come again when nothing is changed is reported
and never counted.

Where it misleads: recorded actions end with the episode. If that is soon after the event, an event that would only have
come later without a dimension counts as gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mist_interp.data.records import EpisodeRecord
from mist_interp.data.replay import replay_until
from mist_interp.libero.knockout import Knockouts, Run
from mist_interp.probing.attribution import Blame, Course
from mist_interp.probing.audit import Audit, Finding, asked, shapley
from mist_interp.probing.risk import Risk


def audit_episode(
    env: Any, episode: EpisodeRecord, risk: Risk, *, subsets: bool = False, skip: Audit | None = None
) -> Iterator[Finding]:
    """Audit all events of an episode from every query whose window they begin in.

    Args:
        env: a `LiberoEnv` of the episode's task, fixtures placed with the episode's seed.
        episode: what is audited; its record must hold the geometry of contacts.
        risk: the geometric labels; its window, force and rule are used.
        subsets: run all 128 subsets for Shapley values instead of 7 replays.
        skip: findings that exist; they are not made again.

    Raises:
        ValueError: the replay leaves the recorded states, or `skip` is of another episode or another rule.
    """
    course, known = Course.of(episode), skip or Audit(())
    fork, at = None, None
    for query in episode.queries:
        end = query.step + len(query.chunk) + risk.horizon
        risk.opinion(known, episode.key, course, query.step, end)  # refuses findings that these cannot stand beside
        verdict = risk.judge(course, query.step, end, episode.steps)
        todo = [b for b in verdict.blames if b.contacts and (episode.key, query.step, b.step) not in known]
        if not todo:
            continue
        if fork is not None:
            env.restore(fork)
        replay_until(env, episode, query.step, at)
        fork, at = env.save(), query.step
        actions = course.actions[query.step : end]
        knockouts = Knockouts(env, fork, actions, risk.force)
        for blame in todo:
            runs = runs_of(blame, query.step, knockouts.original)
            yield Finding(
                episode=episode.key,
                query=query.index,
                step=query.step,
                event=blame.step,
                bodies=tuple((contact.body_robot, contact.body_other) for contact in blame.contacts),
                geometric=_plain(blame.own),
                shares=_plain(blame.shares),
                reproduced=bool(runs),
                rule=risk.asks,
                asked=asked(actions, risk.force),
                necessary=tuple(knockouts.necessary(runs).tolist()) if runs else None,
                shapley=tuple(shapley(knockouts.all_subsets(runs)).tolist()) if runs and subsets else None,
            )


def runs_of(blame: Blame, step: int, runs: Sequence[Run]) -> list[Run]:
    """The runs, counted from the query at `step`, that hold one of the event's contacts where it begins."""
    pairs = {(contact.kind, contact.body_other) for contact in blame.contacts}
    return [run for run in runs if run.pair in pairs and run.start <= blame.step - step <= run.end]


def _plain(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in values)
