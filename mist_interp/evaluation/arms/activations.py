"""Which arms change activations in the same way at every query at which they act?

`none` (the detector runs in shadow, nothing is touched), a direction added at its site, gated or not, its placebos (a
random direction of equal norm, the reversed one), neurons held at a constant, and any other edits that are data
(`mist_interp.tracing.verbs`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.data.records import Unit
from mist_interp.evaluation.arms.protocol import ArmLog, Query, check_when, clean_answer, edited, is_live
from mist_interp.steering.direction import SteeringDirection
from mist_interp.tracing.interventions import Intervention
from mist_interp.tracing.verbs import replace

Neuron = tuple[int, int]


@dataclass(frozen=True)
class NoEdit:
    """The policy as it is; with a detector this is the shadow arm, whose triggers are logged and do nothing."""

    name: str = "none"

    @property
    def gated(self) -> bool:
        """See `Arm`; what never acts does not act before the trigger either."""
        return True

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        return {"kind": "none"}

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        return clean_answer(vla, inputs, query), ArmLog()


@dataclass(frozen=True)
class Steer:
    """Add a fixed direction at its own site.

    Attributes:
        direction: where and what to add.
        coef: strength in the direction's own unit; 0 is exactly no steering.
        when: `always`, `fired` (queries at which the detector fires) or `triggered` (from the first such query on).
        name: name in tables and folders.
    """

    direction: SteeringDirection
    coef: float = 1.0
    when: str = "always"
    name: str = "steer"

    def __post_init__(self) -> None:
        check_when(self.name, self.when)
        if not np.isfinite(self.coef):
            raise ValueError(f"arm {self.name!r}: coef={self.coef} is not a finite number")

    @property
    def gated(self) -> bool:
        """See `Arm`."""
        return self.when != "always"

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        return {
            "kind": "steer",
            "site": str(self.direction.site),
            "tokens": self.direction.tokens,
            "direction": fingerprint(self.direction.vector),
            "method": str(self.direction.source.get("method", "")),
            "norm": round(self.direction.norm, 6),
            "unit": self.direction.unit,
            "coef": float(self.coef),
            "when": self.when,
        }

    def check_units(self, units: Iterable[Unit]) -> None:
        """Refuse units whose start states the direction was made from.

        Raises:
            ValueError: there is one; the message names it.
        """
        self.direction.check_disjoint(units)

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        if not is_live(self.when, query) or self.coef == 0:
            return NoEdit().act(vla, inputs, query)
        return edited(vla, inputs, self.edits(), f"{self.name}({self.coef:g})")

    def edits(self) -> tuple[Intervention, ...]:
        """What is added, as data; see `ResultsFolder.keep_edits`."""
        return (self.direction.edit(self.coef),)


@dataclass(frozen=True)
class Intervene:
    """Apply edits that are data: ablations, patches, knockouts, or several of them together.

    Attributes:
        changes: the edits, in the order in which they apply.
        when: as in `Steer`.
        name: name in tables and folders.
    """

    changes: tuple[Intervention, ...]
    when: str = "always"
    name: str = "edited"

    def __post_init__(self) -> None:
        check_when(self.name, self.when)
        if not self.changes or not all(isinstance(change, Intervention) for change in self.changes):
            raise ValueError(f"arm {self.name!r} needs edits made by add, scale, ablate, ...; not none, not a function")

    @property
    def gated(self) -> bool:
        """See `Arm`."""
        return self.when != "always"

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        return {"kind": "edits", "edits": [change.to_dict() for change in self.changes], "when": self.when}

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        if not is_live(self.when, query):
            return NoEdit().act(vla, inputs, query)
        return edited(vla, inputs, self.changes, self.name)

    def edits(self) -> tuple[Intervention, ...]:
        """The edits; see `ResultsFolder.keep_edits`."""
        return self.changes


@dataclass(frozen=True)
class ConceptNeurons:
    """Overwrite the activation of chosen neurons of the language model with a constant (Häon et al. 2025).

    Which neurons: those whose value vectors move an action number most (`analysis.neurons.neuron_table`), or that stand
    for a word. The original acts at every query and at every token, as here by default.

    Attributes:
        neurons: (layer, number) of each.
        value: what their activation is set to.
        tokens: at which tokens; None for all.
        when: as in `Steer`.
        name: name in tables and folders.
    """

    neurons: tuple[Neuron, ...]
    value: float = 10.0
    tokens: str | None = None
    when: str = "always"
    name: str = "concept-neurons"

    def __post_init__(self) -> None:
        check_when(self.name, self.when)
        if not self.neurons or not np.isfinite(self.value):
            raise ValueError(f"arm {self.name!r} needs neurons and a finite value; given {self.neurons}, {self.value}")

    @property
    def gated(self) -> bool:
        """See `Arm`."""
        return self.when != "always"

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        return {
            "kind": "concept-neurons",
            "neurons": [list(neuron) for neuron in self.neurons],
            "value": float(self.value),
            "tokens": self.tokens,
            "when": self.when,
        }

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        if not is_live(self.when, query):
            return NoEdit().act(vla, inputs, query)
        return edited(vla, inputs, self.edits(), self.name)

    def edits(self) -> tuple[Intervention, ...]:
        """One edit per layer; see `ResultsFolder.keep_edits`."""
        layers = sorted({layer for layer, _ in self.neurons})
        return tuple(self._edit(layer, sorted({n for other, n in self.neurons if other == layer})) for layer in layers)

    def _edit(self, layer: int, numbers: Sequence[int]) -> Intervention:
        values = torch.full((len(numbers),), float(self.value))
        return replace(("mlp.post", layer), values, self.tokens, neuron=list(numbers))


def random_direction(
    direction: SteeringDirection,
    coef: float = 1.0,
    *,
    seed: int = 0,
    when: str = "always",
    name: str = "random-direction",
) -> Steer:
    """The placebo of `Steer`: a Gaussian direction of equal norm at the same site, equal coefficient and gate."""
    return Steer(SteeringDirection.random(direction, seed), coef, when, name)


def fingerprint(vector: Tensor) -> str:
    """Short hash of a tensor's shape and values: two runs steered by the same vector agree in it."""
    values = vector.detach().cpu().float().contiguous()
    return hashlib.sha256(str(tuple(values.shape)).encode() + values.numpy().tobytes()).hexdigest()[:16]
