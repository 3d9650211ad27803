"""Which of several arms does this situation call for, or none?

At the first query at which the gate is open each arm's `Benefit` says what acting that way is expected to change. The
arm with the largest expected gain, of those that their benefits allow, has the rest of the episode; if none is allowed
the policy is left alone. What was expected of each stands in the log of that query.

A conformal benefit promises something of one arm: of the units that it would spoil, at most a share alpha is acted
upon. Of several it follows that the arm that acts spoils at most a share of the sum of their alphas of all units.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import SiteKey
from mist_interp.data.records import Unit
from mist_interp.evaluation.arms.activations import NoEdit
from mist_interp.evaluation.arms.protocol import Arm, ArmLog, Query, clean_cache
from mist_interp.evaluation.gate import BenefitSource
from mist_interp.evaluation.plan import REFERENCE_ARM


@dataclass(frozen=True)
class Chosen:
    """One of several arms, chosen where the gate first opens.

    Attributes:
        among: arm and what is expected of it, pairs; the arms' names differ.
        name: name in tables and folders.
    """

    among: tuple[tuple[Arm, BenefitSource], ...]
    name: str = "chosen"

    def __post_init__(self) -> None:
        names = [arm.name for arm, _ in self.among]
        if not names or len({*names, REFERENCE_ARM}) <= len(names):
            raise ValueError(f"arm {self.name!r} chooses among arms of different names, none of them 'none': {names}")
        early = [arm.name for arm, _ in self.among if not arm.gated]
        if early:
            raise ValueError(f"arm {self.name!r} chooses at the trigger; too late for {', '.join(early)}")

    @property
    def gated(self) -> bool:
        """See `Arm`."""
        return True

    @property
    def sites(self) -> tuple[SiteKey, ...]:
        """See `Arm`."""
        read = [(*getattr(arm, "sites", ()), *benefit.sites) for arm, benefit in self.among]
        return tuple(dict.fromkeys(site for sites in read for site in sites))

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        among = [{"name": arm.name, "arm": arm.config(), "benefit": benefit.config()} for arm, benefit in self.among]
        placebo = {"placebo": True} if all(arm.config().get("placebo") for arm, _ in self.among) else {}
        return {"kind": "chosen", "among": among, **placebo}

    def check_units(self, units: Iterable[Unit]) -> None:
        """Refuse units on which a benefit, or an arm, was fitted."""
        units = list(units)
        for arm, benefit in self.among:
            benefit.check_units(units)
            if hasattr(arm, "check_units"):
                arm.check_units(units)

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        told: dict[str, Any] = {}
        if query.fired and "choice" not in query.memory:
            told = query.memory["choice"] = self.choice(vla, inputs, query)
            query.memory["inner"] = {}
        chosen = query.memory.get("choice", {}).get("chosen", REFERENCE_ARM)
        arm = next((arm for arm, _ in self.among if arm.name == chosen), NoEdit())
        chunk, log = arm.act(vla, inputs, replace(query, memory=query.memory.get("inner", {})))
        return chunk, ArmLog(self.name if log.edit else "", log.edit_norm, {**log.details, **told})

    def choice(self, vla: Any, inputs: PolicyInputs, query: Query) -> dict[str, Any]:
        """Whose turn it is, and what was expected of each."""
        cache = clean_cache(vla, inputs, query, self.sites)
        gains = {arm.name: benefit.of(cache) for arm, benefit in self.among}
        allowed = {arm.name: gains[arm.name] for arm, benefit in self.among if benefit.allows(gains[arm.name])}
        chosen = max(allowed, key=lambda name: allowed[name]) if allowed else REFERENCE_ARM
        return {"chosen": chosen, "expected": {name: float(f"{gain:.6g}") for name, gain in gains.items()}}
