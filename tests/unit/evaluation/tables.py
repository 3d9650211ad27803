"""Hand-made episode rows whose every metric can be counted on fingers."""

from typing import Any

import pandas as pd


def episode(arm: str, task: int, init: int, **facts: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": f"{arm}/{task}/{init}",
        "arm": arm,
        "suite": "s",
        "task": task,
        "init_state": init,
        "perturbation": "none",
        "simulator_seed": 0,
        "policy_seed": 0,
        "status": "ok",
        "instruction": f"task {task}",
        "success": False,
        "failure_type": None,
        "steps": 100,
        "queries": 10,
        "collision_1n": False,
        "collision_10n": False,
        "events_1n": 0,
        "impulse": 0.0,
        "first_event_step": None,
        "triggered": None,
        "trigger_step": None,
        "start": "reset",
        "prefix_hash": None,
        "events": [],
        "active_queries": 0,
        "edited_queries": 0,
        "seconds": 1.0,
        "median_query_ms": 10.0,
    }
    return row | facts


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


def twin(arm: str, unit: int, bad: bool, *, tau: int | None = 40, touches: tuple[int, ...] = (), **facts: Any) -> Any:
    """A unit whose detector fires at control step `tau`, and whose events begin at the steps `touches`; 10 per task."""
    return episode(
        arm,
        unit // 10,
        unit % 10,
        success=not bad,
        triggered=tau is not None,
        trigger_step=tau,
        prefix_hash=None if tau is None else f"same-{unit}",
        start="reset" if arm == "none" else "fork",
        events=[{"start_step": step, "peak_force": 5.0} for step in touches],
        **facts,
    )
