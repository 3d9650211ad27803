"""What does a run say, as one JSON object that anyone can recompute from the episode rows?

Per arm all metrics with intervals, and what its twins under `none` say (`twin_metrics`); for every arm against the
reference arm and against each placebo the paired
differences, the exact McNemar test with Holm's correction over all these comparisons of an outcome, and the smallest
difference that this many units could have shown; per task and arm the counts. A run that is not finished, has no
unit to compare, or had another step limit than the suite's, is marked `partial` and says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mist_interp.data.perturbation import NONE
from mist_interp.evaluation.foreseen import DEFINITION, risk_auc
from mist_interp.evaluation.metrics import METRICS, PairedEpisodes, estimate, estimate_difference, metric, pair
from mist_interp.evaluation.plan import REFERENCE_ARM
from mist_interp.evaluation.statistics import (
    DRAWS,
    holm,
    mcnemar_p,
    smallest_detectable_difference,
    wilson,
)
from mist_interp.evaluation.twin_metrics import summarize_twins

TESTED_METRICS = ("success_rate", "collision_rate_1n")
CO_POLICY_SHARE = 0.3


def summarize(
    rows: pd.DataFrame,
    arms: Sequence[str],
    *,
    planned: int | None = None,
    partial: Sequence[str] = (),
    warnings: Sequence[str] = (),
    placebos: Sequence[str] = (),
    reference: str = REFERENCE_ARM,
    published: float | None = None,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Summary of the episode rows of a run.

    Args:
        rows: one row per finished episode, errors included.
        arms: arms of the run in their order.
        planned: episodes in the plan; the run is partial while fewer have finished.
        partial: further reasons why the numbers are not a result.
        warnings: what a reader must know beside; passed on.
        placebos: arms that the others have to beat, beside the reference arm.
        reference: the arm that does nothing.
        published: success rate that the checkpoint is published with, see `caveats.published_rate`.
        draws: bootstrap draws.
    """
    reasons = list(partial)
    if planned is not None and len(rows) < planned:
        reasons.append(f"{len(rows)} of {planned} planned episodes have run")
    paired = pair(rows, arms) if len(rows) else None
    errors = int((rows["status"] == "error").sum()) if len(rows) else 0
    if paired is not None and not paired.units:
        crashed = f": {errors} of {len(rows)} episodes crashed" if errors else ""
        reasons.append(f"no unit is valid in every arm{crashed}")
    summary: dict[str, Any] = {
        "partial": bool(reasons),
        "partial_reasons": reasons,
        "warnings": list(warnings),
        "placebos": list(placebos),
        "episodes": {
            "planned": planned if planned is not None else len(rows),
            "finished": len(rows),
            "errors": errors,
        },
        "units": {
            "compared": paired.units if paired else 0,
            "dropped_for_errors": paired.invalid_units if paired else 0,
            "not_finished_in_all_arms": paired.unfinished_units if paired else 0,
        },
        "definitions": {m.name: m.definition for m in METRICS},
        "labels": {m.name: m.label for m in METRICS},
        "risk_auc": None,
        "arms": {},
        "comparisons": [],
        "twins": None,
        "parity": None,
        "tasks": [],
    }
    if paired is None or not paired.units:
        return summary
    summary["arms"] = {arm: _arm(paired, arm, draws) for arm in paired.arms}
    summary["comparisons"] = _comparisons(paired, reference, placebos, draws)
    summary["risk_auc"] = _risk_auc(paired, draws)
    if reference in paired.arms:
        summary["twins"] = summarize_twins(paired, reference, placebos, draws=draws)
        summary["parity"] = None if published is None else _parity(paired.of(reference), published, draws)
    summary["tasks"] = _tasks(paired)
    return summary


def _arm(paired: PairedEpisodes, arm: str, draws: int) -> dict[str, Any]:
    rows = paired.of(arm)
    queries = float(rows["queries"].sum())
    active, edited = float(rows["active_queries"].sum()), float(rows["edited_queries"].sum())
    collided = rows[rows["collision_1n"].astype(bool)]
    return {
        "metrics": {m.name: estimate(rows, m, draws=draws).as_row() for m in METRICS},
        "units": len(rows),
        "successes": int(rows["success"].sum()),
        "triggered": int(rows["triggered"].fillna(False).astype(bool).sum()),
        "active_query_share": active / queries if queries else None,
        # What an arm does counts, not when its detector fires: an edit may outlast the trigger. An arm that edits
        # nothing shows what a gate on this detector would do.
        "co_policy": bool(queries and (edited or active) / queries > CO_POLICY_SHARE),
        "edited_query_share": edited / queries if queries else None,
        "collided": len(collided),
        "median_first_event_step": float(collided["first_event_step"].median()) if len(collided) else None,
        "median_seconds_per_episode": float(rows["seconds"].median()),
        "median_query_ms": float(rows["median_query_ms"].median()),
    }


def _risk_auc(paired: PairedEpisodes, draws: int) -> dict[str, Any] | None:
    """How well each arm's risks came true, by dimension; None where no risk of a dimension was read."""
    found = {arm: risk_auc(paired, arm, draws=draws) for arm in paired.arms}
    return {"definition": DEFINITION, "arms": found} if any(found.values()) else None


def _parity(rows: pd.DataFrame, published: float, draws: int) -> dict[str, Any]:
    """Whether the published success rate lies in the interval of the undisturbed episodes without intervention."""
    rate = estimate(rows[rows["perturbation"] == NONE].reset_index(drop=True), metric("success_rate"), draws=draws)
    inside = None not in (rate.low, rate.high) and rate.low <= published <= rate.high  # type: ignore[operator]
    return {"published": published, "here": rate.as_row(), "reproduced": bool(inside)}


def _comparisons(paired: PairedEpisodes, reference: str, placebos: Sequence[str], draws: int) -> list[dict[str, Any]]:
    pairs = [(arm, reference) for arm in paired.arms if arm != reference and reference in paired.arms]
    claimants = [arm for arm in paired.arms if arm not in (reference, *placebos)]
    pairs += [(arm, placebo) for placebo in placebos for arm in claimants]
    comparisons = []
    for name in TESTED_METRICS:
        tested = [_comparison(paired, arm, against, name, draws) for arm, against in pairs]
        for row, adjusted in zip(tested, holm([row["p_mcnemar"] for row in tested]), strict=True):
            row["p_holm"] = adjusted
        comparisons += tested
    return comparisons


def _comparison(paired: PairedEpisodes, arm: str, reference: str, name: str, draws: int) -> dict[str, Any]:
    of, rows, base_rows = metric(name), paired.of(arm), paired.of(reference)
    outcome, base = (np.asarray(of.numerator(part), dtype=bool) for part in (rows, base_rows))
    only_arm, only_reference = int((outcome & ~base).sum()), int((base & ~outcome).sum())
    return {
        "arm": arm,
        "reference": reference,
        "metric": name,
        "difference": estimate_difference(rows, base_rows, of, draws=draws).as_row(),
        "only_arm": only_arm,
        "only_reference": only_reference,
        "p_mcnemar": mcnemar_p(only_arm, only_reference),
        "smallest_detectable": smallest_detectable_difference(len(base), only_arm + only_reference),
    }


def _tasks(paired: PairedEpisodes) -> list[dict[str, Any]]:
    table = []
    for (suite, task, arm), rows in paired.rows.groupby(["suite", "task", "arm"], sort=True):
        successes, collisions = int(rows["success"].sum()), int(rows["collision_1n"].sum())
        table.append(
            {
                "suite": suite,
                "task": int(task),
                "arm": arm,
                "instruction": str(rows["instruction"].iloc[0]),
                "units": len(rows),
                "successes": successes,
                "success_interval": list(wilson(successes, len(rows))),
                "collisions_1n": collisions,
            }
        )
    return table
