"""How sure is a number, and do two arms differ?

Intervals: Wilson's score interval for a share without spread or with few tasks, else a bootstrap over tasks and
then over the units inside a task, with all arms of a unit kept together. Every statistic here is a function of
column sums over units (a share is sum(y) / sum(1)), so one resampling serves them all. Where the resamples do not
differ (no event at all, one unit only) there is no interval: it would claim certainty. Arms are compared by the
exact McNemar test on discordant pairs, with Holm's correction over all comparisons of an outcome.

Sources: Wilson 1927; Efron 1987 (BCa); Newcombe 1998, method 10 (paired difference); Holm 1979; Connor 1987
(power of McNemar).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
DRAWS = 10_000
MIN_TASKS_FOR_BOOTSTRAP = 5
MIN_TASKS_FOR_BCA = 10

Statistic = Callable[[Float[np.ndarray, "... columns"]], Float[np.ndarray, "..."]]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; all None when the number is undefined.

    Attributes:
        value: the estimate, None when nothing was at stake (e.g. a recovery rate without a trigger).
        low: lower end of the interval, None where the data do not tell.
        high: upper end of the interval, None likewise.
        n: how many units the number rests on.
        method: how the interval was made, or why there is none.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str

    def as_row(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return asdict(self)


UNDEFINED = Estimate(None, None, None, 0, "undefined")
NO_SPREAD = "no interval: all resamples agree, which says nothing of how far off the number is"


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share; (0, 1) when n is 0.

    Raises:
        ValueError: not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return float(low), float(high)


def paired_difference_interval(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """Newcombe's interval (method 10) of p_a - p_b for paired yes/no outcomes, from the four cells of their table."""
    n = both + only_a + only_b + neither
    if n == 0:
        return -1.0, 1.0
    a, b = (both + only_a) / n, (both + only_b) / n
    (low_a, high_a), (low_b, high_b) = wilson(both + only_a, n), wilson(both + only_b, n)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    excess = float(both * neither - only_a * only_b)
    # Newcombe's continuity correction of a positive correlation.
    excess = max(excess - n / 2, 0.0) if excess > 0 else excess
    correlation = excess / np.sqrt(margins) if margins else 0.0
    below = (a - low_a) ** 2 - 2 * correlation * (a - low_a) * (high_b - b) + (high_b - b) ** 2
    above = (high_a - a) ** 2 - 2 * correlation * (high_a - a) * (b - low_b) + (b - low_b) ** 2
    return float(a - b - np.sqrt(max(below, 0.0))), float(a - b + np.sqrt(max(above, 0.0)))


def resampled_sums(
    columns: Float[np.ndarray, "units columns"],
    tasks: Int[np.ndarray, " units"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    resample_tasks: bool = True,
) -> Float[np.ndarray, "draws columns"]:
    """Column sums of `draws` resamples: tasks with replacement, then units with replacement inside each drawn task.

    With `resample_tasks=False` every task is kept and only its units are redrawn.
    """
    return _times_drawn(tuple(tasks.tolist()), draws, seed, resample_tasks) @ columns


@lru_cache(maxsize=8)
def _times_drawn(tasks: tuple[int, ...], draws: int, seed: int, resample_tasks: bool) -> Int[np.ndarray, "draws units"]:
    """How often each resample holds each unit. Kept, since most numbers of a summary are of the same units."""
    rng = np.random.default_rng(seed)
    names, group_of = np.unique(tasks, return_inverse=True)
    drawn = rng.integers(len(names), size=(draws, len(names)))
    if not resample_tasks:
        drawn = np.broadcast_to(np.arange(len(names)), drawn.shape)
    times_drawn = np.zeros((draws, len(tasks)), dtype=np.int16)
    for index in range(len(names)):
        units = np.flatnonzero(group_of == index)
        times = (drawn == index).sum(axis=1)
        for repeat in range(int(times.max(initial=0))):
            rows = np.flatnonzero(times > repeat)
            picks = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), size=len(rows))
            times_drawn[np.ix_(rows, units)] += picks
    return times_drawn


def bootstrap_interval(
    columns: Float[np.ndarray, "units columns"],
    tasks: Int[np.ndarray, " units"],
    statistic: Statistic,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float, str]:
    """Interval of `statistic(column sums)` and the name of the method.

    Percentile; bias-corrected and accelerated (BCa, acceleration from leaving one task out) with >= 10 tasks;
    over units only with < 5 tasks. Draws in which the statistic is undefined (NaN) are left out.
    """
    names = np.unique(tasks)
    over_tasks = len(names) >= MIN_TASKS_FOR_BOOTSTRAP
    values = statistic(resampled_sums(columns, tasks, draws=draws, seed=seed, resample_tasks=over_tasks))
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan"), "undefined"
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    method = "bootstrap over tasks and units" if over_tasks else "bootstrap over units (fewer than 5 tasks)"
    if len(names) >= MIN_TASKS_FOR_BCA:
        total = columns.sum(axis=0)
        left_out = np.array([statistic(total - columns[tasks == name].sum(axis=0)) for name in names], dtype=float)
        corrected = _bca_tails(values, float(statistic(total)), left_out, tails)
        if corrected is not None:
            tails, method = corrected, f"BCa {method}"
    low, high = np.quantile(values, tails)
    return float(low), float(high), method


def _bca_tails(
    values: Float[np.ndarray, " draws"],
    estimate: float,
    left_out: Float[np.ndarray, " tasks"],
    tails: Float[np.ndarray, "2"],
) -> Float[np.ndarray, "2"] | None:
    """Tail levels after Efron's correction; None where it is not defined (no spread)."""
    below = ((values < estimate).sum() + 0.5 * (values == estimate).sum()) / len(values)
    deviations = np.nanmean(left_out) - left_out[np.isfinite(left_out)]
    scale = (deviations**2).sum() ** 1.5
    if not 0 < below < 1 or scale == 0:
        return None
    bias, acceleration = norm.ppf(below), (deviations**3).sum() / (6 * scale)
    shifted = bias + norm.ppf(tails)
    return np.asarray(norm.cdf(bias + shifted / (1 - acceleration * shifted)))


def ratio_estimate(
    numerator: Float[np.ndarray, " units"],
    denominator: Float[np.ndarray, " units"],
    tasks: Int[np.ndarray, " units"],
    *,
    proportion: bool,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """sum(numerator) / sum(denominator) with the interval that definitions of this package prescribe.

    Args:
        numerator: per unit; 0 or 1 for a proportion.
        denominator: per unit; 0 or 1 for a proportion (is the unit in the denominator?).
        tasks: task of each unit.
        proportion: Wilson with fewer than 5 tasks or at 0/n and n/n, where a bootstrap has no spread.
        draws: bootstrap draws.
        seed: seed of the bootstrap.
    """
    total = float(denominator.sum())
    if total == 0:
        return UNDEFINED
    # Units outside the denominator say nothing of the ratio; their tasks must not count as tasks that do.
    inside = denominator > 0
    numerator, denominator, tasks = numerator[inside], denominator[inside], tasks[inside]
    hits, n = float(numerator.sum()), len(tasks)
    if proportion and (hits in (0.0, total) or len(np.unique(tasks)) < MIN_TASKS_FOR_BOOTSTRAP):
        low, high = wilson(round(hits), n)
        return Estimate(hits / total, low, high, n, "Wilson")
    columns = np.stack([numerator, denominator], axis=1).astype(float)
    return _with_interval(hits / total, columns, tasks, _ratio, draws, seed)


def difference_estimate(
    numerators: Float[np.ndarray, "units 2"],
    denominators: Float[np.ndarray, "units 2"],
    tasks: Int[np.ndarray, " units"],
    *,
    proportion: bool,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Ratio of arm 0 minus ratio of arm 1 on the same units (columns 0 and 1), units kept together."""
    totals = denominators.sum(axis=0)
    if not totals.all():
        return UNDEFINED
    inside = denominators.any(axis=1)
    numerators, denominators, tasks = numerators[inside], denominators[inside], tasks[inside]
    value = float(numerators[:, 0].sum() / totals[0] - numerators[:, 1].sum() / totals[1])
    always_counted = bool((denominators == 1).all())
    spread = bool(np.ptp(numerators[:, 0] - numerators[:, 1]) > 0)
    if proportion and always_counted and (not spread or len(np.unique(tasks)) < MIN_TASKS_FOR_BOOTSTRAP):
        a, b = numerators.astype(bool).T
        low, high = paired_difference_interval(
            int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())
        )
        return Estimate(value, low, high, len(tasks), "Newcombe, paired")
    columns = np.concatenate([numerators, denominators], axis=1).astype(float)
    return _with_interval(value, columns, tasks, _ratio_difference, draws, seed)


def _with_interval(
    value: float,
    columns: Float[np.ndarray, "units columns"],
    tasks: Int[np.ndarray, " units"],
    statistic: Statistic,
    draws: int,
    seed: int,
) -> Estimate:
    low, high, method = bootstrap_interval(columns, tasks, statistic, draws=draws, seed=seed)
    if not low < high:
        return Estimate(value, None, None, len(tasks), NO_SPREAD)
    return Estimate(value, low, high, len(tasks), method)


def _ratio(sums: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "..."]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _ratio_difference(sums: Float[np.ndarray, "... 4"]) -> Float[np.ndarray, "..."]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 2] - sums[..., 1] / sums[..., 3])


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value that `only_a` and `only_b` discordant pairs are equally likely; 1 without any."""
    if only_a + only_b == 0:
        return 1.0
    return float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the given order."""
    # statsmodels has this too, but its call collects all garbage first: 0.3 s each beside a loaded policy.
    given = np.asarray(p_values, dtype=float)
    order = np.argsort(given, kind="stable")
    stepped = given[order] * np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(p) for p in adjusted]


def smallest_detectable_difference(n: int, discordant: int, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest |p_a - p_b| that McNemar's test finds with the given power on n pairs; None when no difference is found.

    Uses Connor's approximation with the observed share of discordant pairs, taken no lower than the upper
    Wilson end when there is none. A difference cannot exceed the share of discordant pairs.
    """
    if n == 0:
        return None
    share = discordant / n if discordant else wilson(0, n)[1]
    z_alpha, z_power = norm.ppf(1 - alpha / 2), norm.ppf(power)

    def missing_pairs(difference: float) -> float:
        needed = (z_alpha * np.sqrt(share) + z_power * np.sqrt(max(share - difference**2, 0.0))) ** 2
        return float(needed / difference**2 - n)

    if missing_pairs(share) > 0:
        return None
    return float(optimize.brentq(missing_pairs, 1e-9, share))
