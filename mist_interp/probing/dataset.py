"""What do a probe and its controls see of a store?

Activations, control features and labels of the same queries, read once; every fold is then a choice of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from mist_interp.core.names import Site, SiteKey
from mist_interp.data.activation_set import unit_of_episode
from mist_interp.data.records import Array
from mist_interp.data.store import RolloutStore
from mist_interp.probing.controls import CONTROLS, SHUFFLED, SHUFFLED_FITS, control_features
from mist_interp.probing.readout import Estimator, Readout, fit_readout
from mist_interp.probing.report import PROBE, Predictions
from mist_interp.probing.targets import Labels, Target

# Everything that is fitted; several fits make up the control with shuffled labels.
FITS = (PROBE, *(control for control in CONTROLS if control != SHUFFLED), *SHUFFLED_FITS)


@dataclass(frozen=True)
class ProbeData:
    """All that a probe and its controls need of a store, read once.

    Attributes:
        features: fit -> (queries, width); the shuffled controls read what the probe reads.
        labels: of all queries.
        task: (queries,) task of each query, across suites.
        site: where the probe reads.
    """

    features: Mapping[str, Float[Array, "queries width"]]
    labels: Labels
    task: np.ndarray
    site: Site

    @classmethod
    def read(cls, store: RolloutStore, site: SiteKey, tokens: str, pool: str, target: Target) -> ProbeData:
        """Read and align activations, controls and labels.

        Raises:
            UnknownName: the store has no such site, tokens or pooling.
            ValueError: the tables of the store do not speak of the same queries.
        """
        x, rows = store.load(site, tokens, pool)
        labels = target.labels(store)
        if not np.array_equal(rows["episode"], labels.episode) or not np.array_equal(rows["query"], labels.query):
            raise ValueError("activations and labels are not about the same queries: the store is damaged")
        units = unit_of_episode(store)
        task = np.array([f"{units[key].suite}/{units[key].task}" for key in labels.episode])
        features = {PROBE: x, **control_features(store), **dict.fromkeys(SHUFFLED_FITS, x)}
        return cls(features, labels, task, store.group(tokens, pool).one(site))

    def labelled(self, keys: Iterable[str] | None = None) -> Bool[np.ndarray, " queries"]:
        """Mask of the queries with a label, in all episodes or in those of `keys`."""
        known = ~np.isnan(self.labels.values).all(1)
        return known if keys is None else known & np.isin(self.labels.episode, list(keys))

    def fit(
        self, estimator: Estimator, rows: Bool[np.ndarray, " queries"], seed: int | tuple[int, ...]
    ) -> dict[str, Readout]:
        """Fit a clone of `estimator` for the probe and for every control on the rows where the mask is true."""
        rng = np.random.default_rng(seed)
        y = self.labels.values[rows]
        return {
            fit: fit_readout(estimator, self.features[fit][rows], rng.permutation(y) if fit in SHUFFLED_FITS else y)
            for fit in FITS
        }

    def predict(self, readouts: Mapping[str, Readout], rows: Bool[np.ndarray, " queries"]) -> dict[str, Predictions]:
        """Scores of every fit on the rows where the mask is true."""
        return {
            fit: Predictions(r.scores(self.features[fit][rows]), r.probabilities(self.features[fit][rows]))
            for fit, r in readouts.items()
        }
