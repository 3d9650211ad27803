"""What happens in one episode under one arm, and which numbers are kept of it?

The closed loop itself is `mist_interp.data.rollout`, shared with data collection. Here an arm and a detector
are put into it, and the episode becomes one flat row (for `episodes.jsonl`) and one row per query (for
`queries/`). Units: steps are control steps without the settling steps, forces N, impulses N s, times s.
"""

from __future__ import annotations

import json
import math
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch

from mist_interp.core.actions import ActionChunk
from mist_interp.data.records import Decision, EpisodeRecord, QueryRecord
from mist_interp.data.rollout import Environment, rollout
from mist_interp.evaluation.arms import Arm, ArmLog, Query
from mist_interp.evaluation.detector import Detector
from mist_interp.evaluation.gate import Gate, see
from mist_interp.evaluation.plan import PlannedEpisode

Row = dict[str, Any]
LOW_FORCE, HIGH_FORCE = 1.0, 10.0


@dataclass
class _Watch:
    """What the loop does not know of a query: score, trigger and edit; and the actions of the last one."""

    step: int = 0
    triggered: bool = False
    actions: Any = None
    asked: int = 0


def run_episode(
    env: Environment,
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
) -> tuple[Row, list[Row]]:
    """Run one episode.

    Args:
        env: an environment of the unit's task.
        vla: the policy; `vla.prepare(observation, instruction)` gives the tensors that the arm sees.
        arm: what is done at each query.
        planned: the unit and the arm's name, for the row.
        instruction: the sentence given to the policy.
        max_steps: step limit, settling steps excluded.
        open_loop_steps: actions executed per query; None executes the whole chunk.
        detector: runs at every query of every arm.
        on_step: called with the number of finished control steps (0 after the reset): frames for a video.
        provenance: stored in the row.

    Returns:
        The episode row (`status` ok) and the query rows.

    Raises:
        Exception: whatever fails; `error_row` makes a row of it.
    """
    watch = _Watch()
    extra: list[Row] = []
    remembered: dict[str, Any] = {}
    if hasattr(detector, "begin"):
        detector.begin()

    def act(observation: Mapping[str, Any], index: int) -> Decision:
        inputs = vla.prepare(observation, instruction)
        seen = see(detector, vla, inputs, getattr(arm, "sites", ()))
        score, fired, clean = seen[:3]
        watch.triggered = watch.triggered or fired
        last = None if watch.actions is None else watch.actions[watch.step - watch.asked - 1]
        query = Query(
            planned.unit,
            index,
            watch.step,
            observation,
            instruction,
            score,
            fired,
            watch.triggered,
            clean,
            risk=seen.risk,
            flagged=seen.flagged,
            cache=seen.cache,
            memory=remembered,
            last_action=last,
        )
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

    with seeded(planned.unit.policy_seed):
        record = rollout(
            env,
            act,
            unit=planned.unit,
            instruction=instruction,
            max_steps=max_steps,
            open_loop_steps=open_loop_steps,
            arm=planned.arm,
            on_step=step_done,
        )
    queries = [_query_row(query, columns) for query, columns in zip(record.queries, extra, strict=True)]
    return _episode_row(planned, record, queries, detector is not None, provenance), queries


def error_row(planned: PlannedEpisode, error: Exception, provenance: Mapping[str, str] | None = None) -> Row:
    """The row of an episode that crashed: it is invalid, never a task failure."""
    return {
        **planned.as_row(),
        "status": "error",
        "error": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
        "finished_at": _now(),
        "provenance": dict(provenance or {}),
    }


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Scope with torch's generators at `seed`; afterwards they are as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _query_columns(query: Query, log: ArmLog, inputs: Any, chunk: ActionChunk, clean: ActionChunk | None) -> Row:
    shift = None
    if log.edit and clean is not None:
        shift = float((chunk.normalized - clean.normalized).abs().max())
    return {
        "score": query.score,
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
        "observe_ms": 1000 * query.seconds_observe,
        "act_ms": 1000 * query.seconds_act,
    }


def _episode_row(
    planned: PlannedEpisode,
    record: EpisodeRecord,
    queries: list[Row],
    watched: bool,
    provenance: Mapping[str, str] | None,
) -> Row:
    forces = [contact.peak_force for contact in record.contacts]
    events = [contact for contact in record.contacts if contact.peak_force >= LOW_FORCE]
    fired = [row["query"] for row in queries if row["fired"]]
    norms = [row["edit_norm"] for row in queries if row["edit"]]
    return {
        **planned.as_row(),
        "status": "ok",
        "instruction": record.instruction,
        "success": record.success,
        "steps": record.steps,
        "max_steps": record.max_steps,
        "queries": len(queries),
        "collision_1n": bool(events),
        "collision_10n": any(force >= HIGH_FORCE for force in forces),
        "events_1n": len(events),
        "events_10n": sum(force >= HIGH_FORCE for force in forces),
        "first_event_step": min((event.start_step for event in events), default=None),
        "peak_force": max(forces, default=0.0),
        "impulse": math.fsum(event.impulse for event in events),
        "events": [asdict(event) for event in record.contacts],
        "triggered": bool(fired) if watched else None,
        "trigger_query": fired[0] if fired else None,
        "active_queries": len(fired),
        "edited_queries": len(norms),
        "median_edit_norm": statistics.median(norms) if norms else None,
        "seconds": record.seconds,
        "median_query_ms": statistics.median(row["act_ms"] for row in queries),
        "median_observe_ms": statistics.median(row["observe_ms"] for row in queries),
        "finished_at": _now(),
        "provenance": dict(provenance or {}),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
