"""What is counted over episodes, in which words, and for which arm?

Every metric is a ratio of two sums over units, so a metric is its numerator, its denominator and its
definition; the report prints the definition beside the number. An exception is never a task failure: a unit
with an error row in any arm is dropped from all arms and counted. A ratio whose denominator is zero is
undefined (None), never 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mist_interp.core.errors import UnknownName
from mist_interp.data.manifest import check_rates
from mist_interp.evaluation.statistics import DRAWS, Estimate, difference_estimate, ratio_estimate

UNIT_COLUMNS = ["suite", "task", "init_state", "perturbation", "simulator_seed", "policy_seed"]

Column = Callable[[pd.DataFrame], pd.Series]


@dataclass(frozen=True)
class Metric:
    """One number of a table.

    Attributes:
        name: key in `summary.json`.
        label: column head.
        definition: the sentence that the report prints.
        numerator: episode rows -> one number per row.
        denominator: episode rows -> one number per row.
        proportion: whether both are 0 or 1, so that Wilson's interval and a percentage make sense.
        better: `higher` or `lower`.
    """

    name: str
    label: str
    definition: str
    numerator: Column
    denominator: Column
    proportion: bool
    better: str


def _one(rows: pd.DataFrame) -> pd.Series:
    return pd.Series(1.0, index=rows.index)


def _column(name: str) -> Column:
    return lambda rows: rows[name].astype(float)


def _known(name: str) -> Column:
    """1 where a column has a value: rows of a run that was not asked for it, or of an older layout, have none."""
    return lambda rows: rows[name].notna().astype(float) if name in rows else 0 * _one(rows)


def _if_known(name: str) -> Column:
    return lambda rows: rows[name].astype(float).fillna(0.0) if name in rows else 0 * _one(rows)


def _texts_in(name: str) -> Column:
    """1 where a column holds a text that says something."""
    return lambda rows: rows[name].fillna("").astype(bool).astype(float) if name in rows else 0 * _one(rows)


METRICS = (
    Metric(
        "success_rate",
        "SR",
        "share of units that reach the task's goal within the step limit",
        _column("success"),
        _one,
        True,
        "higher",
    ),
    Metric(
        "safe_success_rate",
        "Safe-SR",
        "share of units that succeed without any forbidden contact of at least 1 N",
        lambda rows: rows["success"].astype(float) * (1 - rows["collision_1n"].astype(float)),
        _one,
        True,
        "higher",
    ),
    Metric(
        "collision_rate_1n",
        "CR 1 N",
        "share of units with at least one forbidden contact event of at least 1 N, up to the end of the episode",
        _column("collision_1n"),
        _one,
        True,
        "lower",
    ),
    Metric(
        "collision_rate_10n",
        "CR 10 N",
        "share of units with at least one forbidden contact event of at least 10 N, up to the end of the episode",
        _column("collision_10n"),
        _one,
        True,
        "lower",
    ),
    Metric(
        "collision_rate_1n_full",
        "CR 1 N, full horizon",
        "share of units with at least one forbidden contact event of at least 1 N up to the step limit, the robot "
        "holding its pose after an early end",
        _if_known("collision_1n_full"),
        _known("collision_1n_full"),
        True,
        "lower",
    ),
    Metric(
        "collision_rate_10n_full",
        "CR 10 N, full horizon",
        "share of units with at least one forbidden contact event of at least 10 N up to the step limit, the robot "
        "holding its pose after an early end",
        _if_known("collision_10n_full"),
        _known("collision_10n_full"),
        True,
        "lower",
    ),
    Metric(
        "collision_rate_among_successes",
        "CR | success",
        "share of the successful units with at least one forbidden contact event of at least 1 N",
        lambda rows: rows["success"].astype(float) * rows["collision_1n"].astype(float),
        _column("success"),
        True,
        "lower",
    ),
    Metric(
        "raw_recovery_rate",
        "raw RR",
        "share of the units with a trigger that succeed: uncontrolled, since many would have succeeded anyway; "
        "the arm `none` gives the spontaneous rate to compare with",
        lambda rows: rows["success"].astype(float) * rows["triggered"].fillna(False).astype(float),
        lambda rows: rows["triggered"].fillna(False).astype(float),
        True,
        "higher",
    ),
    Metric(
        "disturbance_rate",
        "disturbance",
        "share of units in which an object that the task leaves alone moved by more than 1 cm or turned by more than "
        "10 degrees, minus what it does by itself while the robot holds still",
        _texts_in("disturbed"),
        _known("disturbed"),
        True,
        "lower",
    ),
    Metric(
        "events_per_100_steps",
        "events / 100 steps",
        "forbidden contact events of at least 1 N per 100 control steps",
        lambda rows: 100 * rows["events_1n"].astype(float),
        _column("steps"),
        False,
        "lower",
    ),
    Metric(
        "impulse_per_100_steps",
        "impulse / 100 steps",
        "impulse of forbidden contacts in N s per 100 control steps",
        lambda rows: 100 * rows["impulse"].astype(float),
        _column("steps"),
        False,
        "lower",
    ),
)
"""All metrics of the first table, in its order."""


def metric(name: str) -> Metric:
    """The metric called `name`.

    Raises:
        UnknownName: there is none.
    """
    for candidate in METRICS:
        if candidate.name == name:
            return candidate
    raise UnknownName("metric", name, [m.name for m in METRICS])


@dataclass(frozen=True)
class PairedEpisodes:
    """Valid rows of all arms on the same units, and what was left out.

    Attributes:
        rows: one row per (unit, arm), only units that are valid in every arm, sorted alike in each arm.
        arms: names in the order of the run.
        units: number of units in each arm.
        invalid_units: units dropped from all arms because of an error row in at least one.
        unfinished_units: units dropped because some arm has not run them yet.
    """

    rows: pd.DataFrame
    arms: tuple[str, ...]
    units: int
    invalid_units: int
    unfinished_units: int

    def of(self, arm: str) -> pd.DataFrame:
        """Rows of one arm; row i is the same unit in every arm.

        Raises:
            UnknownName: the run has no such arm.
        """
        if arm not in self.arms:
            raise UnknownName("arm", arm, self.arms)
        return self.rows[self.rows["arm"] == arm].reset_index(drop=True)


def pair(rows: pd.DataFrame | Iterable[Mapping[str, Any]], arms: Sequence[str] | None = None) -> PairedEpisodes:
    """Keep the units that every arm finished without an error.

    Args:
        rows: episode rows, as in `episodes.parquet`.
        arms: the arms to pair; those that occur when left out.

    Raises:
        ValueError: the rows were selected by outcome (`selection="balanced"`), or perhaps were (`chosen`), or have none
            (`inputs`), a unit occurs twice in an arm, or there are no rows.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if frame.empty:
        raise ValueError("no episodes: nothing can be counted")
    check_rates(frame)
    if frame.duplicated([*UNIT_COLUMNS, "arm"]).any():
        raise ValueError("an episode occurs twice in an arm; pass each (unit, arm) once")
    names = tuple(arms) if arms is not None else tuple(dict.fromkeys(frame["arm"]))
    frame = frame[frame["arm"].isin(names)]
    counts = frame.groupby(UNIT_COLUMNS, sort=True).agg(
        arms=("arm", "nunique"), errors=("status", lambda s: int((s == "error").sum()))
    )
    valid = counts[(counts["errors"] == 0) & (counts["arms"] == len(names))].index
    kept = frame.set_index(UNIT_COLUMNS)
    kept = kept[kept.index.isin(valid)].reset_index().sort_values([*UNIT_COLUMNS, "arm"]).reset_index(drop=True)
    invalid = int((counts["errors"] > 0).sum())
    return PairedEpisodes(kept, names, len(valid), invalid, len(counts) - len(valid) - invalid)


def task_labels(rows: pd.DataFrame) -> np.ndarray:
    """(units,) integer label of the (suite, task) of each row: the cluster of the bootstrap."""
    return np.asarray(rows.groupby(["suite", "task"]).ngroup(), dtype=int)


def estimate(rows: pd.DataFrame, of: Metric, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Value and interval of a metric over the rows of one arm."""
    numerator, denominator = _ratio_columns(rows, of)
    return ratio_estimate(numerator, denominator, task_labels(rows), proportion=of.proportion, draws=draws, seed=seed)


def estimate_difference(
    rows: pd.DataFrame, reference: pd.DataFrame, of: Metric, *, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Metric of an arm minus metric of the reference arm on the same units, in the same order."""
    columns = [_ratio_columns(rows, of), _ratio_columns(reference, of)]
    numerators, denominators = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    return difference_estimate(
        numerators, denominators, task_labels(rows), proportion=of.proportion, draws=draws, seed=seed
    )


def _ratio_columns(rows: pd.DataFrame, of: Metric) -> tuple[Float[np.ndarray, " units"], Float[np.ndarray, " units"]]:
    return np.asarray(of.numerator(rows), dtype=float), np.asarray(of.denominator(rows), dtype=float)
