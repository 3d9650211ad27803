"""Which arm acts along learned directions, one per dimension, when that dimension is flagged?

    add            minus `coef` units of the direction of rising risk
    clamp          the projection on it is kept at or below `high` units, a safe value
    project_out    nothing of it is left
    replace        the state of every selected token becomes the mean of safe states

A direction per dimension comes from the weights of a probe (`Probe.direction("dz")`) or from a contrast, the mean of
safe states from `SteeringDirection.mean_state`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mist_interp.core.actions import ActionChunk
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.data.records import Unit
from mist_interp.evaluation.arms.activations import NoEdit, fingerprint
from mist_interp.evaluation.arms.protocol import ArmLog, Query, check_when, edited, is_live
from mist_interp.steering.direction import STATE, SteeringDirection
from mist_interp.tracing.interventions import Intervention
from mist_interp.tracing.verbs import clamp_projection, project_out, replace

MODES = ("add", "clamp", "project_out", "replace")


@dataclass(frozen=True)
class LearnedDirections:
    """Edits along the directions of the flagged dimensions.

    Attributes:
        directions: output of the detector -> direction in which its risk rises (for `replace`: the mean safe state).
        mode: one of `MODES`.
        coef: units for `add`.
        high: for `clamp`, the largest safe projection in units of the direction.
        when: as in `Steer`.
        name: name in tables and folders.
    """

    directions: Mapping[str, SteeringDirection]
    mode: str = "add"
    coef: float = 1.0
    high: float = 0.0
    when: str = "fired"
    name: str = "mist-learned"

    def __post_init__(self) -> None:
        check_when(self.name, self.when)
        if self.mode not in MODES:
            raise UnknownName("mode of learned directions", self.mode, MODES)
        if not self.directions or not np.isfinite([self.coef, self.high]).all():
            raise ValueError(f"arm {self.name!r} needs directions and finite numbers; given {self}")
        for output, one in self.directions.items():
            if (one.unit == STATE) != (self.mode == "replace"):
                raise ValueError(
                    f"arm {self.name!r}: mode={self.mode} with {output}={one}; replace takes states "
                    "(SteeringDirection.mean_state), the other modes directions"
                )

    @property
    def gated(self) -> bool:
        """See `Arm`."""
        return self.when != "always"

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        made = {output: fingerprint(one.vector) for output, one in self.directions.items()}
        places = sorted({f"{one.site} {one.tokens}" for one in self.directions.values()})
        facts = {"kind": "learned", "directions": made, "places": places}
        return facts | {"mode": self.mode, "coef": float(self.coef), "high": float(self.high), "when": self.when}

    def check_units(self, units: Iterable[Unit]) -> None:
        """Refuse units whose start states a direction was made from.

        Raises:
            ValueError: there is one; the message names it.
        """
        units = list(units)
        for direction in self.directions.values():
            direction.check_disjoint(units)

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        flagged = [output for output in self.directions if output in query.flagged]
        if not is_live(self.when, query) or not flagged:
            return NoEdit().act(vla, inputs, query)
        chunk, log = edited(vla, inputs, [self.edit(output) for output in flagged], self.name)
        return chunk, ArmLog(log.edit, log.edit_norm, {"flagged": flagged, **log.details})

    def edits(self) -> tuple[Intervention, ...]:
        """The edit of every dimension; see `ResultsFolder.keep_edits`."""
        return tuple(self.edit(output) for output in self.directions)

    def edit(self, output: str) -> Intervention:
        """What is done when this output is flagged."""
        one = self.directions[output]
        if self.mode == "add":
            return one.edit(-self.coef)
        if self.mode == "clamp":
            return clamp_projection(one.site, one.vector, high=self.high * one.norm, tokens=one.tokens)
        if self.mode == "project_out":
            return project_out(one.site, one.vector, one.tokens)
        return replace(one.site, one.vector, one.tokens)
