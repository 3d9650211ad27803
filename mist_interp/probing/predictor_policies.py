"""Does what is read off one policy hold for another one?

Hidden states of two policies have different widths and axes. An *adapter* per policy brings its rows to a common width:

    whitened   (x - mean) / deviation, projected on the leading principal directions, each scaled to unit variance
    matched    (x - mean) / deviation, then the linear map (ridge) that comes nearest to the whitened rows of the
               reference policy at the same control step of the same unit, up to `match_until` steps

Neither looks at a label, so a policy that was never labelled gets one from rollouts alone. Principal directions of two
policies need not mean the same, in order or in sign: with whitening only, a transfer at chance is what is to be
expected, and one below chance possible. Where both policies ran the same units, the beginnings of the episodes show the
same scenes, which is what matching rests on; it is no longer the same scene once the policies have moved apart.

The trunk is one network over the common features of all policies, fitted to the labels of those that have some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import SiteKey
from mist_interp.data.activation_set import StartState, refuse_shared, start_states, unit_of_episode
from mist_interp.data.records import Array
from mist_interp.data.store import RolloutStore
from mist_interp.probing.networks import MLP, Network
from mist_interp.probing.networks_fit import fit_network, standardisation
from mist_interp.probing.networks_fitted import FittedNetwork, Recipe, Training, probabilities
from mist_interp.probing.targets import Target, target
from mist_interp.probing.temporal import OverTime

WAYS = ("whitened", "matched")
# Ridge of the matching, in units of one row per common feature.
_RIDGE = 1.0
_UNIT = ["suite", "task", "init_state", "perturbation", "simulator_seed"]


@dataclass(frozen=True, eq=False)
class Adapter:
    """Rows of one policy -> common features.

    Attributes:
        mean: (width,) of the rows that it was fitted on.
        scale: (width,) their deviation.
        weights: (width, common) of the standardised rows.
        way: `whitened` or `matched`.
        fitted_on: start states of those rows; judging on them would normalise outside of the fold.
    """

    mean: Float[Array, " width"]
    scale: Float[Array, " width"]
    weights: Float[Array, "width common"]
    way: str
    fitted_on: frozenset[StartState]

    def __call__(self, x: Float[Array, "rows width"]) -> Float[Array, "rows common"]:
        """Common features of rows.

        Raises:
            ValueError: rows of another width.
        """
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"this adapter was fitted on rows of width {len(self.mean)}; given {x.shape}")
        return np.asarray((x - self.mean) / self.scale @ self.weights)


class PolicyPredictor:
    """One read-out for several policies.

    Args:
        site: where to read, in all policies or by the name of each.
        tokens: token selector under which the activations were stored.
        pool: how the tokens were pooled.
        common: width of the common features.
        way: `whitened`, or `matched` to the first policy that is fitted.
        match_until: last control step that is matched.
        network: the trunk.
        target: what to foresee.
        over_time: how the scores of the queries so far become one.
        training: how the trunk is fitted.
        seed: of everything that is drawn.

    Attributes (after `fit`):
        adapters_: policy -> its adapter.
        trunk_: the network over the common features.
        outputs_: names of the target's outputs.
        trained_on_: start states whose labels were fitted.
    """

    def __init__(
        self,
        site: SiteKey | Mapping[str, SiteKey],
        tokens: str = "action_read",
        pool: str = "mean",
        common: int = 32,
        way: str = "matched",
        match_until: int = 32,
        network: Network = MLP(),  # noqa: B008 - frozen
        target: str | Target = "failure",
        over_time: OverTime | None = None,
        training: Training = Training(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        self.site = site
        self.tokens = tokens
        self.pool = pool
        self.common = common
        self.way = way
        self.match_until = match_until
        self.network = network
        self.target = target
        self.over_time = over_time
        self.training = training
        self.seed = seed

    def fit(self, train: Mapping[str, RolloutStore]) -> PolicyPredictor:
        """Fit an adapter for every policy and the trunk to the labels of all; an earlier fit is forgotten.

        The first policy is the reference of the matching, and always whitened.

        Raises:
            UnknownName: no such way, or a store has no such site.
            ValueError: no policy, no label, fewer rows than common features, or no unit that both policies ran.
        """
        if self.way not in WAYS:
            raise UnknownName("way to adapt", self.way, WAYS)
        if not train:
            raise ValueError("give the rollouts of one policy at least, by its name")
        self.adapters_: dict[str, Adapter] = {}
        parts = []
        for name, store in train.items():
            self.adapt(name, store, train)
            labels = target(self.target).labels(store)
            starts = {key: (u.suite, u.task, u.init_state) for key, u in unit_of_episode(store).items()}
            group = np.array([f"{starts[key]}" for key in labels.episode])  # one situation, whichever policy is in it
            episode = np.array([f"{name}/{key}" for key in labels.episode])
            parts.append((self._features(name, store)[0], labels, group, episode))
        self.outputs_ = parts[0][1].outputs
        self.trunk_, _ = fit_network(
            Recipe(self.network, self.over_time, self.training),
            np.concatenate([x for x, *_ in parts]),
            np.concatenate([labels.values for _, labels, *_ in parts]),
            episode=np.concatenate([episode for *_, episode in parts]),
            group=np.concatenate([group for *_, group, _ in parts]),
            seed=self.seed,
        )
        self.trained_on_ = frozenset[StartState]().union(
            *(start_states(unit_of_episode(store).values()) for store in train.values())
        )
        return self

    def adapt(self, name: str, rollouts: RolloutStore, reference: Mapping[str, RolloutStore]) -> PolicyPredictor:
        """Give a policy its adapter; labels are not read, so it need not be one whose labels were fitted.

        Args:
            name: of the policy.
            rollouts: its rollouts, of other start states than it will be judged on.
            reference: rollouts of the policy that was fitted first, by its name, to match with; only it is looked at.

        Raises:
            ValueError: fewer rows than common features, or no unit that both policies ran.
        """
        x, steps = _rows(rollouts, self._site(name), self.tokens, self.pool)
        states = start_states(unit_of_episode(rollouts).values())
        first = next(iter(self.adapters_), name)
        if name == first or self.way == "whitened":
            self.adapters_[name] = whitening(x, self.common, states)
            return self
        base, base_steps = _rows(reference[first], self._site(first), self.tokens, self.pool)
        own, other = matching(steps, base_steps, self.match_until)
        if len(own) < self.common:
            raise ValueError(
                f"{name} and {first} have {len(own)} queries of the same unit and step up to step {self.match_until}; "
                f"{self.common} at least are needed to match {self.common} features: run the same units, or use "
                "way='whitened'"
            )
        self.adapters_[name] = matched(x, own, self.adapters_[first](base[other]), states)
        return self

    def decision_function(self, store: RolloutStore, policy: str) -> Float[Array, "queries outputs"]:
        """Log odds of the queries of a store of that policy.

        Raises:
            UnknownName: the policy has no adapter.
            ValueError: labels of these start states were fitted, or the adapter was fitted on them.
        """
        states = start_states(unit_of_episode(store).values())
        network = self.fitted
        if policy not in self.adapters_:
            raise UnknownName("policy with an adapter", policy, self.adapters_)
        refuse_shared(self.trained_on_ | self.adapters_[policy].fitted_on, states)
        x, rows = self._features(policy, store)
        return network.scores(x, rows["episode"].to_numpy())

    def predict_proba(self, store: RolloutStore, policy: str) -> Float[Array, "queries outputs"]:
        """Probability of each output; see `decision_function`."""
        return probabilities(self.decision_function(store, policy))

    @property
    def fitted(self) -> FittedNetwork:
        """The trunk.

        Raises:
            ValueError: nothing was fitted.
        """
        if not hasattr(self, "trunk_"):
            raise ValueError("this predictor is not fitted: call fit first")
        return self.trunk_

    def _site(self, policy: str) -> SiteKey:
        if not isinstance(self.site, Mapping):
            return self.site
        if policy not in self.site:
            raise UnknownName("policy with a site", policy, self.site)
        return self.site[policy]

    def _features(self, policy: str, store: RolloutStore) -> tuple[Float[Array, "queries common"], pd.DataFrame]:
        x, rows = store.load(self._site(policy), self.tokens, self.pool)
        return self.adapters_[policy](x), rows


def whitening(x: Float[Array, "rows width"], common: int, fitted_on: frozenset[StartState]) -> Adapter:
    """Adapter to the leading principal directions, each with unit variance.

    Raises:
        ValueError: the rows have fewer directions than wanted.
    """
    mean, scale = standardisation(x)
    rows = (x - mean) / scale
    _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
    if int((sizes > 1e-6 * sizes.max(initial=0.0)).sum()) < common:
        raise ValueError(f"{len(x)} rows of width {x.shape[1]} vary in fewer than {common} directions")
    weights = directions[:common].T / (sizes[:common] / np.sqrt(len(x)))
    # A direction has no sign of its own: its largest weight is made positive.
    weights *= np.sign(weights[np.abs(weights).argmax(0), np.arange(common)])
    return Adapter(mean, scale, weights, "whitened", fitted_on)


def matched(
    x: Float[Array, "rows width"],
    own: Sequence[int] | np.ndarray,
    wanted: Float[Array, "pairs common"],
    fitted_on: frozenset[StartState],
) -> Adapter:
    """Adapter by ridge regression.

    Args:
        x: all rows of the policy, for its mean and deviation.
        own: rows that have a partner.
        wanted: common features of the partners.
        fitted_on: start states of the rows.
    """
    mean, scale = standardisation(x)
    rows = (x[own] - mean) / scale
    # The map has no constant: both sides are centred, so that only what varies between scenes is matched.
    rows, goal = rows - rows.mean(0), wanted - wanted.mean(0)
    ridge = _RIDGE * wanted.shape[1] * np.eye(rows.shape[1])
    return Adapter(mean, scale, np.linalg.solve(rows.T @ rows + ridge, rows.T @ goal), "matched", fitted_on)


def matching(own: pd.DataFrame, other: pd.DataFrame, until: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the queries of two policies at the same control step, up to `until`, of the same unit."""
    key = [*_UNIT, "step"]
    left, right = (frame.assign(row=np.arange(len(frame))).drop_duplicates(key) for frame in (own, other))
    pairs = left[left["step"] <= until].merge(right, on=key, suffixes=("_own", "_other"))
    return pairs["row_own"].to_numpy(), pairs["row_other"].to_numpy()


def _rows(store: RolloutStore, site: SiteKey, tokens: str, pool: str) -> tuple[Array, pd.DataFrame]:
    """Activations, and the unit and step of each row."""
    x, _ = store.load(site, tokens, pool)
    units = store.episodes().set_index("episode")[_UNIT]
    queries = store.queries(["episode", "step"])
    return x, queries.join(units, on="episode")
