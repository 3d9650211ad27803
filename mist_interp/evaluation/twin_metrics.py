"""Did an arm turn bad outcomes into good ones, or the reverse? Each unit is compared with its own twin under `none`.

Of a unit, T says whether the detector fired under `none` (at query tau), and B whether the outcome is bad: a *failure*,
or a forbidden *event* of at least 1 N after tau. Then

    causal RR     #{T, B under none, not B under the arm} / #{T, B under none}
    harm rate     #{T, not B under none, B under the arm} / #{T, not B under none}
    net benefit   mean of B(none) - B(arm), over the units with T, and over all units (intention to treat)

A rate over no unit is undefined (None), never 0 or 1. Arms are tested on these twins by McNemar's exact test: against
`none` on what they rescued and what they spoilt, against a placebo on the units that `none` loses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from mist_interp.evaluation.horizon import LOW_FORCE
from mist_interp.evaluation.metrics import PairedEpisodes, estimate, metric, task_labels
from mist_interp.evaluation.statistics import (
    DRAWS,
    Estimate,
    difference_estimate,
    holm,
    mcnemar_p,
    ratio_estimate,
    smallest_detectable_difference,
)
from mist_interp.evaluation.twins import FORK, REPLAY

Flags = Bool[np.ndarray, " units"]
PAIRS = ("forked", "matched", "untriggered", "lost")


def _failed(rows: pd.DataFrame, since: Float[np.ndarray, " units"]) -> Flags:
    return np.asarray(~rows["success"].astype(bool))


def _touched(rows: pd.DataFrame, since: Float[np.ndarray, " units"]) -> Flags:
    """Whether an event begins at or after control step `since`; anywhere in a unit without a trigger (NaN)."""
    begins = np.nan_to_num(since, nan=0.0)
    return np.array(
        [
            any(event["peak_force"] >= LOW_FORCE and event["start_step"] >= begin for event in _events(value))
            for value, begin in zip(rows["events"], begins, strict=True)
        ],
        dtype=bool,
    )


def _events(value: Any) -> list[dict[str, Any]]:
    return json.loads(value) if isinstance(value, str) else list(value)


@dataclass(frozen=True)
class Outcome:
    """What counts as bad: its name, the words for it, the columns it needs, and the count."""

    name: str
    definition: str
    columns: tuple[str, ...]
    bad: Callable[[pd.DataFrame, Float[np.ndarray, " units"]], Flags]


OUTCOMES = (
    Outcome("failure", "bad is a failure: the goal is not reached within the step limit", ("success",), _failed),
    Outcome(
        "event",
        "bad is a forbidden contact event of at least 1 N that begins after the trigger of none; in units without a "
        "trigger, anywhere in the episode",
        ("events", "trigger_step"),
        _touched,
    ),
)


@dataclass(frozen=True)
class Twins:
    """One arm beside the reference, unit by unit.

    Attributes:
        triggered: whether the detector fired under the reference.
        bad_reference: whether the outcome is bad under the reference.
        bad_arm: whether it is under the arm.
        tasks: integer label of each unit's task.
    """

    triggered: Flags
    bad_reference: Flags
    bad_arm: Flags
    tasks: Int[np.ndarray, " units"]


def twins_of(rows: pd.DataFrame, reference: pd.DataFrame, outcome: Outcome) -> Twins:
    """The twins of an arm.

    Args:
        rows: rows of the arm.
        reference: rows of the reference on the same units, in the same order.
        outcome: what counts as bad.
    """
    since = _numbers(reference, "trigger_step")
    return Twins(
        triggered=_triggered(reference),
        bad_reference=outcome.bad(reference, since),
        bad_arm=outcome.bad(rows, since),
        tasks=task_labels(rows),
    )


def causal_recovery(twins: Twins, *, draws: int = DRAWS) -> Estimate:
    """Share of the triggered units lost under the reference that the arm saves; undefined without such a unit."""
    lost = twins.triggered & twins.bad_reference
    return _share(lost & ~twins.bad_arm, lost, twins, draws)


def harm_rate(twins: Twins, *, draws: int = DRAWS) -> Estimate:
    """Share of the triggered units that go well under the reference and that the arm spoils."""
    well = twins.triggered & ~twins.bad_reference
    return _share(well & twins.bad_arm, well, twins, draws)


def net_benefit(twins: Twins, *, draws: int = DRAWS) -> Estimate:
    """Mean of B(reference) - B(arm) over the triggered units: above 0 is good."""
    return _difference(twins.bad_reference, twins.bad_arm, twins.triggered, twins, draws)


def net_benefit_of_all(twins: Twins, *, draws: int = DRAWS) -> Estimate:
    """The same over all units, triggered or not: intention to treat."""
    return _difference(twins.bad_reference, twins.bad_arm, np.ones_like(twins.triggered), twins, draws)


TWIN_METRICS: dict[str, tuple[str, str, Callable[..., Estimate]]] = {
    "causal_recovery": (
        "causal RR",
        "of the units with a trigger that are bad under none, the share that is not bad under the arm",
        causal_recovery,
    ),
    "harm_rate": (
        "harm rate",
        "of the units with a trigger that are not bad under none, the share that is bad under the arm",
        harm_rate,
    ),
    "net_benefit": (
        "net benefit",
        "share of the units with a trigger that is bad under none minus the share that is bad under the arm",
        net_benefit,
    ),
    "net_benefit_all": (
        "net benefit, all units",
        "the same over all units, with or without a trigger (intention to treat)",
        net_benefit_of_all,
    ),
}
"""Name -> (column head, definition, function)."""


def false_trigger_rate(reference: pd.DataFrame, *, draws: int = DRAWS) -> Estimate:
    """Share of the safe units (success, no forbidden contact of 1 N under the reference) in which the detector fires.

    A conformal gate promises it for units that are exchangeable with its calibration; this is what it was.
    """
    safe = ~_failed(reference, _numbers(reference, "trigger_step"))
    if "collision_1n" in reference:
        safe &= ~reference["collision_1n"].astype(bool).to_numpy()
    fired = (_triggered(reference) & safe).astype(float)
    return ratio_estimate(fired, safe.astype(float), task_labels(reference), proportion=True, draws=draws)


def pair_kinds(rows: pd.DataFrame, reference: pd.DataFrame) -> np.ndarray:
    """(units,) one of `PAIRS`: how far an arm's episode is the twin of the reference's.

    `forked`: it began at the reference's trigger. `matched`: it was run from the start and is equal, state by state and
    action by action, until there. `untriggered`: the reference has no trigger. `lost`: unequal before the trigger, or
    not known to be equal.
    """
    mine, other = (_texts(part, "prefix_hash") for part in (rows, reference))
    equal = (mine == other) & (other != "")
    forked = np.isin(_texts(rows, "start"), (FORK, REPLAY))
    kinds = np.where(equal, np.where(forked, "forked", "matched"), "lost")
    return np.where(_triggered(reference), kinds, "untriggered")


def summarize_twins(
    paired: PairedEpisodes, reference: str, placebos: Sequence[str] = (), *, draws: int = DRAWS
) -> dict[str, Any]:
    """Everything that is known of the arms from their twins, as JSON; `arms` is empty without a detector.

    Args:
        paired: rows of all arms.
        reference: the arm that does nothing.
        placebos: arms that the others have to beat.
        draws: bootstrap draws.
    """
    others = [arm for arm in paired.arms if arm != reference]
    base = paired.of(reference)
    outcomes = [o for o in OUTCOMES if all(column in paired.rows for column in o.columns)]
    spontaneous = estimate(base, metric("raw_recovery_rate"), draws=draws)
    summary: dict[str, Any] = {
        "reference": reference,
        "outcomes": {outcome.name: outcome.definition for outcome in outcomes},
        "labels": {name: label for name, (label, _, _) in TWIN_METRICS.items()},
        "definitions": {name: text for name, (_, text, _) in TWIN_METRICS.items()},
        "triggered": int(_triggered(base).sum()),
        "spontaneous_recovery_rate": spontaneous.as_row(),
        "false_trigger_rate": false_trigger_rate(base, draws=draws).as_row(),
        "arms": {},
        "comparisons": [],
    }
    if "triggered" not in base or base["triggered"].isna().all():
        return summary
    twins = {(arm, o.name): twins_of(paired.of(arm), base, o) for arm in others for o in outcomes}
    for arm in others:
        kinds = pair_kinds(paired.of(arm), base)
        summary["arms"][arm] = {
            "pairs": {kind: int((kinds == kind).sum()) for kind in PAIRS},
            **{o.name: _numbers_of(twins[arm, o.name], draws) for o in outcomes},
        }
    for outcome in outcomes:
        here = {arm: twins[arm, outcome.name] for arm in others}
        tested = [_against_reference(here[arm], draws) | {"arm": arm, "reference": reference} for arm in others]
        tested += [
            _against_placebo(here[arm], here[placebo], draws) | {"arm": arm, "reference": placebo}
            for placebo in placebos
            for arm in others
            if arm not in placebos
        ]
        for row, adjusted in zip(tested, holm([row["p_mcnemar"] for row in tested]), strict=True):
            summary["comparisons"].append(row | {"outcome": outcome.name, "p_holm": adjusted})
    return summary


def _numbers_of(twins: Twins, draws: int) -> dict[str, Any]:
    lost, well = twins.triggered & twins.bad_reference, twins.triggered & ~twins.bad_reference
    counts = {
        "bad_under_reference": int(lost.sum()),
        "recovered": int((lost & ~twins.bad_arm).sum()),
        "good_under_reference": int(well.sum()),
        "harmed": int((well & twins.bad_arm).sum()),
    }
    return counts | {name: of(twins, draws=draws).as_row() for name, (_, _, of) in TWIN_METRICS.items()}


def _against_reference(twins: Twins, draws: int) -> dict[str, Any]:
    inside = twins.triggered
    better, worse = inside & twins.bad_reference & ~twins.bad_arm, inside & ~twins.bad_reference & twins.bad_arm
    return {"of": "net_benefit", **_test(better, worse, inside), "difference": net_benefit(twins, draws=draws).as_row()}


def _against_placebo(twins: Twins, placebo: Twins, draws: int) -> dict[str, Any]:
    """Difference of two causal RR: both arms have the same units to save."""
    inside = twins.triggered & twins.bad_reference
    better, worse = inside & ~twins.bad_arm & placebo.bad_arm, inside & twins.bad_arm & ~placebo.bad_arm
    difference = _difference(~twins.bad_arm, ~placebo.bad_arm, inside, twins, draws)
    return {"of": "causal_recovery", **_test(better, worse, inside), "difference": difference.as_row()}


def _test(better: Flags, worse: Flags, inside: Flags) -> dict[str, Any]:
    better_here, better_there, units = int(better.sum()), int(worse.sum()), int(inside.sum())
    return {
        "units": units,
        "better_here": better_here,
        "better_there": better_there,
        "p_mcnemar": mcnemar_p(better_here, better_there),
        "smallest_detectable": smallest_detectable_difference(units, better_here + better_there),
    }


def _share(hits: Flags, of: Flags, twins: Twins, draws: int) -> Estimate:
    return ratio_estimate(hits.astype(float), of.astype(float), twins.tasks, proportion=True, draws=draws)


def _difference(a: Flags, b: Flags, inside: Flags, twins: Twins, draws: int) -> Estimate:
    values = np.stack([a[inside], b[inside]], axis=1).astype(float)
    return difference_estimate(values, np.ones_like(values), twins.tasks[inside], proportion=True, draws=draws)


def _triggered(rows: pd.DataFrame) -> Flags:
    if "triggered" not in rows:
        return np.zeros(len(rows), dtype=bool)
    return np.array([value is not None and value == value and bool(value) for value in rows["triggered"]], dtype=bool)


def _numbers(rows: pd.DataFrame, name: str) -> Float[np.ndarray, " units"]:
    """A column as floats, NaN where it is missing."""
    if name not in rows:
        return np.full(len(rows), np.nan)
    return np.asarray(rows[name].astype(float))


def _texts(rows: pd.DataFrame, name: str) -> np.ndarray:
    """A column as texts, empty where it is missing."""
    values = rows[name] if name in rows else [None] * len(rows)
    return np.array([value if isinstance(value, str) else "" for value in values], dtype=object)
