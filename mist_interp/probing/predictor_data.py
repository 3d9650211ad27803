"""What do a risk predictor and its controls see of a store?

As `ProbeData`, but a network with a memory needs whole episodes, from their first query on, whichever of their queries
are labelled; and what is held out in fitting are whole start states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from mist_interp.core.names import Site, SiteKey
from mist_interp.data.records import Array
from mist_interp.data.store import RolloutStore
from mist_interp.probing.controls import SHUFFLED_FITS
from mist_interp.probing.dataset import FITS, ProbeData
from mist_interp.probing.leaks import Spread, refuse_standardised
from mist_interp.probing.networks_fit import fit_network
from mist_interp.probing.networks_fitted import FittedNetwork, Recipe, probabilities
from mist_interp.probing.report import PROBE, Predictions
from mist_interp.probing.targets import Target


@dataclass(frozen=True)
class Sites:
    """Sites whose rows are read side by side.

    Attributes:
        sites: in this order.
    """

    sites: tuple[Site, ...]

    @property
    def name(self) -> str:
        """Name in tables."""
        return " + ".join(site.name for site in self.sites)


@dataclass(frozen=True)
class PredictorData(ProbeData):
    """All that a risk predictor and its controls need of a store, read once.

    Attributes:
        site: where it reads.
    """

    site: Any

    @classmethod
    def of(cls, store: RolloutStore, sites: Sequence[SiteKey], tokens: str, pool: str, target: Target) -> PredictorData:
        """Read and align activations, controls and labels.

        Raises:
            UnknownName: the store has no such site, tokens or pooling.
            ValueError: the tables of the store do not speak of the same queries, these are out of order, or the rows
                were standardised outside of the folds.
        """
        first = ProbeData.read(store, sites[0], tokens, pool, target)
        parts = [first.features[PROBE]]
        for site in sites[1:]:
            parts.append(store.load(site, tokens, pool)[0])
            refuse_standardised(Spread.of(parts[-1]), store.group(tokens, pool).one(site).name)
        x = np.hstack(parts)
        labels = first.labels
        same = labels.episode[1:] == labels.episode[:-1]
        if (np.diff(labels.query)[same] != 1).any():
            raise ValueError("the queries of an episode are out of order: the store is damaged")
        features = {**first.features, PROBE: x, **dict.fromkeys(SHUFFLED_FITS, x)}
        return cls(features, labels, first.task, Sites(resolve(store, sites, tokens, pool)), first.group)

    def fit(
        self,
        estimator: Recipe,  # what `RiskPredictor.estimator_` gives
        rows: Bool[np.ndarray, " queries"],
        seed: int | tuple[int, ...],
        fits: Sequence[str] = FITS,
    ) -> dict[str, Any]:
        """Fit one network for the predictor and for every control on the rows where the mask is true."""
        rng = np.random.default_rng(seed)
        # Each fit begins with weights of its own: five shuffles of one beginning would share its luck.
        numbers = {fit: int(number) for fit, number in zip(FITS, rng.integers(2**31, size=len(FITS)), strict=True)}
        seen = self._whole_episodes(rows)
        y = np.where(rows[:, None], self.labels.values, np.nan)
        shuffled = {fit: rng.permutation(self.labels.values[rows]) for fit in SHUFFLED_FITS}
        fitted: dict[str, FittedNetwork] = {}
        for fit in fits:
            wanted = y.copy()
            if fit in shuffled:
                wanted[rows] = shuffled[fit]
            fitted[fit], _ = fit_network(
                estimator,
                self.features[fit][seen],
                wanted[seen],
                episode=self.labels.episode[seen],
                group=self.group[seen],
                seed=numbers[fit],
            )
        return fitted

    def fit_folds(
        self,
        estimator: Recipe,
        folds: Sequence[Bool[np.ndarray, " queries"]],
        seeds: Sequence[int | tuple[int, ...]],
    ) -> list[dict[str, Any]]:
        """Per mask of training rows what `fit` gives, of the fits that have features."""
        fits = [fit for fit in FITS if fit in self.features]
        return [self.fit(estimator, rows, seed, fits) for rows, seed in zip(folds, seeds, strict=True)]

    def predict(self, readouts: Mapping[str, Any], rows: Bool[np.ndarray, " queries"]) -> dict[str, Predictions]:
        """Scores of every fit on the rows where the mask is true; what came before in their episodes is seen."""
        seen = self._whole_episodes(rows)
        judged: dict[str, Predictions] = {}
        for fit, network in readouts.items():
            scores: Array = network.scores(self.features[fit][seen], self.labels.episode[seen])[rows[seen]]
            judged[fit] = Predictions(scores, probabilities(scores))
        return judged

    def _whole_episodes(self, rows: Bool[np.ndarray, " queries"]) -> Bool[np.ndarray, " queries"]:
        return np.isin(self.labels.episode, np.unique(self.labels.episode[rows]))


def resolve(store: RolloutStore, sites: Sequence[SiteKey], tokens: str, pool: str) -> tuple[Site, ...]:
    """The stored sites that the keys name."""
    group = store.group(tokens, pool)
    return tuple(group.one(site) for site in sites)
