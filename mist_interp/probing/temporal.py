"""How do the scores of an episode's queries become the score so far?

A read-out of one query forgets what came before. These keep it; all are causal: the value at query t is a function of
queries 0 .. t, and the same whether the episode is given at once or query by query.

    RunningMaximum       m_t = max(m_{t-1}, z_t)
    ExponentialAverage   m_t = w z_t + (1 - w) m_{t-1},  m_0 = z_0
    RunningSum           m_t = m_{t-1} + sigmoid(z_t)     (SAFE-MLP: Gu et al. 2025, arXiv 2506.09937)

z are log odds. The first two change what is read off a network that was trained query by query; they keep the order of
the affine map that calibrates log odds, so a predictor is calibrated after them. The last is trained through: its loss
is the distance of m_t from 0 in good and from t + 1, its largest value, in bad queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.core.errors import UnknownName


@dataclass(frozen=True)
class RunningMaximum:
    """The largest value so far: an alarm that does not go off again."""

    def __call__(
        self, values: Float[Tensor, "batch time outputs"], state: Float[Tensor, "batch outputs"] | None = None
    ) -> tuple[Float[Tensor, "batch time outputs"], Float[Tensor, "batch outputs"]]:
        """Values so far and what to go on with; `state` None begins an episode."""
        so_far = torch.cummax(values, dim=1).values
        if state is not None:
            so_far = torch.maximum(so_far, state[:, None])
        return so_far, so_far[:, -1]


@dataclass(frozen=True)
class ExponentialAverage:
    """An average that forgets.

    Attributes:
        weight: of the newest value, in (0, 1]; 1 is the query alone.
    """

    weight: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight={self.weight}: give a number above 0 and at most 1")

    def __call__(
        self, values: Float[Tensor, "batch time outputs"], state: Float[Tensor, "batch outputs"] | None = None
    ) -> tuple[Float[Tensor, "batch time outputs"], Float[Tensor, "batch outputs"]]:
        """Values so far and what to go on with; `state` None begins an episode."""
        so_far = []
        for value in values.unbind(1):
            state = value if state is None else self.weight * value + (1 - self.weight) * state
            so_far.append(state)
        return torch.stack(so_far, dim=1), so_far[-1]


@dataclass(frozen=True)
class RunningSum:
    """The sum of the probabilities so far; a network under it is trained on the sum, see the module's text.

    Where it misleads: the sum grows with time whatever happens, so its values are comparable at the same query only.
    """

    def __call__(
        self, values: Float[Tensor, "batch time outputs"], state: Float[Tensor, "batch outputs"] | None = None
    ) -> tuple[Float[Tensor, "batch time outputs"], Float[Tensor, "batch outputs"]]:
        """Values so far and what to go on with; `state` None begins an episode."""
        so_far = torch.cumsum(torch.sigmoid(values), dim=1)
        if state is not None:
            so_far = so_far + state[:, None]
        return so_far, so_far[:, -1]

    @staticmethod
    def loss(
        so_far: Float[Tensor, "batch time outputs"], y: Float[Tensor, "batch time outputs"]
    ) -> Float[Tensor, "batch time outputs"]:
        """Distance of the sum from what is wanted of it, per query; `so_far` holds whole episodes."""
        largest = torch.arange(1, so_far.shape[1] + 1, dtype=so_far.dtype, device=so_far.device)[None, :, None]
        return y * (largest - so_far) + (1 - y) * so_far


OverTime: TypeAlias = RunningMaximum | ExponentialAverage | RunningSum

OVER_TIME: Mapping[str, type[RunningMaximum] | type[ExponentialAverage] | type[RunningSum]] = {
    kind.__name__: kind for kind in (RunningMaximum, ExponentialAverage, RunningSum)
}


def over_time_config(value: OverTime | None) -> dict[str, Any] | None:
    """Plain values from which `over_time_from_config` makes an equal one."""
    return None if value is None else {"kind": type(value).__name__, **asdict(value)}


def over_time_from_config(config: Mapping[str, Any] | None) -> OverTime | None:
    """Inverse of `over_time_config`.

    Raises:
        UnknownName: a kind that this version does not know.
    """
    if config is None:
        return None
    settings = dict(config)
    kind = settings.pop("kind")
    if kind not in OVER_TIME:
        raise UnknownName("way to sum up over time", kind, OVER_TIME)
    return OVER_TIME[kind](**settings)
