"""Would acting help here, or would it spoil what goes well by itself?

    gain       B(none) - B(arm)                     of one unit and its forked twin: above 0 saved, below 0 spoilt
    predicted  w standardised(rows) + b             ridge regression, the penalty chosen by leaving start states out
    act        predicted > limit                    limit = the ceil((n + 1)(1 - alpha))-th smallest prediction among
                                                    n other units that acting spoils

B counts what went wrong, such as 1 for a failure and 1 for a contact. The rows are the activations at the trigger,
where the twins part. The limit is conformal, as that of the alarm (`mist_interp.probing.conformal`): of a unit that
acting would spoil and that is exchangeable with those n, the promise is that it is acted upon with a probability of at
most alpha. A limit may also be given outright (`act_above`): 0 acts wherever acting is expected to help, and promises
nothing.

Where it misleads: it is fitted and calibrated at the trigger, so a gate asks it there and nowhere else. Twins differ by
luck as well (any change re-draws the outcome), so most of a gain cannot be predicted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold

from mist_interp.core.kept import keep, kept, triples
from mist_interp.core.names import Site, SiteKey
from mist_interp.core.provenance import provenance
from mist_interp.data.activation_set import StartState, fingerprint, refuse_shared, start_states
from mist_interp.data.artefact import OnHub
from mist_interp.data.capture import pooled
from mist_interp.data.records import Array, Unit
from mist_interp.probing.conformal import rank_limit

# Beyond these a prediction is hardly more than the mean gain, so an arm that helps on average would act everywhere.
PENALTIES = (10.0, 100.0, 1000.0)
FOLDS = 5
ARRAYS = ("mean", "scale", "weights", "intercept")


@dataclass(frozen=True)
class TwinGain:
    """A unit whose alarm came on, and what acting changed.

    Attributes:
        unit: what was run.
        row: (width,) what was read at the trigger.
        gain: B(none) - B(arm).
    """

    unit: Unit
    row: Float[Array, " width"]
    gain: float


class Benefit(OnHub):
    """Predicts from the activations at the trigger what acting will change, and acts only where that is enough.

    Args:
        site: one site of the network, such as ("resid_post", 2).
        tokens: which tokens' states are read.
        pool: how they are pooled.

    Attributes (after `fit`):
        site_: the site.
        mean_, scale_, weights_: (width,) of the standardisation and of the regression.
        intercept_: (1,).
        threshold_: what a prediction must exceed; infinity until `calibrate` has found one or `act_above` was told.
        alpha_, harmed_: what the threshold promises, and from how many spoilt units.
        trained_on_, calibrated_on_: start states that were fitted on, and behind the threshold.
        source_: counts and versions.
    """

    hub_files: ClassVar[tuple[str, ...]] = ("benefit.json", "benefit.safetensors")

    def __init__(self, site: SiteKey, tokens: str = "action_read", pool: str = "mean") -> None:
        self.site, self.tokens, self.pool = site, tokens, pool

    def fit(self, twins: Sequence[TwinGain], site: Site) -> Benefit:
        """Fit on twins; an earlier fit is forgotten, and nothing is acted upon before `calibrate` or `act_above`.

        Args:
            twins: triggered units.
            site: the site as the policy names it.

        Raises:
            ValueError: all gains are the same, or all twins are of one start state.
        """
        gains = np.array([twin.gain for twin in twins], dtype=np.float64)
        if len(start_states(twin.unit for twin in twins)) < 2 or len(set(gains)) < 2:
            raise ValueError(f"{len(twins)} twins with the gains {sorted({t.gain for t in twins})} teach no difference")
        rows = np.stack([twin.row for twin in twins]).astype(np.float64)
        self.mean_, scale = rows.mean(0), rows.std(0)
        self.scale_ = np.where(scale > 0, scale, 1.0)
        states = [f"{t.unit.suite}/{t.unit.task}/{t.unit.init_state}" for t in twins]
        folds = GroupKFold(min(FOLDS, len(set(states)))).split(rows, groups=states)
        ridge = RidgeCV(PENALTIES, cv=list(folds), scoring="neg_mean_squared_error").fit(
            (rows - self.mean_) / self.scale_, gains
        )
        self.site_, self.weights_, self.intercept_ = site, ridge.coef_, np.array([ridge.intercept_])
        self.threshold_, self.harmed_ = math.inf, 0
        self.alpha_: float | None = None
        self.calibrated_on_: frozenset[StartState] = frozenset()
        self.trained_on_: frozenset[StartState] = start_states(twin.unit for twin in twins)
        counts = {name: int((np.sign(gains) == sign).sum()) for name, sign in GAINS.items()}
        self.source_: dict[str, Any] = {
            "twins": len(twins),
            **counts,
            "penalty": float(ridge.alpha_),
            "start_states": fingerprint(self.trained_on_),
            "versions": provenance(),
        }
        return self

    def calibrate(self, twins: Sequence[TwinGain], alpha: float) -> Benefit:
        """Set the threshold on other twins: with too few spoilt ones it is infinite, and the gate never opens.

        Raises:
            ValueError: nothing is fitted, a start state was fitted on, or alpha is no share.
        """
        self._check_fitted()
        states = start_states(twin.unit for twin in twins)
        refuse_shared(self.trained_on_, states)
        spoilt = [twin.row for twin in twins if twin.gain < 0]
        scores = self.predict(np.stack(spoilt)) if spoilt else np.zeros(0)
        self.threshold_ = rank_limit(scores, alpha)
        self.alpha_, self.harmed_ = float(alpha), len(spoilt)
        self.calibrated_on_ = states
        return self

    def act_above(self, limit: float) -> Benefit:
        """Set the threshold to a limit that promises nothing.

        Raises:
            ValueError: nothing is fitted, or the limit is not finite.
        """
        self._check_fitted()
        if not math.isfinite(limit):
            raise ValueError(f"limit={limit}; give a finite number, such as 0 to act wherever that is expected to help")
        self.threshold_, self.alpha_, self.harmed_ = float(limit), None, 0
        self.calibrated_on_ = frozenset()
        return self

    def predict(self, rows: Float[Array, "queries width"]) -> Float[Array, " queries"]:
        """The expected gain.

        Raises:
            ValueError: nothing is fitted.
        """
        self._check_fitted()
        found: Array = ((rows - self.mean_) / self.scale_) @ self.weights_ + self.intercept_[0]
        return found

    # -- in a gate

    @property
    def sites(self) -> tuple[SiteKey, ...]:
        """Where it reads."""
        return (self.site,)

    def row_of(self, cache: Any) -> Float[Array, " width"]:
        """What it reads of a captured query."""
        row: Array = pooled(cache, self.site, self.tokens, self.pool).detach().double().cpu().numpy()[0]
        return row

    def of(self, cache: Any) -> float:
        """The expected gain of acting at this query."""
        return float(self.predict(self.row_of(cache)[None])[0])

    def allows(self, gain: float) -> bool:
        """Whether this is enough to act."""
        return gain > self.threshold_

    def config(self) -> dict[str, Any]:
        """Everything that defines it, as JSON."""
        place = {"site": self.site_.name, "tokens": self.tokens, "pool": self.pool}
        promise = {"threshold": repr(float(self.threshold_)), "alpha": self.alpha_, "harmed": self.harmed_}
        seen = {"trained_on": fingerprint(self.trained_on_), "calibrated_on": fingerprint(self.calibrated_on_)}
        return place | promise | seen

    def check_units(self, units: Iterable[Unit]) -> None:
        """Refuse units on whose start states it was fitted or calibrated.

        Raises:
            ValueError: there is one; the message names it.
        """
        refuse_shared(self.trained_on_ | self.calibrated_on_, start_states(units))

    def _check_fitted(self) -> None:
        if not hasattr(self, "weights_"):
            raise ValueError("this benefit is not fitted: call fit first")

    def __str__(self) -> str:
        if not hasattr(self, "weights_"):
            return "not fitted"
        if self.alpha_ is None:
            given = f"acts above {self.threshold_:g} at the trigger, which promises nothing"
            return "not calibrated: never acts" if math.isinf(self.threshold_) else given
        if math.isinf(self.threshold_):
            return f"cannot certify alpha = {self.alpha_:g} with {self.harmed_} spoilt units: never acts"
        promise = f"a unit that acting spoils is acted upon with a probability of at most {self.alpha_:g}"
        return f"acts above {self.threshold_:.4g} at the trigger: {promise} (from {self.harmed_} such units)"

    # -- keeping

    def save(self, folder: str | Path) -> None:
        """Write `benefit.safetensors` and `benefit.json`; no pickle."""
        facts = {
            "site": self.site_.name,
            "tokens": self.tokens,
            "pool": self.pool,
            "threshold": None if math.isinf(self.threshold_) else self.threshold_,
            "alpha": self.alpha_,
            "harmed": self.harmed_,
            "trained_on": sorted(self.trained_on_),
            "calibrated_on": sorted(self.calibrated_on_),
            "source": self.source_,
            "text": str(self),
        }
        keep(folder, "benefit", facts, {name: torch.from_numpy(getattr(self, f"{name}_")) for name in ARRAYS})

    @classmethod
    def load(cls, folder: str | Path) -> Benefit:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: there is none in this folder.
            ValueError: a format that this version does not know.
        """
        facts, tensors = kept(folder, "benefit", "benefit")
        found = cls(Site(facts["site"]), facts["tokens"], facts["pool"])
        for name, values in tensors.items():
            setattr(found, f"{name}_", values.numpy())
        found.site_, found.source_ = Site(facts["site"]), facts["source"]
        found.threshold_ = math.inf if facts["threshold"] is None else facts["threshold"]
        found.alpha_, found.harmed_ = facts["alpha"], facts["harmed"]
        found.trained_on_, found.calibrated_on_ = triples(facts["trained_on"]), triples(facts["calibrated_on"])
        return found

    def hub_facts(self) -> Mapping[str, Any]:
        """What the card on the Hub says of its making."""
        return {"site": self.site_.name, "tokens": self.tokens, "text": str(self), "source": self.source_}


GAINS = {"saved": 1, "neither": 0, "spoilt": -1}
