"""What is readable at one place of the network, and is it more than what anyone could read without looking inside?

A `Probe` is a site, named tokens, a pooling, a scikit-learn classifier and a target. It is fitted together with its
controls (`mist_interp.probing.controls`), which have the same classifier and see the same episodes, and every
evaluation reports both.

    probe = Probe(("resid_post", 3), target="contact").fit(train)
    probe.evaluate(test).to_frame()
    probe.direction()                       the same place, for writing
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import SiteKey
from mist_interp.core.provenance import provenance
from mist_interp.data.activation_set import StartState, fingerprint, refuse_shared, start_states, unit_of_episode
from mist_interp.data.artefact import OnHub
from mist_interp.data.records import Array
from mist_interp.data.store import RolloutStore
from mist_interp.probing.dataset import ProbeData
from mist_interp.probing.evaluation import judge
from mist_interp.probing.files import ESTIMATORS, load_probe, save_probe
from mist_interp.probing.leaks import Spread
from mist_interp.probing.readout import Estimator, Readout
from mist_interp.probing.report import MIN_EPISODES, PROBE, ProbeReport
from mist_interp.probing.scores import DRAWS
from mist_interp.probing.targets import Target, target
from mist_interp.steering.direction import SteeringDirection


def default_estimator() -> LogisticRegression:
    """Strongly regularised logistic regression: hidden states have about as many dimensions as there are episodes."""
    return LogisticRegression(C=0.1, max_iter=2000)


class Probe(OnHub):
    """A read-out of one place of the network, with its controls.

    Args:
        site: where to read, e.g. `("resid_post", 3)`.
        tokens: token selector under which the activations were stored.
        pool: how the tokens were pooled.
        estimator: a scikit-learn classifier; it gets standardised rows and is cloned, never changed.
        target: what to foresee: a name (`failure`, `contact`) or a target object.
        seed: of the shuffled-label control.

    Attributes (after `fit`):
        site_: the site, resolved.
        outputs_: names of the target's outputs.
        readouts_: `probe` or a control -> what was fitted.
        sigma_: per output the standard deviation of the training rows along the probe's direction.
        trained_on_: start states of the training episodes.
        source_: model, suite, counts and versions of the training.
    """

    hub_files: ClassVar[tuple[str, ...]] = ("probe.json", "probe.safetensors")
    hub_files_more: ClassVar[tuple[str, ...]] = (ESTIMATORS,)

    def __init__(
        self,
        site: SiteKey,
        tokens: str = "action_read",
        pool: str = "mean",
        estimator: Estimator | None = None,
        target: str | Target = "failure",
        seed: int = 0,
    ) -> None:
        self.site = site
        self.tokens = tokens
        self.pool = pool
        self.estimator = estimator
        self.target = target
        self.seed = seed

    # -- fitting

    def fit(self, train: RolloutStore) -> Probe:
        """Fit the probe and its controls on all labelled queries of `train`; an earlier fit is forgotten.

        Raises:
            UnknownName: the store has no such site, tokens or pooling, or there is no such target.
            ValueError: no query has a label, or an output has one label only.
        """
        data = self.read(train)
        known = data.labelled()
        for output, column in zip(data.labels.outputs, data.labels.values.T, strict=True):
            present = np.unique(column[~np.isnan(column)])
            if len(present) < 2:
                kinds = "no label" if len(present) == 0 else f"only the label {present[0]:.0f}"
                raise ValueError(f"{output}: the {len(train)} training episodes have {kinds}; both are needed")
        self.spread_ = Spread.of(data.features[PROBE])  # of this process; not kept in files
        self.readouts_ = data.fit(self.estimator_, known, self.seed)
        self.site_ = data.site
        self.outputs_ = data.labels.outputs
        self.sigma_ = tuple(
            _spread(data.features[PROBE][known], self.readouts_[PROBE].weights(place)) if self.is_linear else None
            for place in range(len(self.outputs_))
        )
        self.trained_on_: frozenset[StartState] = start_states(unit_of_episode(train).values())
        self.source_: dict[str, Any] = {
            "data": dict(train.manifest.settings),
            "selection": train.manifest.selection,
            "episodes": len(train),
            "queries": int(known.sum()),
            "positive": {o: int(np.nansum(c)) for o, c in zip(self.outputs_, data.labels.values.T, strict=True)},
            "masked": dict(data.labels.masked),
            "start_states": fingerprint(self.trained_on_),
            "versions": provenance(),
        }
        return self

    @property
    def estimator_(self) -> Estimator:
        """The classifier template in use."""
        return default_estimator() if self.estimator is None else self.estimator

    @property
    def is_linear(self) -> bool:
        """Whether every fitted classifier has one weight per feature."""
        return all(hasattr(estimator, "coef_") for estimator in self.fitted[PROBE].estimators)

    # -- reading

    def decision_function(self, rows: RolloutStore | Float[Array, "rows width"]) -> Float[Array, "rows outputs"]:
        """Scores of the queries of a store, or of activation rows; larger means more likely."""
        return self.fitted[PROBE].scores(self._rows(rows))

    def predict_proba(self, rows: RolloutStore | Float[Array, "rows width"]) -> Float[Array, "rows outputs"]:
        """Probability of each output.

        Raises:
            ValueError: the classifier gives none.
        """
        probabilities = self.fitted[PROBE].probabilities(self._rows(rows))
        if probabilities is None:
            raise ValueError(f"{type(self.estimator_).__name__} gives no probabilities; use decision_function")
        return probabilities

    def direction(self, output: str | None = None) -> SteeringDirection:
        """The probe's weight vector as a direction at the same site and tokens, towards a higher score.

        Raises:
            UnknownName: the target has no such output.
            ValueError: the classifier is not linear, or `output` must be named because there are several.
        """
        readout = self.fitted[PROBE]
        if output is None and len(self.outputs_) > 1:
            raise ValueError(f"name one of the outputs {', '.join(self.outputs_)}")
        if output is not None and output not in self.outputs_:
            raise UnknownName("output of this probe", output, self.outputs_)
        place = 0 if output is None else self.outputs_.index(output)
        weights, sigma = readout.weights(place), self.sigma_[place]
        return SteeringDirection.of_length(
            weights,
            sigma or 0.0,
            site=self.site_,
            tokens=self.tokens,
            source={"method": "probe weights", "target": self.outputs_[place], "pool": self.pool, **self.source_},
            trained_on=self.trained_on_,
        )

    def evaluate(self, test: RolloutStore, *, min_episodes: int = MIN_EPISODES, draws: int = DRAWS) -> ProbeReport:
        """The probe and its controls on episodes of other start states.

        Args:
            test: the episodes to judge on.
            min_episodes: fewer positive or negative episodes than this give no AUC; below 20 the report is flagged.
            draws: resamplings for the intervals.

        Raises:
            ValueError: a start state of the training is in `test`, the message names some; or both were standardised
                together.
        """
        readouts = self.fitted
        refuse_shared(self.trained_on_, start_states(unit_of_episode(test).values()))
        return judge(self, readouts, test, min_episodes=min_episodes, draws=draws)

    def read(self, store: RolloutStore) -> ProbeData:
        """Activations, control features and labels of a store as this probe sees them."""
        return ProbeData.read(store, self.site, self.tokens, self.pool, target(self.target))

    def save(self, folder: str | Path) -> None:
        """Write `probe.safetensors` and `probe.json`: the probe and its controls, no pickle.

        Classifiers that are not plainly linear go into `probe.skops` (see `estimator_files.py`): those of scikit-learn,
        also in pipelines and searches, and `NetworkClassifier`.

        Raises:
            UnknownName: a target that cannot be stored.
            ValueError: a classifier that cannot be stored, such as one of your own; the message names what in it.
        """
        save_probe(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Probe:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: there is no probe in this folder.
            ValueError: a format that this version does not know, or a file that holds types that are not trusted.
        """
        return load_probe(cls, Path(folder))

    def hub_facts(self) -> Mapping[str, Any]:
        """What the card on the Hub says of its making."""
        place = {"site": self.site_.name, "tokens": self.tokens, "pool": self.pool}
        return {**place, "outputs": self.outputs_, "source": self.source_}

    def __repr__(self) -> str:
        fitted = f", {self.source_['episodes']} episodes" if hasattr(self, "source_") else ", not fitted"
        name = type(self.estimator_).__name__
        return f"Probe({self.site!r}, tokens={self.tokens!r}, {target(self.target).name!r}, {name}{fitted})"

    @property
    def fitted(self) -> Mapping[str, Readout]:
        """`probe` or a control -> what was fitted.

        Raises:
            ValueError: nothing was.
        """
        if not hasattr(self, "readouts_"):
            raise ValueError("this probe is not fitted: call fit first")
        return self.readouts_

    def _rows(self, rows: RolloutStore | Float[Array, "rows width"]) -> Float[Array, "rows width"]:
        _ = self.fitted
        return rows.load(self.site_, self.tokens, self.pool)[0] if isinstance(rows, RolloutStore) else rows


def _spread(x: Float[Array, "rows width"], weights: Float[Array, " width"]) -> float:
    """Standard deviation of the projection of rows on the unit vector along `weights`."""
    length = float(np.linalg.norm(weights))
    return float(np.std(np.asarray(x, dtype=np.float64) @ (weights / length))) if length > 0 else 0.0
