"""By which doors could a probe see what it is judged on?

Three that no split of episodes closes: data that were standardised before they were split, an estimator that comes
fitted (`FrozenEstimator`, `cv="prefit"`), and an estimator that splits by itself, by queries, so that queries of one
start state are on both sides of *its* folds. The first two are refused; the third gets splits that keep start states
together.

Standardised data are recognised by their mean and spread: those of one store, and those of the training and test store
together where a probe is judged by the process that fitted it. A part of what was standardised as a whole passes on its
own, as does any other scaling that used the episodes to judge on: who scales activations before storing them must know
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import StratifiedGroupKFold

from mist_interp.data.records import Array
from mist_interp.probing.logistic import moments

# Float16 rounding leaves less than this; features of a network, or random numbers, never come this near in all columns.
_STANDARDISED = 2e-4


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of each feature over some queries; NaN where a feature does not vary."""

    count: int
    mean: Float[Array, " width"]
    scale: Float[Array, " width"]

    @classmethod
    def of(cls, x: Float[Array, "rows width"]) -> Spread:
        """That of these rows."""
        known = moments(x, [])
        return cls(len(x), known.mean, np.where(known.scale == 1.0, np.nan, known.scale))

    def with_(self, other: Spread) -> Spread:
        """That of the rows of both."""
        count = self.count + other.count
        mean = (self.count * self.mean + other.count * other.mean) / count
        squares = [part.count * (part.scale**2 + (part.mean - mean) ** 2) for part in (self, other)]
        return Spread(count, mean, np.sqrt(sum(squares) / count))


def refuse_standardised(spread: Spread, what: str) -> None:
    """Refuse rows that have mean 0 and standard deviation 1 in every feature.

    Raises:
        ValueError: somebody standardised them, and with the rows that will be judged.
    """
    varying = ~np.isnan(spread.scale)
    if spread.count < 3 or varying.sum() < 2:
        return
    far = np.maximum(np.abs(spread.mean), np.abs(spread.scale - 1))[varying]
    if far.max() < _STANDARDISED:
        raise ValueError(
            f"every feature of {what} has mean 0 and standard deviation 1 over all {spread.count} queries: it was "
            "standardised together with the episodes to judge on. Give the activations as they are; a probe "
            "standardises in each fold"
        )


def refuse_fitted(estimator: Any) -> None:
    """Refuse an estimator that would not be fitted on the training episodes alone.

    Raises:
        ValueError: a part of it comes fitted.
    """
    for name, value in {"": estimator, **estimator.get_params(deep=True)}.items():
        if isinstance(value, FrozenEstimator) or (name.split("__")[-1] == "cv" and value == "prefit"):
            where = name or "it"
            raise ValueError(
                f"{type(estimator).__name__}: {where} comes fitted ({value!r}), perhaps on episodes that are judged; "
                "give it unfitted, so that it is fitted inside each fold"
            )


def grouped(
    estimator: Any,
    x: Float[Array, "rows width"],
    y: Float[np.ndarray, " rows"],
    groups: Int[np.ndarray, " rows"] | None,
) -> Any:
    """A clone of `estimator` whose own splits, if it makes some, keep groups together.

    Args:
        estimator: any scikit-learn classifier, also a pipeline or a search; `cv` in it may be a number of folds or a
            splitter.
        x: rows to fit on.
        y: their labels.
        groups: per row what must not be split; None: every row may.

    Raises:
        ValueError: a splitter that separates rows of one group, or splits inside splits.
    """
    own: Any = clone(estimator)
    names = [name for name in own.get_params(deep=True) if name.split("__")[-1] == "cv"]
    if groups is None or not names:
        return own
    outer = min(names, key=lambda name: name.count("__"))
    if len(names) > 1:
        raise ValueError(f"{type(own).__name__} splits inside splits ({', '.join(names)}); give one of them no cv")
    asked = own.get_params(deep=True)[outer]
    if asked is None or isinstance(asked, int):
        asked = StratifiedGroupKFold(min(asked or 5, len(np.unique(groups))))
    splits = list(asked.split(x, y, groups)) if hasattr(asked, "split") else list(asked)
    for train, test in splits:
        shared = np.intersect1d(groups[train], groups[test])
        if len(shared):
            raise ValueError(
                f"{outer}={asked!r} puts queries of one start state on both sides of a split ({len(shared)} start "
                "states); give a number of folds, or a splitter that keeps groups, such as StratifiedGroupKFold"
            )
    return own.set_params(**{outer: splits})
