"""How does a matrix of activations become scores?

Standardise each feature with the statistics of the training rows, then one scikit-learn classifier per output.
Standardisation is part of what is fitted, so it never sees a row that is judged later. Linear classifiers are stored
as arrays and plain settings, others by name and content (`estimator_files.py`), none as a pickle, which would run code
on loading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.svm import LinearSVC
from sklearn.utils.validation import has_fit_parameter

from mist_interp.core.errors import UnknownName
from mist_interp.data.records import Array
from mist_interp.probing.leaks import grouped, refuse_fitted
from mist_interp.probing.logistic import Task, fit_logistic, is_plain, moments

# scikit-learn ships no types; anything with fit and decision_function or predict_proba.
Estimator: TypeAlias = Any

# Classifiers whose whole learnt state is coef_, intercept_ and classes_.
LINEAR: Mapping[str, type[Any]] = {kind.__name__: kind for kind in (LogisticRegression, SGDClassifier, LinearSVC)}

# Elements of a block of standardised rows.
_BLOCK = 2_000_000


@dataclass(frozen=True)
class Readout:
    """A fitted read-out: (rows, width) -> one score per output.

    Attributes:
        mean: (width,) of the training rows.
        scale: (width,) standard deviation of the training rows, 1 where they do not vary.
        estimators: per output the fitted classifier, or None when the training rows had one label only.
    """

    mean: Float[Array, " width"]
    scale: Float[Array, " width"]
    estimators: tuple[Any, ...]

    def standardised(self, x: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
        """Rows in units of the training rows.

        Raises:
            ValueError: rows of another width.
        """
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"this read-out was fitted on rows of width {len(self.mean)}; given {x.shape}")
        return (np.asarray(x, dtype=np.float64) - self.mean) / self.scale

    def scores(self, x: Float[Array, "rows width"]) -> Float[Array, "rows outputs"]:
        """Decision values, larger for more likely; constant for an output that could not be fitted."""
        return self._blockwise(x, lambda e, rows: np.zeros(len(rows)) if e is None else _decision(e, rows))

    def probabilities(self, x: Float[Array, "rows width"]) -> Float[Array, "rows outputs"] | None:
        """Probabilities; None when an estimator gives none."""
        if not all(hasattr(estimator, "predict_proba") for estimator in self.estimators):
            return None
        return self._blockwise(x, lambda estimator, rows: estimator.predict_proba(rows)[:, 1])

    def _blockwise(
        self, x: Float[Array, "rows width"], read: Callable[[Any, Array], Array]
    ) -> Float[Array, "rows outputs"]:
        """What each estimator reads; some rows at a time, for standardised rows are four times as large."""
        size = max(64, _BLOCK // max(1, len(self.mean)))
        parts = []
        for start in range(0, max(1, len(x)), size):
            rows = self.standardised(x[start : start + size])
            parts.append(np.stack([read(estimator, rows) for estimator in self.estimators], axis=1))
        return np.concatenate(parts)

    def weights(self, output: int) -> Float[Array, " width"]:
        """Gradient of the score with respect to a row, in the units of the row.

        Raises:
            ValueError: the output could not be fitted, or its estimator is not linear.
        """
        estimator = self.estimators[output]
        if estimator is None:
            raise ValueError("this output had one label only in training; it has no direction")
        if not hasattr(estimator, "coef_"):
            raise ValueError(f"{type(estimator).__name__} is not linear, so it has no one direction")
        return np.asarray(estimator.coef_, dtype=np.float64).ravel() / self.scale


def fit_readout(
    estimator: Estimator,
    x: Float[Array, "rows width"],
    y: Float[Array, "rows outputs"],
    groups: Int[np.ndarray, " rows"] | None = None,
) -> Readout:
    """Fit one clone of `estimator` per column of `y`; rows whose label is NaN are left out of that column.

    Args:
        estimator: any scikit-learn classifier, also a pipeline or a search.
        x: rows; they are standardised.
        y: labels.
        groups: per row what an estimator that splits by itself must keep together, see `leaks.grouped`.

    Raises:
        ValueError: no rows, rows that are not finite, or an estimator that comes fitted.
    """
    return fit_readouts(estimator, x, [Task(np.ones(len(x), dtype=bool), y)], groups)[0]


def fit_readouts(
    estimator: Estimator,
    x: Float[Array, "rows width"],
    tasks: Sequence[Task],
    groups: Int[np.ndarray, " rows"] | None = None,
) -> list[Readout]:
    """Fit a read-out on each choice of rows and labels of one matrix.

    A plain logistic regression is fitted for all of them at once (`logistic.py`), to the same result.

    Raises:
        ValueError: as `fit_readout`.
    """
    refuse_fitted(estimator)
    if not len(x) or not all(task.rows.any() for task in tasks):
        raise ValueError("no rows to fit on")
    if is_plain(estimator):
        known = moments(x, [task.rows for task in tasks])
        fitted = fit_logistic(estimator, x, tasks, known)
        return [
            Readout(mean, scale, tuple(each))
            for mean, scale, each in zip(known.means, known.scales, fitted, strict=True)
        ]
    return [_fit_one(estimator, x, task, groups) for task in tasks]


def _fit_one(
    estimator: Estimator, x: Float[Array, "rows width"], task: Task, groups: Int[np.ndarray, " rows"] | None
) -> Readout:
    known = moments(x[task.rows], [])
    rows = (np.asarray(x[task.rows], dtype=np.float64) - known.mean) / known.scale
    mine = None if groups is None else groups[task.rows]
    fitted: list[Any] = []
    for labels in task.labels[task.rows].T:
        kept = ~np.isnan(labels)
        if len(np.unique(labels[kept])) < 2:
            fitted.append(None)
            continue
        together = None if mine is None else mine[kept]
        own = grouped(estimator, rows[kept], labels[kept], together)
        extra = {"groups": together} if together is not None and has_fit_parameter(own, "groups") else {}
        fitted.append(own.fit(rows[kept], labels[kept], **extra))
    return Readout(known.mean, known.scale, tuple(fitted))


def readout_arrays(readout: Readout, prefix: str) -> dict[str, Array]:
    """Arrays of a read-out for a safetensors file, names beginning with `prefix`; weights if it is linear."""
    arrays = {f"{prefix}.mean": readout.mean, f"{prefix}.scale": readout.scale}
    for place, estimator in enumerate(readout.estimators):
        if not is_linear(estimator):
            continue
        arrays[f"{prefix}.{place}.coef"] = np.asarray(estimator.coef_, dtype=np.float64)
        arrays[f"{prefix}.{place}.intercept"] = np.asarray(estimator.intercept_, dtype=np.float64).reshape(-1)
    return arrays


def readout_from_arrays(arrays: Mapping[str, Array], prefix: str, fitted: Sequence[Any]) -> Readout:
    """The read-out of classifiers and of what `readout_arrays` says of the rows."""
    return Readout(arrays[f"{prefix}.mean"], arrays[f"{prefix}.scale"], tuple(fitted))


def linear_from_arrays(
    arrays: Mapping[str, Array], prefix: str, estimator: Estimator, outputs: Sequence[str]
) -> list[Any]:
    """The linear classifiers of `readout_arrays`, per output; `estimator` is the unfitted template."""
    fitted: list[Any] = []
    for place in range(len(outputs)):
        if f"{prefix}.{place}.coef" not in arrays:
            fitted.append(None)
            continue
        one: Any = clone(estimator)
        one.coef_, one.intercept_ = arrays[f"{prefix}.{place}.coef"], arrays[f"{prefix}.{place}.intercept"]
        one.n_features_in_ = one.coef_.shape[1]
        one.classes_ = np.array([0.0, 1.0])
        fitted.append(one)
    return fitted


def is_linear(estimator: Any) -> bool:
    """Whether it is one of `LINEAR`, which are stored as arrays."""
    return type(estimator) is LINEAR.get(type(estimator).__name__)


def estimator_config(estimator: Estimator) -> dict[str, Any]:
    """Name and settings of a linear classifier.

    Raises:
        ValueError: a setting that is not a plain value.
    """
    name = type(estimator).__name__
    settings = estimator.get_params()
    for key, value in settings.items():
        if not isinstance(value, str | int | float | bool | dict | None):
            raise ValueError(f"{name}({key}={value!r}) cannot be stored: give a plain value")
    return {"kind": name, "settings": settings}


def estimator_from_config(config: Mapping[str, Any]) -> Estimator:
    """Inverse of `estimator_config`.

    Raises:
        UnknownName: a classifier that this version does not know.
    """
    if config["kind"] not in LINEAR:
        raise UnknownName("estimator", config["kind"], LINEAR)
    settings = dict(config["settings"])
    if isinstance(settings.get("class_weight"), dict):  # JSON turns the labels into text
        settings["class_weight"] = {float(label): weight for label, weight in settings["class_weight"].items()}
    made: Estimator = LINEAR[config["kind"]](**settings)
    return made


def _decision(estimator: Any, rows: Array) -> Array:
    if hasattr(estimator, "decision_function"):
        values: Array = estimator.decision_function(rows)
        return values
    return np.asarray(estimator.predict_proba(rows)[:, 1])
