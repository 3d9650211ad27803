"""What do a probe and its controls see of a store?

Activations, control features and labels of the same queries, read once; every fold is then a choice of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from mist_interp.core.names import Site, SiteKey
from mist_interp.data.activation_set import unit_of_episode
from mist_interp.data.records import Array
from mist_interp.data.store import RolloutStore
from mist_interp.probing.controls import CONTROLS, SHUFFLED, SHUFFLED_FITS, control_features
from mist_interp.probing.leaks import Spread, refuse_standardised
from mist_interp.probing.logistic import Task
from mist_interp.probing.readout import Estimator, Readout, fit_readouts
from mist_interp.probing.report import PROBE, Predictions
from mist_interp.probing.targets import Labels, Target

# Everything that is fitted; several fits make up the control with shuffled labels.
FITS = (PROBE, *(control for control in CONTROLS if control != SHUFFLED), *SHUFFLED_FITS)


def check_same_queries(rows: pd.DataFrame, labels: Labels) -> None:
    """Refuse activations and labels that do not speak of the same queries.

    Raises:
        ValueError: they do not.
    """
    if not np.array_equal(rows["episode"], labels.episode) or not np.array_equal(rows["query"], labels.query):
        raise ValueError("activations and labels are not about the same queries: the store is damaged")


@dataclass(frozen=True)
class ProbeData:
    """All that a probe and its controls need of a store, read once.

    Attributes:
        features: fit -> (queries, width); the shuffled controls read what the probe reads.
        labels: of all queries.
        task: (queries,) task of each query, across suites.
        site: where the probe reads.
        group: (queries,) start state of each query.
    """

    features: Mapping[str, Float[Array, "queries width"]]
    labels: Labels
    task: np.ndarray
    site: Site
    group: np.ndarray

    @classmethod
    def read(cls, store: RolloutStore, site: SiteKey, tokens: str, pool: str, target: Target) -> ProbeData:
        """Read and align activations, controls and labels.

        Raises:
            UnknownName: the store has no such site, tokens or pooling.
            ValueError: the tables of the store do not speak of the same queries.
        """
        x, rows = store.load(site, tokens, pool)
        place = store.group(tokens, pool).one(site)
        refuse_standardised(Spread.of(x), place.name)
        labels = target.labels(store)
        check_same_queries(rows, labels)
        return cls._of(store, {PROBE: x, **dict.fromkeys(SHUFFLED_FITS, x)}, labels, place)

    @classmethod
    def without_activations(cls, store: RolloutStore, target: Target, site: Site) -> ProbeData:
        """What all sites share: controls, labels, tasks and start states. Without the probe and its shuffled fits."""
        return cls._of(store, {}, target.labels(store), site)

    @classmethod
    def _of(cls, store: RolloutStore, read: Mapping[str, Any], labels: Labels, site: Site) -> ProbeData:
        units = unit_of_episode(store)
        task = {key: f"{unit.suite}/{unit.task}" for key, unit in units.items()}
        start = {key: f"{task[key]}/{unit.init_state}" for key, unit in units.items()}
        every = {**read, **control_features(store)}
        features = {fit: every[fit] for fit in FITS if fit in every}
        of_queries = (np.array([of[key] for key in labels.episode]) for of in (task, start))
        return cls(features, labels, next(of_queries), site, next(of_queries))

    def labelled(self, keys: Iterable[str] | None = None) -> Bool[np.ndarray, " queries"]:
        """Mask of the queries with a label, in all episodes or in those of `keys`."""
        known = ~np.isnan(self.labels.values).all(1)
        return known if keys is None else known & np.isin(self.labels.episode, list(keys))

    def fit(
        self, estimator: Estimator, rows: Bool[np.ndarray, " queries"], seed: int | tuple[int, ...]
    ) -> dict[str, Readout]:
        """Fit a clone of `estimator` for the probe and for every control on the rows where the mask is true."""
        return self.fit_folds(estimator, [rows], [seed])[0]

    def fit_folds(
        self,
        estimator: Estimator,
        folds: Sequence[Bool[np.ndarray, " queries"]],
        seeds: Sequence[int | tuple[int, ...]],
    ) -> list[dict[str, Any]]:
        """Per mask of training rows what `fit` gives, with one pass over each matrix for all of them."""
        tasks: dict[int, list[tuple[int, str, Task]]] = {}
        for number, (rows, seed) in enumerate(zip(folds, seeds, strict=True)):
            rng = np.random.default_rng(seed)
            for fit in (*(f for f in self.features if f not in SHUFFLED_FITS), *SHUFFLED_FITS):
                labels = self.labels.values
                if fit in SHUFFLED_FITS:
                    labels = np.full_like(labels, np.nan)
                    labels[rows] = rng.permutation(self.labels.values[rows])
                if fit in self.features:
                    tasks.setdefault(id(self.features[fit]), []).append((number, fit, Task(rows, labels)))
        group = np.unique(self.group, return_inverse=True)[1]
        found: list[dict[str, Any]] = [{} for _ in folds]
        for some in tasks.values():
            x = self.features[some[0][1]]
            for (number, fit, _), readout in zip(
                some, fit_readouts(estimator, x, [task for *_, task in some], group), strict=True
            ):
                found[number][fit] = readout
        return [{fit: fitted[fit] for fit in self.features} for fitted in found]

    def predict(self, readouts: Mapping[str, Readout], rows: Bool[np.ndarray, " queries"]) -> dict[str, Predictions]:
        """Scores of every fit on the rows where the mask is true."""
        return {
            fit: Predictions(r.scores(self.features[fit][rows]), r.probabilities(self.features[fit][rows]))
            for fit, r in readouts.items()
        }
