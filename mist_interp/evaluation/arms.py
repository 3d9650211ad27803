"""What is done to the policy at a query?

An arm sees the query (observation, tensors, the detector's score) and answers with a chunk of actions; in
between it may edit activations, replace the chunk, or leave everything alone. It reports the edit that was
live, *measured* at its site during that very forward pass, because an edit that silently stopped is the one
fault that no success rate would reveal.

The arms here: `none` (the detector runs in shadow, nothing is touched), a fixed steering direction, a random
direction of equal norm as its placebo, and any other edits that are data (`mist_interp.tracing.verbs`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.data.records import Unit
from mist_interp.steering.direction import SteeringDirection
from mist_interp.tracing.interventions import Intervention

WHEN = ("always", "fired", "triggered")


@dataclass(frozen=True)
class Query:
    """What an arm may know when the policy looks at the world.

    Attributes:
        unit: what is being run.
        index: number of the query in the episode, from 0.
        step: control steps executed so far.
        observation: the LIBERO dictionary of this moment.
        instruction: the sentence that the policy is given.
        score: the detector's score, None without a detector.
        fired: the score exceeds the threshold now.
        triggered: it does now or did at an earlier query of this episode.
        clean: what the untouched policy answers to this query, where the detector's forward pass gave it.
    """

    unit: Unit
    index: int
    step: int
    observation: Mapping[str, Any]
    instruction: str
    score: float | None = None
    fired: bool = False
    triggered: bool = False
    clean: ActionChunk | None = None


@dataclass(frozen=True)
class ArmLog:
    """What an arm did at one query.

    Attributes:
        edit: name of the live edit, empty when the policy was left alone.
        edit_norm: Euclidean norm of the change, over all tokens and edited sites, as measured; 0 without an edit.
        details: anything else worth a column of JSON.
    """

    edit: str = ""
    edit_norm: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)


class Arm(Protocol):
    """One intervention condition. `act` is called once per query and must not keep state between episodes.

    An arm that was fitted on data may also have `check_units(units)`, which raises if it is to be judged on them.
    """

    @property
    def name(self) -> str:
        """Name in tables and folders."""
        ...

    @property
    def gated(self) -> bool:
        """Whether the arm leaves the policy alone until the detector has fired in this episode."""
        ...

    def config(self) -> dict[str, Any]:
        """Everything that defines the arm, as JSON; two arms with equal config act alike."""
        ...

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """Answer one query (batch of one)."""
        ...


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
        return query.clean if query.clean is not None else _forward(vla, inputs), ArmLog()


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
        _check_when(self.name, self.when)
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
        if not _live(self.when, query) or self.coef == 0:
            return NoEdit().act(vla, inputs, query)
        return _edited(vla, inputs, self.edits(), f"{self.name}({self.coef:g})")

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
        _check_when(self.name, self.when)
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
        if not _live(self.when, query):
            return NoEdit().act(vla, inputs, query)
        return _edited(vla, inputs, self.changes, self.name)

    def edits(self) -> tuple[Intervention, ...]:
        """The edits; see `ResultsFolder.keep_edits`."""
        return self.changes


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


def _forward(vla: Any, inputs: PolicyInputs) -> ActionChunk:
    with torch.no_grad():
        chunk: ActionChunk = vla(inputs)
    return chunk


def _check_when(name: str, when: str) -> None:
    if when not in WHEN:
        raise ValueError(f"arm {name!r}: when={when!r}; possible: {', '.join(WHEN)}")


def _live(when: str, query: Query) -> bool:
    return {"always": True, "fired": query.fired, "triggered": query.triggered}[when]


def _edited(vla: Any, inputs: PolicyInputs, edits: Sequence[Intervention], name: str) -> tuple[ActionChunk, ArmLog]:
    """The answer under edits, and what each of them really changed, measured in the same forward pass."""
    outer = len(vla.edits())
    with vla.hooks(*edits):
        chunk = _forward(vla, inputs)
        changes = vla.changes()[outer:]
    norm = sum(change.total**2 for change in changes) ** 0.5
    return chunk, ArmLog(name, norm, {"changes": [change.to_dict() for change in changes]})
