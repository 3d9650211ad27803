"""Which dimension is about to go wrong, as read by one network off several places of the policy?

A `RiskPredictor` is sites, named tokens, a pooling, a network and a target. One network with one output per output of
the target is fitted together with its controls, as a `Probe` is, and judged in the same table.

    predictor = RiskPredictor([("resid_post", 2), ("resid_post", 5)], network=LSTM()).fit(train)
    predictor.evaluate(test).to_frame()
    cross_validate(predictor, store)                        leave one task out, everything fitted anew

    state = predictor.start()                               closed loop: the same numbers, query by query
    risk, state = predictor.step(rows, state)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from jaxtyping import Float

from mist_interp.core.names import SiteKey
from mist_interp.core.provenance import provenance
from mist_interp.data.activation_set import StartState, fingerprint, refuse_shared, start_states, unit_of_episode
from mist_interp.data.artefact import OnHub
from mist_interp.data.capture import pooled
from mist_interp.data.records import Array
from mist_interp.data.store import RolloutStore
from mist_interp.probing.dataset import FITS
from mist_interp.probing.evaluation import judge
from mist_interp.probing.networks import LSTM, MLP, Network
from mist_interp.probing.networks_fitted import FittedNetwork, Recipe, Streamed, Training, probabilities
from mist_interp.probing.predictor_data import PredictorData
from mist_interp.probing.predictor_files import load_predictor, save_predictor
from mist_interp.probing.report import MIN_EPISODES, PROBE, ProbeReport
from mist_interp.probing.scores import DRAWS
from mist_interp.probing.targets import Failure, Target, target
from mist_interp.probing.temporal import OverTime, RunningSum

if TYPE_CHECKING:
    from mist_interp.probing.probe import Probe

LAST_LAYER: SiteKey = ("resid_post", -1)


class RiskPredictor(OnHub):
    """A network that reads the risk of each dimension off the activations of a query, or of all queries so far.

    Args:
        site: where to read, e.g. `("resid_post", 3)`; a *list* of sites is read side by side.
        tokens: token selector under which the activations were stored.
        pool: how the tokens were pooled.
        network: `MLP(...)` reads each query alone, `LSTM(...)` all queries so far.
        target: what to foresee: a name or a target object; `Risk()` has seven outputs.
        over_time: how the scores of the queries so far become one, see `temporal.py`; None: as the network gives them.
        training: how the network is fitted.
        seed: of everything that is drawn.

    Attributes (after `fit`):
        sites_: the sites, resolved.
        outputs_: names of the target's outputs.
        networks_: `probe` or a control -> what was fitted.
        flags_: what limits the outputs: one that had a single label in training is a constant, ...
        trained_on_: start states of the training episodes.
        source_: model, suite, counts and versions of the training.
    """

    hub_files: ClassVar[tuple[str, ...]] = ("predictor.json", "predictor.safetensors")

    def __init__(
        self,
        site: SiteKey | list[SiteKey],
        tokens: str = "action_read",
        pool: str = "mean",
        network: Network = MLP(),  # noqa: B008 - frozen
        target: str | Target = "risk",
        over_time: OverTime | None = None,
        training: Training = Training(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        self.site = site
        self.tokens = tokens
        self.pool = pool
        self.network = network
        self.target = target
        self.over_time = over_time
        self.training = training
        self.seed = seed

    # -- named baselines

    @classmethod
    def safe_mlp(
        cls, site: SiteKey = LAST_LAYER, tokens: str = "action_read", pool: str = "mean", seed: int = 0
    ) -> RiskPredictor:
        """SAFE-MLP (Gu et al. 2025, arXiv 2506.09937): one score per episode's failure, off the last layer.

        Taken over: the last layer at the tokens that the actions are read from, pooled by their mean; one hidden layer
        of 256; the score at query t is the sum of the sigmoids of queries 0 .. t; the loss is its distance from 0 in
        successes and from t + 1 in failures, at all queries; both outcomes weigh the same; Adam at 1e-3.
        Different: rows are standardised; weights decay (AdamW 1e-2) instead of a penalty on their squares; training
        ends early on held-out start states, after 1,000 epochs at the latest; the score is then calibrated, which keeps
        its order; queries later than the shortest episode of the task are masked (`Failure(cut=True)`), so that the
        clock cannot give the outcome away. A query is a chunk of actions here, a control step or a chunk there.
        """
        training = Training(epochs=1000, patience=20)
        return cls(site, tokens, pool, MLP((256,), dropout=0.0), Failure(), RunningSum(), training, seed)

    @classmethod
    def safe_lstm(
        cls, site: SiteKey = LAST_LAYER, tokens: str = "action_read", pool: str = "mean", seed: int = 0
    ) -> RiskPredictor:
        """SAFE-LSTM (Gu et al. 2025, arXiv 2506.09937): one score per episode's failure, off the last layer so far.

        Taken over: the last layer as in `safe_mlp`; one LSTM layer of 256 and a linear read-out; cross-entropy at all
        queries; both outcomes weigh the same; Adam at 3e-4. Their optional terms (weights over time, hard negatives)
        are left out, as by default there. Different: as in `safe_mlp`.
        """
        training = Training(learning_rate=3e-4, epochs=1000, patience=20)
        return cls(site, tokens, pool, LSTM(256, 1, dropout=0.0), Failure(), None, training, seed)

    # -- fitting

    def fit(self, train: RolloutStore, *, controls: bool = True) -> RiskPredictor:
        """Fit the network, and with `controls` the same network to each of the controls; an earlier fit is forgotten.

        Raises:
            UnknownName: the store has no such site, tokens or pooling, or there is no such target.
            ValueError: no output has both labels.
        """
        data = self.read(train)
        columns = dict(zip(data.labels.outputs, data.labels.values.T, strict=True))
        if not any({0.0, 1.0} <= set(column) for column in columns.values()):
            raise ValueError(f"no output has both labels in the {len(train)} training episodes: {', '.join(columns)}")
        known = data.labelled()
        self.networks_ = data.fit(self.estimator_, known, self.seed, FITS if controls else (PROBE,))
        self.sites_ = data.site.sites
        self.outputs_ = data.labels.outputs
        self.flags_ = tuple(f"{self.outputs_[place]}: {text}" for place, text in self.networks_[PROBE].flags)
        self.trained_on_: frozenset[StartState] = start_states(unit_of_episode(train).values())
        self.source_: dict[str, Any] = {
            "data": dict(train.manifest.settings),
            "selection": train.manifest.selection,
            "episodes": len(train),
            "queries": int(known.sum()),
            "positive": {output: int(np.nansum(column)) for output, column in columns.items()},
            "masked": dict(data.labels.masked),
            "fitting": dict(self.networks_[PROBE].facts),
            "start_states": fingerprint(self.trained_on_),
            "versions": provenance(),
        }
        return self

    @property
    def estimator_(self) -> Recipe:
        """What is fitted, to the activations and to the controls."""
        return Recipe(self.network, self.over_time, self.training)

    # -- reading

    def decision_function(self, rows: RolloutStore | Float[Array, "queries width"]) -> Float[Array, "queries outputs"]:
        """Log odds of the queries of a store, or of the rows of one episode from its first query on."""
        network = self.fitted[PROBE]
        if not isinstance(rows, RolloutStore):
            return network.scores(rows, np.zeros(len(rows), dtype=int))
        loaded = [rows.load(site, self.tokens, self.pool) for site in self.sites_]
        return network.scores(np.hstack([x for x, _ in loaded]), loaded[0][1]["episode"].to_numpy())

    def predict_proba(self, rows: RolloutStore | Float[Array, "queries width"]) -> Float[Array, "queries outputs"]:
        """Probability of each output, see `decision_function`."""
        return probabilities(self.decision_function(rows))

    def start(self) -> Streamed:
        """Where an episode begins that will be shown query by query."""
        _ = self.fitted
        return Streamed()

    def step(
        self, rows: Float[Array, "episodes width"], state: Streamed
    ) -> tuple[Float[Array, "episodes outputs"], Streamed]:
        """Probabilities at the next query of one episode or of several side by side, and what to go on with.

        They are those that `predict_proba` gives for the whole episode. `state` is not changed, so that an episode can
        be forked.

        Args:
            rows: one per episode; activations of several sites side by side, see `rows_of`.
            state: of `start`, or of the last step.
        """
        scores, state = self.fitted[PROBE].step(rows, state)
        return probabilities(scores), state

    def rows_of(self, cache: Any) -> Float[Array, "episodes width"]:
        """What `step` wants, of a forward pass that captured `sites_` at least at the tokens."""
        _ = self.fitted
        parts = [pooled(cache, site, self.tokens, self.pool) for site in self.sites_]
        return np.hstack([part.detach().float().cpu().numpy() for part in parts])

    def evaluate(self, test: RolloutStore, *, min_episodes: int = MIN_EPISODES, draws: int = DRAWS) -> ProbeReport:
        """The predictor and its controls on episodes of other start states; see `Probe.evaluate`.

        Raises:
            ValueError: a start state of the training is in `test`; the message names some.
        """
        networks: Mapping[str, Any] = self.fitted
        refuse_shared(self.trained_on_, start_states(unit_of_episode(test).values()))
        as_probe = cast("Probe", self)  # judging asks for nothing that a predictor lacks
        report = judge(as_probe, networks, test, min_episodes=min_episodes, draws=draws)
        return replace(report, flags=(*report.flags, *self.flags_))

    def read(self, store: RolloutStore) -> PredictorData:
        """Activations, control features and labels of a store as this predictor sees them."""
        sites: Sequence[SiteKey] = self.site if isinstance(self.site, list) else [self.site]
        if not sites:
            raise ValueError("the list of sites is empty")
        return PredictorData.of(store, sites, self.tokens, self.pool, target(self.target))

    def save(self, folder: str | Path) -> None:
        """Write `predictor.safetensors` and `predictor.json`: the networks of predictor and controls, no pickle.

        Raises:
            UnknownName: a target that cannot be stored.
        """
        save_predictor(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> RiskPredictor:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: there is no predictor in this folder.
            ValueError: a format that this version does not know.
        """
        return load_predictor(cls, Path(folder))

    def hub_facts(self) -> Mapping[str, Any]:
        """What the card on the Hub says of its making."""
        place = {"sites": [site.name for site in self.sites_], "tokens": self.tokens, "pool": self.pool}
        return {**place, "outputs": self.outputs_, "flags": self.flags_, "source": self.source_}

    def __repr__(self) -> str:
        fitted = f", {self.source_['episodes']} episodes" if hasattr(self, "source_") else ", not fitted"
        over = "" if self.over_time is None else f", {self.over_time}"
        name = target(self.target).name
        return f"RiskPredictor({self.site!r}, tokens={self.tokens!r}, {self.network}, {name!r}{over}{fitted})"

    @property
    def fitted(self) -> Mapping[str, FittedNetwork]:
        """`probe` or a control -> what was fitted.

        Raises:
            ValueError: nothing was.
        """
        if not hasattr(self, "networks_"):
            raise ValueError("this predictor is not fitted: call fit first")
        return self.networks_
