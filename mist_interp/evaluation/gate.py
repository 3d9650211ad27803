"""When may an arm act: which risk, above which limit, for how long, how often, and only if it helps?

    z_d     = (risk_d - centre_d(q)) / width_d(q)          of dimension d at query q, as the alarm was calibrated
    on_d    goes on at z_d > limit_d, off again at z_d < limit_d - release
    fired   = any on_d, and budget left, and (benefit > its threshold at the first of them, if a benefit is asked for)

The first query with an on_d is that of the conformal alarm (`mist_interp.probing.conformal`), which promises of it: a
safe episode that is exchangeable with the calibration has one with a probability of at most alpha. What comes after
(hysteresis, budget, benefit) can only take queries away. Active queries without a gap are one intervention.

The gate looks at the *unedited* forward pass of every query of every arm, in `none` too. It is stated as data by
`config`, and every query logs what it saw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float

from mist_interp.core.actions import ActionChunk
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import SiteKey
from mist_interp.data.activation_set import StartState, fingerprint, refuse_shared, start_states
from mist_interp.data.capture import pooled
from mist_interp.data.records import Array, Unit
from mist_interp.probing.conformal import ConformalAlarm
from mist_interp.probing.predictor import RiskPredictor
from mist_interp.probing.probe import Probe


class RiskSource(Protocol):
    """What gives the risk of each output at a query, from that query and those before it in the episode."""

    @property
    def outputs(self) -> tuple[str, ...]: ...

    @property
    def sites(self) -> Sequence[SiteKey]: ...

    @property
    def trained_on(self) -> frozenset[StartState]: ...

    def start(self) -> Any: ...

    def step(self, cache: Any, state: Any) -> tuple[Float[Array, " outputs"], Any]: ...

    def config(self) -> dict[str, Any]: ...

    def check_units(self, units: Iterable[Unit]) -> None: ...


@dataclass(frozen=True)
class FittedRisk:
    """The risk that a fitted `Probe` or `RiskPredictor` reads.

    Attributes:
        model: fitted; its outputs are dimensions, or the one output of another target.
    """

    model: Probe | RiskPredictor

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `RiskSource`."""
        return tuple(self.model.outputs_)

    @property
    def sites(self) -> tuple[SiteKey, ...]:
        """See `RiskSource`."""
        return (self.model.site_,) if isinstance(self.model, Probe) else tuple(self.model.sites_)

    @property
    def trained_on(self) -> frozenset[StartState]:
        """See `RiskSource`."""
        return self.model.trained_on_

    def start(self) -> Any:
        """See `RiskSource`."""
        return None if isinstance(self.model, Probe) else self.model.start()

    def step(self, cache: Any, state: Any) -> tuple[Float[Array, " outputs"], Any]:
        """See `RiskSource`."""
        if isinstance(self.model, Probe):
            row = pooled(cache, self.model.site_, self.model.tokens, self.model.pool)
            return self.model.predict_proba(row.detach().float().cpu().numpy())[0], None
        risk, state = self.model.step(self.model.rows_of(cache), state)
        return risk[0], state

    def config(self) -> dict[str, Any]:
        """See `RiskSource`."""
        facts = {"read_by": type(self.model).__name__, "sites": [str(site) for site in self.sites]}
        place = {"tokens": self.model.tokens, "pool": self.model.pool, "outputs": list(self.outputs)}
        return facts | place | {"trained_on": fingerprint(self.model.trained_on_)}

    def check_units(self, units: Iterable[Unit]) -> None:
        """See `RiskSource`."""
        refuse_shared(self.model.trained_on_, start_states(units))


class BenefitSource(Protocol):
    """Do no harm: how much acting now is expected to help, and whether that is enough; such as `probing.Benefit`."""

    @property
    def sites(self) -> Sequence[SiteKey]: ...

    def of(self, cache: Any) -> float: ...

    def allows(self, gain: float) -> bool: ...

    def config(self) -> dict[str, Any]: ...

    def check_units(self, units: Iterable[Unit]) -> None: ...


@dataclass(frozen=True)
class GateState:
    """Where a gate stands in an episode; made anew at every query, so that an episode can be forked.

    Attributes:
        query: queries seen.
        source: of the risk source.
        on: outputs whose alarm is on.
        active: queries at which the gate was open.
        interventions: runs of such queries.
        open: whether it was open at the last query.
        run: length of the present such run, or of the last one.
        since: queries since the gate was last open.
        allowed: what the benefit said at the first query at which the gate would have opened; None before.
    """

    query: int = 0
    source: Any = None
    on: tuple[str, ...] = ()
    active: int = 0
    interventions: int = 0
    open: bool = False
    run: int = 0
    since: int = 0
    allowed: bool | None = None


class Look(NamedTuple):
    """What a detector saw in one query: score and verdict, the clean answer, and more where it knows more."""

    score: float | None
    fired: bool
    clean: ActionChunk | None
    risk: Mapping[str, float] = {}
    flagged: tuple[str, ...] = ()
    nearest: str = ""
    cache: Any = None
    facts: Mapping[str, Any] = {}


@dataclass
class Gate:
    """A risk source and the rules by which it opens the way to an arm; in the place of a `Detector`.

    Attributes:
        source: gives the risk.
        alarm: limits per output, with a band where they vary in time; or one limit for all outputs.
        release: how far below its limit (in units of z) a risk must fall to switch its alarm off; 0: at the limit.
        max_queries: most queries per episode at which the gate opens; None: no limit.
        max_interventions: most runs of such queries per episode.
        longest: most queries of one such run; the policy then has the robot to itself for `pause` queries.
        pause: queries after each such run at which the gate stays shut.
        benefit: asked once per episode, where the gate would first open: that is what its threshold is calibrated for.
        name: name in settings and figures.
    """

    source: RiskSource
    alarm: ConformalAlarm | float
    release: float = 0.0
    max_queries: int | None = None
    max_interventions: int | None = None
    longest: int | None = None
    pause: int = 0
    benefit: BenefitSource | None = None
    name: str = "gate"
    _state: GateState = field(default_factory=GateState, repr=False)

    def __post_init__(self) -> None:
        if not self.release >= 0:
            raise ValueError(f"gate {self.name!r}: release={self.release}; give 0 or more")
        for key in ("max_queries", "max_interventions"):
            if getattr(self, key) is not None and getattr(self, key) < 0:
                raise ValueError(f"gate {self.name!r}: {key}={getattr(self, key)}; give 0 or more, or None")
        if isinstance(self.alarm, ConformalAlarm):
            for output in self.alarm.outputs:
                if output not in self.source.outputs:
                    raise UnknownName("output of the gate's risk", output, self.source.outputs)
            if self.alarm.trained_on != self.source.trained_on:
                raise ValueError(
                    f"gate {self.name!r}: the alarm's limits were set for a risk fitted on "
                    f"{len(self.alarm.trained_on)} start states, this one was fitted on {len(self.source.trained_on)} "
                    "(or on others): calibrate an alarm for it"
                )
        if self.pause < 0 or (self.longest is not None and self.longest < 1):
            raise ValueError(f"gate {self.name!r}: longest={self.longest}, pause={self.pause}; give 1, 0 or more")
        self.begin()

    # -- settings

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs that can raise the alarm."""
        return self.alarm.outputs if isinstance(self.alarm, ConformalAlarm) else tuple(self.source.outputs)

    @property
    def threshold(self) -> float:
        """The largest z over its limit is the score of a query, so the gate's alarm goes on above 0."""
        return 0.0

    def config(self) -> dict[str, Any]:
        """Everything that defines the gate, as JSON."""
        if isinstance(self.alarm, ConformalAlarm):
            limits = [repr(float(limit)) for limit in self.alarm.limits]
            facts = {"alpha": self.alarm.alpha, "n": self.alarm.n, "joint": self.alarm.joint}
            alarm = {**facts, "limits": limits, "band": len(self.alarm.centre), "text": str(self.alarm)}
        else:
            alarm = {"limit": repr(float(self.alarm))}
        rules = {key: getattr(self, key) for key in ("release", "max_queries", "max_interventions", "longest", "pause")}
        rules["release"] = repr(float(self.release))
        facts = {"name": self.name, "risk": self.source.config(), "alarm": alarm, **rules}
        return facts | {"benefit": self.benefit.config() if self.benefit else None}

    def check_units(self, units: Iterable[Unit]) -> None:
        """Refuse units on which the risk or the benefit was fitted, or one of their limits set.

        Raises:
            ValueError: there is one; the message names it.
        """
        units = list(units)
        self.source.check_units(units)
        if self.benefit:
            self.benefit.check_units(units)
        if isinstance(self.alarm, ConformalAlarm):
            refuse_shared(self.alarm.calibrated_on | self.alarm.trained_on, start_states(units))

    # -- an episode

    @property
    def score(self) -> Gate:
        """What remembers earlier queries (the runner asks it for `begin`, `memory` and `recall`): the gate itself."""
        return self

    def begin(self) -> None:
        """An episode begins."""
        self._state = GateState(source=self.source.start())

    def memory(self) -> GateState:
        """Where the gate stands; it is never changed, so it may be kept."""
        return self._state

    def recall(self, memory: GateState) -> None:
        """Go on from there."""
        self._state = memory

    def see(self, vla: Any, inputs: PolicyInputs, sites: Sequence[SiteKey] = ()) -> Look:
        """Look at one query, the next of the episode.

        Args:
            vla: the policy.
            inputs: one query.
            sites: activations to be captured on the way, for the arm.

        Raises:
            ValueError: a risk or a benefit is not a number.
        """
        wanted = [*self.source.sites, *sites, *(self.benefit.sites if self.benefit else ())]
        with torch.no_grad():
            clean, cache = vla.run_with_cache(inputs, names=wanted)
        risk, source = self.source.step(cache, self._state.source)
        over, nearest, on = self.judge(risk, self._state)
        facts: dict[str, Any] = {"risk": dict(zip(self.source.outputs, map(_short, risk), strict=True)), "on": list(on)}
        spent = self.is_spent(self._state)
        opens = bool(on) and not spent
        if on and spent:
            facts["spent"] = True
        allowed = self._state.allowed
        if opens and self.benefit:
            if allowed is None:
                benefit = self.benefit.of(cache)
                if math.isnan(benefit):
                    raise ValueError(f"gate {self.name!r}: the benefit is NaN")
                facts["benefit"], allowed = _short(benefit), self.benefit.allows(benefit)
            opens = allowed
        self._state = self.after(self._state, on, opens, source, allowed)
        values = {output: float(value) for output, value in zip(self.source.outputs, risk, strict=True)}
        return Look(over, opens, clean, values, on, nearest, cache, facts)

    def look(self, vla: Any, inputs: PolicyInputs) -> tuple[float, bool, ActionChunk | None]:
        """Score (largest z over its limit, so above 0 is alarm), whether the gate opens, and the clean answer."""
        seen = self.see(vla, inputs)
        assert seen.score is not None
        return seen.score, seen.fired, seen.clean

    def judge(self, risk: Float[Array, " outputs"], state: GateState) -> tuple[float, str, tuple[str, ...]]:
        """How far a risk is above its limit at most, whose that is, and whose alarm is on now.

        Raises:
            ValueError: a risk is not a number.
        """
        named = dict(zip(self.source.outputs, np.asarray(risk, dtype=np.float64), strict=True))
        wrong = [output for output in self.outputs if math.isnan(named[output])]
        if wrong:
            raise ValueError(f"gate {self.name!r}: the risk of {', '.join(wrong)} is NaN at query {state.query}")
        values = np.array([named[output] for output in self.outputs])
        if isinstance(self.alarm, ConformalAlarm):
            row = min(state.query, len(self.alarm.centre) - 1)
            values = (values - self.alarm.centre[row]) / self.alarm.width[row]
            limits = np.broadcast_to(np.array(self.alarm.limits), values.shape)
        else:
            limits = np.full(values.shape, float(self.alarm))
        on = tuple(
            output
            for output, value, limit in zip(self.outputs, values, limits, strict=True)
            if value > limit or (output in state.on and value > limit - self.release)
        )
        over = values - limits
        return float(over.max()), self.outputs[int(over.argmax())], on

    def is_spent(self, state: GateState) -> bool:
        """Whether the episode's budget, or the pause after a run, allows no active query now."""
        if state.open and self.longest is not None and state.run >= self.longest:
            return True
        if not state.open and state.interventions and state.since < self.pause:
            return True
        if self.max_queries is not None and state.active >= self.max_queries:
            return True
        new = not state.open
        return new and self.max_interventions is not None and state.interventions >= self.max_interventions

    @staticmethod
    def after(state: GateState, on: tuple[str, ...], opens: bool, source: Any, allowed: bool | None) -> GateState:
        """The state after a query."""
        return replace(
            state,
            query=state.query + 1,
            source=source,
            on=on,
            active=state.active + opens,
            interventions=state.interventions + (opens and not state.open),
            open=opens,
            run=(state.run if state.open else 0) + 1 if opens else state.run,
            since=0 if opens else state.since + 1,
            allowed=allowed,
        )


def see(detector: Any, vla: Any, inputs: PolicyInputs, sites: Sequence[SiteKey] = ()) -> Look:
    """What a gate, a plain detector or None sees in a query."""
    if detector is None:
        return Look(None, False, None)
    if hasattr(detector, "see"):
        seen: Look = detector.see(vla, inputs, sites)
        return seen
    return Look(*detector.look(vla, inputs))


def _short(value: float) -> float:
    return float(f"{float(value):.6g}")
