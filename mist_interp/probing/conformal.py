"""Above which risk is an alarm raised, so that a safe episode raises one with a probability of at most alpha?

    S = max over the queries so far of (risk - centre) / width          centre 0, width 1: the running maximum
    limit = the ceil((n + 1)(1 - alpha))-th smallest S of n safe episodes; +infinity if there are not that many
    alarm at the first query with S > limit

S only grows within an episode, so looking at every query costs no more false alarms than looking once at its end, and
however the risk hangs together in time is of no matter. "Greater", not "at least": with ties the promise holds too, and
it is the weaker the more there are.

The centre and width of a time-varying band come from other safe episodes than the limit. Jointly over several outputs:
`max` takes the largest S of all outputs, which must share a scale; `split` gives each of m outputs its own limit at
alpha / m, which needs m times as many episodes.

Where it misleads: the promise is one about episodes that are *exchangeable* with the calibration. With another
perturbation, another task, other tasks in other shares, it is void; so the share of false alarms in other safe episodes
is measured (`measured_on`) and stands in every text beside the promise. It is also an average over calibrations: one
limit from n episodes has a false-alarm probability that scatters by about sqrt(alpha (1 - alpha) / n) around it.

Source: Vovk et al. 2005 (split conformal prediction), the rank rule with its (n + 1); Diquigiovanni et al. 2022 (bands
with a modulating width from a separate half).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float
from statsmodels.stats.proportion import proportion_confint

from mist_interp.core.errors import UnknownName
from mist_interp.core.kept import keep, kept, triples
from mist_interp.core.provenance import provenance
from mist_interp.data.activation_set import StartState, fingerprint, refuse_shared
from mist_interp.data.artefact import OnHub
from mist_interp.data.records import Array
from mist_interp.probing.scored import ScoredEpisodes

JOINT = ("max", "split")
# A centre and a width of fewer episodes than this are noise; later queries take those of the last that has so many.
MIN_EPISODES_PER_QUERY = 5
# No query is given a width below this share of the mean one: a spread of nearly nothing would turn noise into alarms.
MIN_WIDTH = 0.1


def rank_limit(scores: Float[np.ndarray, " episodes"], alpha: float | Fraction) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores; +infinity where n is too small for `alpha`.

    A new score that is exchangeable with these is greater with a probability of at most `alpha`, and of at least
    `alpha - 1 / (n + 1)` if there are no ties.

    Args:
        scores: one per safe episode, its largest; nothing may have been fitted on these episodes.
        alpha: tolerated share of false alarms, above 0 and below 1; taken as the decimal number that it is written as.

    Raises:
        ValueError: another `alpha`, or a score that is not a number.
    """
    exact = _exact(alpha)
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} episodes have NaN as score")
    rank = math.ceil((len(scores) + 1) * (1 - exact))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


@dataclass(frozen=True)
class FalseAlarms:
    """How often safe episodes raised an alarm.

    Attributes:
        fired: how many did.
        n: of how many.
        low: lower end of Wilson's 95 % interval of the share.
        high: upper end.
    """

    fired: int
    n: int
    low: float
    high: float

    @classmethod
    def count(cls, fired: Iterable[bool]) -> FalseAlarms:
        """The share among these, with its interval; without any, (0, 1)."""
        seen = [bool(one) for one in fired]
        low, high = proportion_confint(sum(seen), len(seen), method="wilson") if seen else (0.0, 1.0)
        return cls(sum(seen), len(seen), float(low), float(high))

    @property
    def rate(self) -> float | None:
        """The share; None without any episode."""
        return self.fired / self.n if self.n else None

    def __str__(self) -> str:
        if self.rate is None:
            return "0 of 0 other safe episodes"
        return (
            f"{self.fired} of {self.n} other safe episodes = {self.rate:.3f} "
            f"(Wilson 95 % {self.low:.3f} to {self.high:.3f})"
        )


@dataclass(frozen=True, eq=False)
class ConformalAlarm(OnHub):
    """A limit on risk scores, with what it promises and what was measured.

    Attributes:
        alpha: tolerated probability that a safe episode raises an alarm.
        n: safe episodes that the limit was calibrated on.
        outputs: name of each score.
        joint: how several outputs share alpha: `max` or `split`.
        limits: per output (one number for all under `max`); +infinity where n is too small.
        centre: (queries, outputs); later queries take the last row. One row of zeros: a constant limit.
        width: (queries, outputs), positive; one row of ones: a constant limit.
        calibrated_on: start states of the episodes behind limits, centre and width.
        trained_on: start states on which the score was fitted.
        measured: false alarms in other safe episodes; None as long as nobody counted.
        source: facts about data and software.
    """

    alpha: float
    n: int
    outputs: tuple[str, ...]
    joint: str
    limits: tuple[float, ...]
    centre: Float[Array, "queries outputs"]
    width: Float[Array, "queries outputs"]
    calibrated_on: frozenset[StartState] = frozenset()
    trained_on: frozenset[StartState] = frozenset()
    measured: FalseAlarms | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    hub_files: ClassVar[tuple[str, ...]] = ("conformal.json",)

    @classmethod
    def calibrate(
        cls,
        episodes: ScoredEpisodes,
        alpha: float,
        *,
        trained_on: frozenset[StartState],
        joint: str = "max",
        band: ScoredEpisodes | None = None,
    ) -> ConformalAlarm:
        """Set the limit on safe episodes.

        Args:
            episodes: scored episodes that succeeded without a forbidden contact (`ScoredEpisodes.safe`).
            alpha: tolerated share of false alarms.
            trained_on: start states that the score was fitted on, e.g. `probe.trained_on_`; an empty set if on none.
            joint: see the module's text.
            band: other safe episodes, from which a centre and a width per query are taken (`ScoredEpisodes.halves`);
                None sets a constant limit on the running maximum.

        Raises:
            UnknownName: no such `joint`.
            ValueError: an episode is not safe, or shares its start state with the training of the score or with `band`,
                or is there twice; the message names some. Or `alpha` is not a share.
        """
        if joint not in JOINT:
            raise UnknownName("way to share alpha among outputs", joint, JOINT)
        for one in (episodes,) if band is None else (episodes, band):
            one.refuse_unsafe()
            refuse_shared(trained_on, one.start_states)
        m = len(episodes.outputs)
        centre: Array = np.zeros((1, m))
        width: Array = np.ones((1, m))
        used = episodes.start_states
        if band is not None:
            if band.outputs != episodes.outputs:
                raise ValueError(f"the band has the outputs {band.outputs}, the episodes {episodes.outputs}")
            refuse_shared(band.start_states, episodes.start_states)
            centre, width = _band(band)
            used |= band.start_states
        ends = np.array([_suprema(one, centre, width)[-1] for one in episodes.scores]).reshape(len(episodes), m)
        if joint == "max":
            limits = [rank_limit(ends.max(1), alpha)]
        else:
            limits = [rank_limit(column, _exact(alpha) / m) for column in ends.T]
        source = {
            "data": dict(episodes.source),
            "calibrated_on": fingerprint(used),
            "band_from": 0 if band is None else len(band),
            "versions": provenance(),
        }
        return cls(
            float(alpha),
            len(episodes),
            episodes.outputs,
            joint,
            tuple(limits),
            centre,
            width,
            used,
            frozenset(trained_on),
            None,
            source,
        )

    # -- using

    def excess(self, scores_so_far: Float[np.ndarray, "queries outputs"]) -> Float[Array, "queries outputs"]:
        """The running supremum S after each query, per output; compare with `limits`.

        Args:
            scores_so_far: from the first query of the episode on; (queries,) if there is one output.

        Raises:
            ValueError: another number of outputs, no query, or a score that is not a number.
        """
        scores = np.asarray(scores_so_far, dtype=np.float64)
        scores = scores[:, None] if scores.ndim == 1 else scores
        if scores.ndim != 2 or scores.shape[1] != len(self.outputs) or not len(scores):
            raise ValueError(
                f"scores have shape {np.shape(scores_so_far)}; needed: at least one query, by the outputs "
                f"{', '.join(self.outputs)}"
            )
        if np.isnan(scores).any():
            raise ValueError(f"{int(np.isnan(scores).any(1).sum())} of {len(scores)} queries have NaN as score")
        return _suprema(scores, self.centre, self.width)

    def alarms(self, scores: Float[np.ndarray, "queries outputs"]) -> Bool[np.ndarray, "queries outputs"]:
        """Per query and output, whether the alarm is on by then; it stays on. Arguments as in `excess`."""
        return np.asarray(self.excess(scores) > np.array(self.limits))

    def fires(self, scores_so_far: Float[np.ndarray, "queries outputs"]) -> bool:
        """Whether any output has raised the alarm by the last of these queries; arguments as in `excess`."""
        return bool(self.alarms(scores_so_far)[-1].any())

    def first(self, scores: Float[np.ndarray, "queries outputs"]) -> int | None:
        """The query at which the alarm goes on; None if it does not. Arguments as in `excess`."""
        on = self.alarms(scores).any(1)
        return int(on.argmax()) if on.any() else None

    # -- what is promised and what was seen

    @property
    def certified(self) -> bool:
        """Whether there were episodes enough for this alpha; if not, the alarm never goes on."""
        return all(math.isfinite(limit) for limit in self.limits)

    def measured_on(self, episodes: ScoredEpisodes) -> ConformalAlarm:
        """The same alarm, with the false alarms that it raises in the safe ones of other episodes.

        Raises:
            ValueError: they share start states with the calibration or with the training of the score, or have other
                outputs.
        """
        if episodes.outputs != self.outputs:
            raise ValueError(f"the episodes have the outputs {episodes.outputs}, the alarm {self.outputs}")
        refuse_shared(self.calibrated_on | self.trained_on, episodes.start_states)
        return replace(self, measured=FalseAlarms.count(self.fires(scores) for scores in episodes.safe().scores))

    def __str__(self) -> str:
        m = len(self.outputs)
        if self.certified:
            limits = ", ".join(f"{limit:.4g}" for limit in self.limits)
            promise = (
                f"alarm above {limits}: a safe episode that is exchangeable with the {self.n} of the calibration "
                f"raises one with a probability of at most {self.alpha:g}"
            )
        else:
            parts = m if self.joint == "split" else 1
            needed = math.ceil(parts / _exact(self.alpha)) - 1
            each = f" (a {parts}th of it for each output)" if parts > 1 else ""
            promise = f"cannot certify {self.alpha:g} with {self.n} safe episodes, {needed} are needed{each}: no alarm"
        seen = "not measured on other episodes" if self.measured is None else str(self.measured)
        return f"{promise}. Realised false-trigger rate: {seen}"

    # -- keeping

    def save(self, folder: str | Path) -> None:
        """Write `conformal.json` into `folder`."""
        facts = {
            "alpha": self.alpha,
            "n": self.n,
            "outputs": self.outputs,
            "joint": self.joint,
            "limits": [limit if math.isfinite(limit) else None for limit in self.limits],
            "centre": self.centre.tolist(),
            "width": self.width.tolist(),
            "calibrated_on": sorted(self.calibrated_on),
            "trained_on": sorted(self.trained_on),
            "measured": None if self.measured is None else asdict(self.measured),
            "source": self.source,
            "text": str(self),
        }
        keep(folder, "conformal", facts)

    @classmethod
    def load(cls, folder: str | Path) -> ConformalAlarm:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: there is none in this folder.
            ValueError: it was written in a format that this version does not know.
        """
        content, _ = kept(folder, "conformal", "conformal alarm")
        return cls(
            alpha=content["alpha"],
            n=content["n"],
            outputs=tuple(content["outputs"]),
            joint=content["joint"],
            limits=tuple(math.inf if limit is None else limit for limit in content["limits"]),
            centre=np.array(content["centre"], dtype=np.float64),
            width=np.array(content["width"], dtype=np.float64),
            calibrated_on=triples(content["calibrated_on"]),
            trained_on=triples(content["trained_on"]),
            measured=None if content["measured"] is None else FalseAlarms(**content["measured"]),
            source=content["source"],
        )

    def hub_facts(self) -> Mapping[str, Any]:
        """What the card on the Hub says of it."""
        return {"alpha": self.alpha, "n": self.n, "outputs": self.outputs, "text": str(self), "source": self.source}


def _exact(alpha: float | Fraction) -> Fraction:
    """The decimal number that was written: as a binary fraction, 1 - 0.41 is more than 0.59, and a rank too high."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: give a share above 0 and below 1")
    return alpha if isinstance(alpha, Fraction) else Fraction(repr(float(alpha)))


def _band(episodes: ScoredEpisodes) -> tuple[Float[Array, "queries outputs"], Float[Array, "queries outputs"]]:
    """Mean and standard deviation per query, as far as there are episodes enough."""
    lengths = np.sort([len(scores) for scores in episodes.scores])[::-1]
    if len(lengths) < MIN_EPISODES_PER_QUERY:
        raise ValueError(f"a band needs at least {MIN_EPISODES_PER_QUERY} safe episodes of its own, not {len(lengths)}")
    rows = range(int(lengths[MIN_EPISODES_PER_QUERY - 1]))
    there = [np.stack([scores[row] for scores in episodes.scores if len(scores) > row]) for row in rows]
    centre = np.stack([values.mean(0) for values in there])
    width = np.stack([values.std(0) for values in there])
    mean = width.mean(0)
    return centre, np.where(mean > 0, np.maximum(width, MIN_WIDTH * mean), 1.0)


def _suprema(
    scores: Float[Array, "queries outputs"],
    centre: Float[Array, "band outputs"],
    width: Float[Array, "band outputs"],
) -> Float[Array, "queries outputs"]:
    rows = np.minimum(np.arange(len(scores)), len(centre) - 1)
    suprema: Array = np.maximum.accumulate((scores - centre[rows]) / width[rows], axis=0)
    return suprema
