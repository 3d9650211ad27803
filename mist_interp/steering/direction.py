"""Which change of the residual stream is a concept, and how much of it is "one"?

A `SteeringDirection` is a vector at a site and at named tokens. Its coefficient has a unit: the vector is scaled so
that

    coefficient 1  =  one standard deviation of the projection of the training activations on the direction

and adding `coef * vector` at every selected token moves their pooled projection by `coef` such deviations, at any
layer and in any model. Coefficient 0 is exactly no steering: no hook is set. How one is made: `making.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.core.kept import keep, kept, triples
from mist_interp.core.names import Site
from mist_interp.core.provenance import provenance
from mist_interp.data.activation_set import ActivationSet, StartState, fingerprint, refuse_shared, start_states
from mist_interp.data.artefact import OnHub
from mist_interp.data.records import Array, Unit
from mist_interp.steering.making import Making
from mist_interp.tracing.interventions import Intervention
from mist_interp.tracing.verbs import add

SIGMA = "1 standard deviation of the training projection"
COMBINATION = "linear combination of directions"
STATE = "the state itself, which is put in place of another and not added"


class Steerable(Protocol):
    """What steering needs of a policy; `mist_interp.HookedVLA` has it."""

    def hooks(self, *pairs: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class SteeringDirection(Making, OnHub):
    """A direction at a site, scaled to its unit.

    Attributes:
        site: where it was found and is added.
        vector: (width,) float32; what coefficient 1 adds at every selected token.
        tokens: token selector, e.g. `action_read`, `action_read.dz`, `vision`.
        unit: what coefficient 1 means.
        source: how it was made: method, counts, model, versions.
        trained_on: the start states (suite, task, init state) whose episodes it was made from.
    """

    site: Site
    vector: Float[Tensor, " width"]
    tokens: str = "action_read"
    unit: str = SIGMA
    source: Mapping[str, Any] = field(default_factory=dict)
    trained_on: frozenset[StartState] = frozenset()

    hub_files: ClassVar[tuple[str, ...]] = ("direction.json", "direction.safetensors")

    def __post_init__(self) -> None:
        if self.vector.ndim != 1 or not bool(torch.isfinite(self.vector).all()):
            raise ValueError(
                f"a direction is a vector of finite numbers; this one has shape {tuple(self.vector.shape)}"
            )

    @property
    def norm(self) -> float:
        """Euclidean length of what coefficient 1 adds at one token."""
        return float(self.vector.double().norm())

    # -- making (more in `Making`)

    @classmethod
    def of_length(
        cls,
        vector: Float[Array, " width"],
        sigma: float,
        *,
        site: Site,
        tokens: str,
        source: Mapping[str, Any],
        trained_on: Iterable[StartState],
    ) -> SteeringDirection:
        """`vector`, rescaled to the length `sigma`, the standard deviation of the training projection on it.

        Raises:
            ValueError: the vector or `sigma` is zero or not finite: there is no unit then.
        """
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0:
            raise ValueError("the direction has no length: both kinds of rows have the same mean")
        if not np.isfinite(sigma) or sigma <= 0:
            raise ValueError("the training activations do not vary along the direction, so it has no unit")
        states = frozenset(trained_on)
        facts = {**source, "start_states": fingerprint(states), "versions": provenance()}
        scaled = torch.tensor(np.asarray(vector, dtype=np.float64) * (sigma / length), dtype=torch.float32)
        return cls(site, scaled, tokens, SIGMA, facts, states)

    @classmethod
    def random(cls, like: SteeringDirection, seed: int) -> SteeringDirection:
        """The placebo: an isotropic random direction of the same length at the same site and tokens."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(like.vector.shape, generator=generator, dtype=torch.float64)
        vector = (noise * (like.norm / noise.norm())).to(like.vector)
        return replace(like, vector=vector, source={"method": "random, equal norm", "seed": seed, "like": like.source})

    @classmethod
    def mean_state(cls, rows: ActivationSet, *, evaluation: Iterable[Unit] = ()) -> SteeringDirection:
        """The mean of rows, such as those of safe queries: no direction but a state, to be put in place of another.

        Raises:
            ValueError: a start state of `evaluation` is among the rows.
        """
        refuse_shared(rows.start_states, start_states(evaluation))
        mean = torch.tensor(rows.x.mean(axis=0, dtype=np.float64), dtype=torch.float32)
        facts = {
            **rows.source,
            "method": "mean of rows",
            "rows": len(rows),
            "start_states": fingerprint(rows.start_states),
            "versions": provenance(),
        }
        return cls(rows.site, mean, rows.tokens, STATE, facts, rows.start_states)

    # -- using

    @contextmanager
    def scope(self, vla: Steerable, coef: float = 1.0) -> Iterator[None]:
        """Within the scope, every forward pass of `vla` gets `coef * vector` added at the selected tokens.

        Coefficient 0 sets no hook, so nothing changes, bit for bit. Leaving the scope removes exactly this edit.

        Raises:
            ValueError: the coefficient is not finite, or the width does not fit the site: made with another model.
        """
        coefficient = float(coef)
        if not np.isfinite(coefficient):
            raise ValueError(f"coef is {coef}; it must be a finite number of units ({self.unit})")
        if coefficient == 0.0:
            yield
            return
        with vla.hooks(self.edit(coefficient)):
            yield

    steer = scope

    def edit(self, coef: float = 1.0) -> Intervention:
        """The edit that a scope makes live, as data: to be saved, compared, or listed beside others in `vla.hooks`."""
        return add(self.site, self.vector, self.tokens, coef)

    # -- algebra

    def __neg__(self) -> SteeringDirection:
        return replace(self, vector=-self.vector, source={"method": "reversed", "of": self.source})

    def __mul__(self, factor: float) -> SteeringDirection:
        unit = f"{float(factor):g} x ({self.unit})"
        return replace(self, vector=self.vector * float(factor), unit=unit)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> SteeringDirection:
        return self * (1.0 / float(divisor))

    def __add__(self, other: SteeringDirection) -> SteeringDirection:
        self._check_same_place(other)
        return replace(
            self,
            vector=self.vector + other.vector,
            unit=COMBINATION,
            source={"method": "sum", "of": [self.source, other.source]},
            trained_on=self.trained_on | other.trained_on,
        )

    def __sub__(self, other: SteeringDirection) -> SteeringDirection:
        return self + (-other)

    def cosine(self, other: SteeringDirection) -> float:
        """Cosine of the angle between two directions of the same site and tokens; NaN when one has no length."""
        self._check_same_place(other)
        a, b = self.vector.double(), other.vector.double()
        lengths = float(a.norm() * b.norm())
        return float(a @ b) / lengths if lengths > 0 else float("nan")

    def project(self, x: Float[Array, "rows width"]) -> Float[Array, " rows"]:
        """How many units along the direction each row lies (from the origin)."""
        vector = self.vector.double().numpy()
        projected: Array = np.asarray(x, dtype=np.float64) @ vector / float(vector @ vector)
        return projected

    def check_disjoint(self, units: Iterable[Unit]) -> None:
        """Refuse an evaluation on episodes that the direction was made from.

        Raises:
            ValueError: a start state is in both; the message names some.
        """
        refuse_shared(self.trained_on, start_states(units))

    # -- keeping

    def save(self, folder: str | Path) -> None:
        """Write `direction.safetensors` and `direction.json` into `folder`."""
        facts = {
            "site": self.site.name,
            "tokens": self.tokens,
            "unit": self.unit,
            "source": self.source,
            "trained_on": sorted(self.trained_on),
        }
        keep(folder, "direction", facts, {"vector": self.vector})

    @classmethod
    def load(cls, folder: str | Path) -> SteeringDirection:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: there is no direction in this folder.
            ValueError: it was written in a format that this version does not know.
        """
        facts, tensors = kept(folder, "direction", "steering direction")
        return cls(
            site=Site(facts["site"]),
            vector=tensors["vector"],
            tokens=facts["tokens"],
            unit=facts["unit"],
            source=facts["source"],
            trained_on=triples(facts["trained_on"]),
        )

    def hub_facts(self) -> Mapping[str, Any]:
        """What the card on the Hub says of its making."""
        return {"site": self.site.name, "tokens": self.tokens, "unit": self.unit, "source": self.source}

    def _check_same_place(self, other: SteeringDirection) -> None:
        mine, theirs = (self.site.name, self.tokens), (other.site.name, other.tokens)
        if mine != theirs:
            raise ValueError(f"directions of different places cannot be combined: {mine} and {theirs}")

    def __repr__(self) -> str:
        return (
            f"SteeringDirection({self.site.key!r}, tokens={self.tokens!r}, width={len(self.vector)}, "
            f"norm={self.norm:.3g}, unit={self.unit!r})"
        )
