"""What happens in one episode under one arm, and which numbers are kept of it?

The closed loop itself is `mist_interp.data.rollout`, shared with data collection. Here an arm and a detector
are put into it, and the episode becomes one flat row (for `episodes.jsonl`) and one row per query (for
`queries/`). Units: steps are control steps without the settling steps, forces N, impulses N s, times s.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import torch

from mist_interp.core.actions import ActionChunk, to_env_action
from mist_interp.data.records import Decision, EpisodeRecord, QueryRecord
from mist_interp.data.rollout import rollout
from mist_interp.evaluation.arms import Arm, ArmLog, Query
from mist_interp.evaluation.bystanders import disturbed, motions
from mist_interp.evaluation.detector import Detector
from mist_interp.evaluation.failures import COLUMN as FAILURE
from mist_interp.evaluation.failures import way_of_failing
from mist_interp.evaluation.foreseen import COLUMN, foreseen
from mist_interp.evaluation.gate import Gate, see
from mist_interp.evaluation.horizon import FULL_COLUMNS, LOW_FORCE, contact_columns, hold_to_the_limit
from mist_interp.evaluation.plan import PlannedEpisode
from mist_interp.evaluation.twins import RESET, Moment, Origin, prefix_hash, remembers

Row = dict[str, Any]


class Ran(NamedTuple):
    """A finished episode: its row, its query rows, and its first trigger where it was to be kept."""

    row: Row
    queries: list[Row]
    moment: Moment | None


@dataclass
class _Watch:
    """What the loop does not know of a query: score, trigger and edit; and the actions of the last one."""

    step: int = 0
    triggered: bool = False
    actions: Any = None
    asked: int = 0
    moment: Moment | None = None


def run_episode(
    env: Any,
    vla: Any,
    arm: Arm,
    planned: PlannedEpisode,
    *,
    instruction: str,
    max_steps: int,
    open_loop_steps: int | None = None,
    detector: Detector | Gate | None = None,
    on_step: Callable[[int], None] | None = None,
    provenance: Mapping[str, str] | None = None,
    origin: Origin | None = None,
    keep_trigger: bool = False,
    full_horizon: bool = False,
) -> Ran:
    """Run one episode.

    Args:
        env: an `Environment` of the unit's task; with `keep_trigger` it also has `save()`.
        vla: the policy; `vla.prepare(observation, instruction)` gives the tensors that the arm sees.
        arm: what is done at each query.
        planned: the unit and the arm's name, for the row.
        instruction: the sentence given to the policy.
        max_steps: step limit, settling steps excluded.
        open_loop_steps: actions executed per query; None executes the whole chunk.
        detector: runs at every query of every arm.
        on_step: called with the number of finished control steps (0 after the reset): frames for a video.
        provenance: stored in the row.
        origin: where a gated arm goes on from, `env` standing there; the trigger is that of `none`, whatever the
            detector answers to a state that another machine computes.
        keep_trigger: save the simulator at the first trigger, for other arms to go on from.
        full_horizon: hold the pose after the end up to the step limit and count contacts there too.

    Returns:
        The episode row (`status` ok), the query rows, the trigger.

    Raises:
        Exception: whatever fails; `error_row` makes a row of it.
    """
    watch = _Watch(step=origin.step if origin else 0)
    prefix = list(origin.prefix) if origin else []
    extra: list[Row] = []
    remembered: dict[str, Any] = {}
    if origin and origin.prefix:
        before = origin.prefix[-1]
        commanded = to_env_action(np.asarray(before["chunk"]))[len(before["executed"]) - 1]
        watch.actions, watch.asked = [commanded], origin.step - 1
    recaller: Any = detector.score if detector and remembers(detector) else None
    _begin(arm, planned, recaller, origin)

    def act(observation: Mapping[str, Any], index: int) -> Decision:
        inputs = vla.prepare(observation, instruction)
        memory = recaller.memory() if recaller else None
        seed_query(planned.unit.policy_seed, index)
        seen = see(detector, vla, inputs, getattr(arm, "sites", ()))
        score, fired, clean = seen[:3]
        fired = fired or (origin is not None and not extra)
        if fired and not watch.triggered and keep_trigger:
            watch.moment = Moment(index, env.save(), memory)
        watch.triggered = watch.triggered or fired
        last = None if watch.actions is None else watch.actions[watch.step - watch.asked - 1]
        query = Query(
            planned.unit,
            index,
            watch.step,
            observation,
            instruction,
            score=score,
            fired=fired,
            triggered=watch.triggered,
            clean=clean,
            risk=seen.risk,
            flagged=seen.flagged,
            nearest=seen.nearest,
            cache=seen.cache,
            memory=remembered,
            last_action=last,
        )
        seed_query(planned.unit.policy_seed, index)
        chunk, log = arm.act(vla, inputs, query)
        values = chunk.values[0].detach().cpu().double()
        if not torch.isfinite(values).all():
            raise FloatingPointError(f"arm {arm.name!r}, query {index}: the action chunk is not finite ({log.edit})")
        if seen.facts:
            log = replace(log, details={**log.details, "gate": dict(seen.facts)})
        extra.append(_query_columns(query, log, inputs, chunk, clean))
        watch.actions, watch.asked = chunk.to_env()[0].detach().cpu().double().numpy(), watch.step
        return Decision(
            actions=watch.actions,
            chunk=values.numpy(),
            edits=(log.edit,) if log.edit else (),
        )

    def step_done(step: int, _: Any) -> None:
        watch.step = step
        if on_step:
            on_step(step)

    with own_generators():
        record = rollout(
            env,
            act,
            unit=planned.unit,
            instruction=instruction,
            max_steps=max_steps,
            open_loop_steps=open_loop_steps,
            arm=planned.arm,
            on_step=step_done,
            after=(len(prefix), origin.step) if origin else None,
        )
    own = [_query_row(query, columns) for query, columns in zip(record.queries, extra, strict=True)]
    row = _episode_row(planned, record, prefix + own, own, detector is not None, provenance)
    row["start"] = origin.how if origin else RESET
    row[FAILURE] = way_of_failing(row, prefix + own)
    moved = motions(env, (prefix + own)[0]["objects"])
    row |= contact_columns(hold_to_the_limit(env, record), "_full") if full_horizon else dict.fromkeys(FULL_COLUMNS)
    row["disturbed"] = disturbed(env, planned.unit, moved, record.steps)
    return Ran(row, prefix + own, watch.moment)


def error_row(planned: PlannedEpisode, error: Exception, provenance: Mapping[str, str] | None = None) -> Row:
    """The row of an episode that crashed: it is invalid, never a task failure."""
    return {
        **planned.as_row(),
        "status": "error",
        "error": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
        "finished_at": now(),
        "provenance": dict(provenance or {}),
    }


def seed_query(seed: int, index: int) -> None:
    """Seed torch for one query, so that what a policy draws depends on the unit and the query alone.

    A forked episode then draws what a whole one would have drawn, and an edited forward pass what the clean one drew.
    """
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "big"))


@contextmanager
def own_generators() -> Iterator[None]:
    """Scope after which torch's generators are as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


def _begin(arm: Arm, planned: PlannedEpisode, recaller: Any, origin: Origin | None) -> None:
    """Tell whoever remembers earlier queries that another episode begins, or from where it goes on."""
    if hasattr(arm, "begin"):
        arm.begin(planned.unit)
    if recaller and origin:
        recaller.recall(origin.memory)
    elif recaller:
        recaller.begin()


def _query_columns(query: Query, log: ArmLog, inputs: Any, chunk: ActionChunk, clean: ActionChunk | None) -> Row:
    shift = None
    if log.edit and clean is not None:
        shift = float((chunk.normalized - clean.normalized).abs().max())
    return {
        "score": query.score,
        "risk": dict(query.risk) or None,
        "fired": query.fired,
        "triggered": query.triggered,
        "edit": log.edit,
        "edit_norm": log.edit_norm,
        "action_shift": shift,
        "details": json.dumps(dict(log.details)) if log.details else "",
        "proprio": None if inputs.proprio is None else inputs.proprio[0].double().cpu().tolist(),
    }


def _query_row(query: QueryRecord, columns: Row) -> Row:
    return {
        "query": query.index,
        "step": query.step,
        "state_hash": query.state_hash,
        **columns,
        "chunk": query.chunk.tolist(),
        "executed": query.executed.tolist(),
        "hand": None if query.hand is None else query.hand.tolist(),
        "objects": {name: pose.tolist() for name, pose in query.objects.items()} or None,
        "observe_ms": 1000 * query.seconds_observe,
        "act_ms": 1000 * query.seconds_act,
    }


def _episode_row(
    planned: PlannedEpisode,
    record: EpisodeRecord,
    queries: list[Row],
    own: list[Row],
    watched: bool,
    provenance: Mapping[str, str] | None,
) -> Row:
    fired = [row for row in queries if row["fired"]]
    norms = [row["edit_norm"] for row in queries if row["edit"]]
    trigger = fired[0]["query"] if fired else None
    starts = [contact.start_step for contact in record.contacts if contact.peak_force >= LOW_FORCE]
    return {
        **planned.as_row(),
        "status": "ok",
        "instruction": record.instruction,
        "success": record.success,
        "steps": record.steps,
        "max_steps": record.max_steps,
        "queries": len(queries),
        "queries_run": len(own),
        **contact_columns(record.contacts),
        "first_event_step": min(starts, default=None),
        "peak_force": max((contact.peak_force for contact in record.contacts), default=0.0),
        "events": [asdict(event) for event in record.contacts],
        "releases": [asdict(release) for release in record.releases],
        COLUMN: foreseen(queries, record.contacts, record.releases, record.steps),
        "triggered": bool(fired) if watched else None,
        "trigger_query": trigger,
        "trigger_step": fired[0]["step"] if fired else None,
        "prefix_hash": prefix_hash(queries, trigger),
        "active_queries": len(fired),
        "edited_queries": len(norms),
        "median_edit_norm": statistics.median(norms) if norms else None,
        "seconds": record.seconds,
        # What lies before a fork was computed by another arm.
        "median_query_ms": statistics.median(row["act_ms"] for row in own),
        "median_observe_ms": statistics.median(row["observe_ms"] for row in own),
        "finished_at": now(),
        "provenance": dict(provenance or {}),
    }


def now() -> str:
    """The present time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
