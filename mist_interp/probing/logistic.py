"""How are hundreds of logistic regressions on the same activations fitted in one go?

A probe with its shuffled controls, in all folds and for all outputs, is many columns of labels on one matrix. Every
column is a problem of its own, the one that scikit-learn's `LogisticRegression` solves:

    minimise over w, b    |w|^2 / 2  +  C sum_i v_i log(1 + exp(-s_i (z_i w + b)))

with z the rows in units of the rows that the column is fitted on, s = +-1 the labels and v the class weights. The
matrix is never copied: a block of it at a time is brought to units of all rows, which keeps the numbers small, and the
units of a column enter through its penalty alone (the intercept is free, so a shift changes nothing). A step of
L-BFGS is then two matrix products for all columns, in coordinates in which the bound of Böhning on the curvature,
1 + C n p (1 - p) X'X / n, is the identity; it depends on no label but the base rate and is factorised once.

Source: Böhning 1992, Ann. Inst. Statist. Math. 44 (bound); Liu and Nocedal 1989 (L-BFGS).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight

from mist_interp.data.records import Array

# Elements of a block of rows, and unknowns that are solved for together: both bound memory to some 50 MB.
_BLOCK = 2_000_000
_UNKNOWNS = 350_000
# A feature that varies by rounding only would be blown up to unit size.
_FLAT = 1e-9
# Largest slope, in preconditioned coordinates, at which a fit is done: some ten times closer to the minimum than
# scikit-learn goes by default.
_SLOPE = 5e-3
# From this slope on the reader is told that the fit was not finished.
_UNFINISHED = 0.3


@dataclass(frozen=True)
class Task:
    """One choice of rows and labels on which a read-out is fitted.

    Attributes:
        rows: (queries,) the rows to fit on; standardisation sees these and no others.
        labels: (queries, outputs) 1, 0 or NaN, which leaves a row out of that output.
    """

    rows: Bool[np.ndarray, " queries"]
    labels: Float[np.ndarray, "queries outputs"]


@dataclass(frozen=True)
class Moments:
    """Mean and scale of all rows and of the rows of each task.

    Attributes:
        mean: (width,) of all rows.
        scale: (width,) standard deviation, 1 where a feature does not vary.
        means: (tasks, width).
        scales: (tasks, width).
    """

    mean: Float[np.ndarray, " width"]
    scale: Float[np.ndarray, " width"]
    means: Float[np.ndarray, "tasks width"]
    scales: Float[np.ndarray, "tasks width"]


def is_plain(estimator: Any) -> bool:
    """Whether this is the logistic regression of the module docstring."""
    return type(estimator) is LogisticRegression and all(
        (
            estimator.solver == "lbfgs",
            estimator.penalty in ("deprecated", "l2"),
            not estimator.l1_ratio,
            estimator.fit_intercept,
            not estimator.warm_start,
            np.isfinite(estimator.C),
        )
    )


def moments(x: Float[Array, "rows width"], masks: Sequence[Bool[np.ndarray, " rows"]]) -> Moments:
    """Mean and standard deviation of all rows, and of the rows of each mask, reading the matrix twice.

    Raises:
        ValueError: rows that are not finite.
    """
    total = np.zeros(x.shape[1])
    for block in _blocks(x):
        total += x[block].sum(0, dtype=np.float64)
    if not np.isfinite(total).all():
        raise ValueError("some training rows are not finite")
    mean = total / len(x)
    members = np.stack([np.ones(len(x), dtype=bool), *masks]).astype(np.float64)
    first, second = np.zeros((len(members), x.shape[1])), np.zeros((len(members), x.shape[1]))
    for block in _blocks(x):
        centred = x[block].astype(np.float64) - mean
        first += members[:, block] @ centred
        np.square(centred, out=centred)
        second += members[:, block] @ centred
    counts = members.sum(1, keepdims=True)
    first, second = first / counts, second / counts
    variance = np.maximum(second - first**2, 0.0)
    scale = np.sqrt(variance)
    # Either it does not vary at all, or what is left is the rounding of the difference.
    flat = (scale <= _FLAT * np.maximum(1.0, np.abs(mean + first))) | (variance <= 1e-12 * second)
    scale[flat] = 1.0
    return Moments(mean, scale[0], mean + first[1:], scale[1:])


def fit_logistic(
    estimator: LogisticRegression, x: Float[Array, "rows width"], tasks: Sequence[Task], known: Moments
) -> list[list[LogisticRegression | None]]:
    """Fit every output of every task.

    Args:
        estimator: the settings.
        x: all rows.
        tasks: what to fit.
        known: moments of the rows and of the tasks.

    Returns:
        Per task, per output, a fitted classifier for rows standardised as the task's; None where its rows have one
        label only.
    """
    columns = [
        (number, output)
        for number, task in enumerate(tasks)
        for output in range(task.labels.shape[1])
        if len(np.unique(task.labels[task.rows, output][~np.isnan(task.labels[task.rows, output])])) == 2
    ]
    fitted: list[list[LogisticRegression | None]] = [[None] * task.labels.shape[1] for task in tasks]
    at_once = max(8, _UNKNOWNS // (x.shape[1] + 1))
    gram = _gram(x, known) if columns else None
    for start in range(0, len(columns), at_once):
        some = columns[start : start + at_once]
        y = np.full((len(x), len(some)), -1, dtype=np.int8)
        for place, (number, output) in enumerate(some):
            labels = np.where(tasks[number].rows, tasks[number].labels[:, output], np.nan)
            y[:, place] = np.where(np.isnan(labels), -1, labels).astype(np.int8)
        task_of = np.array([number for number, _ in some])
        coef, intercept, iterations = _solve(estimator, x, y, known, task_of, gram)
        for place, (number, output) in enumerate(some):
            fitted[number][output] = _fitted(estimator, coef[:, place], intercept[place], iterations)
    return fitted


def _solve(
    estimator: LogisticRegression,
    x: Float[Array, "rows width"],
    y: Int[np.ndarray, "rows columns"],
    known: Moments,
    task_of: Int[np.ndarray, " columns"],
    gram: Float[Array, "width width"] | None,
) -> tuple[Float[Array, "width columns"], Float[Array, " columns"], int]:
    """Coefficients and intercepts for rows standardised as the tasks' rows, and the number of iterations."""
    width, columns = x.shape[1], y.shape[1]
    units = (known.scales[task_of] / known.scale).T
    weights = np.stack([_class_weights(estimator, column) for column in y.T], axis=1)  # of label 0 and of label 1
    counts = np.stack([(y == 0).sum(0), (y == 1).sum(0)])
    mass = (weights * counts).sum(0)
    rate = weights[1] * counts[1] / mass
    curvature = estimator.C * mass * rate * (1 - rate)
    factor = _factor(gram, float(np.median(curvature)), width)
    steps = 1 / np.sqrt(curvature)  # of the intercepts
    precision = np.result_type(x.dtype, np.float32)
    weights = weights.astype(precision)

    def natural(flat: Float[Array, " unknowns"]) -> tuple[Float[Array, "width columns"], Float[Array, " columns"]]:
        v = flat.reshape(width + 1, columns)
        return _lower(factor, v[:-1], transposed=True), v[-1] * steps

    def loss(flat: Float[Array, " unknowns"]) -> tuple[float, Float[Array, " unknowns"]]:
        a, b = natural(flat)
        scaled = a * units
        value, slope_a, slope_b = 0.5 * float((scaled**2).sum()), scaled * units, np.zeros(columns)
        narrow, shift = a.astype(precision), b.astype(precision)
        for block in _blocks(x):
            rows = _standard(x[block], known, precision)
            positive = y[block] == 1
            v = np.where(positive, weights[1], weights[0]) * (y[block] >= 0)
            s = np.where(positive, precision.type(1), precision.type(-1))
            margin = s * (rows @ narrow + shift)
            tail = np.exp(-np.abs(margin))
            value += estimator.C * float((v * (np.log1p(tail) + np.maximum(-margin, 0))).sum(dtype=np.float64))
            residual = -s * v * np.where(margin >= 0, tail, 1) / (1 + tail)
            slope_a += estimator.C * (rows.T @ residual)
            slope_b += estimator.C * residual.sum(0, dtype=np.float64)
        return value, np.concatenate([_lower(factor, slope_a), (slope_b * steps)[None]]).ravel()

    start = np.zeros((width + 1, columns))
    start[-1] = np.log(rate / (1 - rate)) / steps
    options = {"maxiter": estimator.max_iter, "maxfun": 2 * estimator.max_iter, "gtol": _SLOPE, "ftol": 0.0}
    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    if np.abs(found.jac).max() > _UNFINISHED:
        text = f"logistic regressions stopped after {found.nit} steps at a slope of {np.abs(found.jac).max():.2g}"
        warnings.warn(f"{text}; raise max_iter={estimator.max_iter}", ConvergenceWarning, stacklevel=2)
    a, b = natural(found.x)
    return a * units, b + (((known.means - known.mean) / known.scale)[task_of] * a.T).sum(1), int(found.nit)


def _gram(x: Float[Array, "rows width"], known: Moments) -> Float[Array, "width width"]:
    """X'X / n of the standardised rows."""
    precision = np.result_type(x.dtype, np.float32)
    total = np.zeros((x.shape[1],) * 2, dtype=precision)
    for block in _blocks(x):
        rows = _standard(x[block], known, precision)
        total += rows.T @ rows
    total /= len(x)
    return total


def _factor(
    gram: Float[Array, "width width"] | None, curvature: float, width: int
) -> Float[Array, "width width"] | None:
    """Lower Cholesky factor of the curvature; None where rounding leaves none, and steps are then merely smaller."""
    if gram is None:
        return None
    bound = gram * gram.dtype.type(curvature)
    bound[np.diag_indices(width)] += 1
    try:
        factor: Array = cholesky(bound, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return None
    return factor


def _lower(
    factor: Float[Array, "width width"] | None, v: Float[Array, "width columns"], transposed: bool = False
) -> Any:
    if factor is None:
        return v
    trans = "T" if transposed else "N"
    solved = solve_triangular(factor, v.astype(factor.dtype), trans=trans, lower=True, check_finite=False)
    return solved.astype(np.float64)


def _standard(rows: Float[Array, "rows width"], known: Moments, precision: Any) -> Float[Array, "rows width"]:
    out = rows.astype(precision)
    out -= known.mean.astype(precision)
    out *= (1 / known.scale).astype(precision)
    return out


def _class_weights(estimator: LogisticRegression, y: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "2"]:
    given = estimator.class_weight
    if given is None:
        return np.ones(2)
    weights: Array = compute_class_weight(given, classes=np.array([0, 1]), y=y[y >= 0])
    return weights


def _fitted(estimator: LogisticRegression, coef: Array, intercept: float, iterations: int) -> LogisticRegression:
    one = LogisticRegression(**estimator.get_params())
    one.coef_, one.intercept_ = coef[None].copy(), np.array([intercept])
    one.classes_, one.n_features_in_ = np.array([0.0, 1.0]), len(coef)
    one.n_iter_ = np.array([iterations], dtype=np.int32)
    return one


def _blocks(x: Float[Array, "rows width"]) -> Iterator[slice]:
    size = max(64, _BLOCK // max(1, x.shape[1]))
    return (slice(start, start + size) for start in range(0, len(x), size))
