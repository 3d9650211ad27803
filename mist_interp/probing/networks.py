"""Which networks read risk off activations?

A network maps the rows of an episode in order, (batch, time, width), to log odds, (batch, time, outputs), and may carry
a state from query to query. One network has all outputs of a target and shares everything but the last layer.

The last layer is linear and is trained with binary cross-entropy on log odds. A rectifier there, with a squared error
and rare positives, ends in a unit that gives 0 for every input: AUC 0.5 on all outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from mist_interp.core.errors import UnknownName


@dataclass(frozen=True)
class MLP:
    """A multi-layer perceptron; every query is read alone.

    Attributes:
        hidden: width of each hidden layer; `()` is logistic regression. `(2048, 512)` has 9.4 M weights for 4096
            features.
        dropout: share of hidden units that are left out in training.
    """

    hidden: tuple[int, ...] = (256,)
    dropout: float = 0.2

    has_memory: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(int(size) for size in self.hidden))
        _check_sizes("hidden", self.hidden, self.dropout)

    def module(self, width: int, outputs: int) -> nn.Module:
        """An untrained network, drawn from torch's random state."""
        return _Perceptron(width, self.hidden, self.dropout, outputs)


@dataclass(frozen=True)
class LSTM:
    """A long short-term memory over the queries of an episode: what is read at query t depends on queries 0 .. t.

    Attributes:
        hidden: width of the memory.
        layers: how many are stacked.
        dropout: share of its outputs that are left out in training.
    """

    hidden: int = 256
    layers: int = 1
    dropout: float = 0.2

    has_memory: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_sizes("hidden and layers", (self.hidden, self.layers), self.dropout)

    def module(self, width: int, outputs: int) -> nn.Module:
        """An untrained network, drawn from torch's random state."""
        return _Recurrent(width, self.hidden, self.layers, self.dropout, outputs)


Network: TypeAlias = MLP | LSTM

NETWORKS: Mapping[str, type[MLP] | type[LSTM]] = {kind.__name__: kind for kind in (MLP, LSTM)}


def network_config(network: Network) -> dict[str, Any]:
    """Plain values from which `network_from_config` makes an equal one."""
    return {"kind": type(network).__name__, **asdict(network)}


def network_from_config(config: Mapping[str, Any]) -> Network:
    """Inverse of `network_config`.

    Raises:
        UnknownName: a kind that this version does not know.
    """
    settings = dict(config)
    kind = settings.pop("kind")
    if kind not in NETWORKS:
        raise UnknownName("network", kind, NETWORKS)
    return NETWORKS[kind](**settings)


class _Perceptron(nn.Module):
    def __init__(self, width: int, hidden: tuple[int, ...], dropout: float, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((width, *hidden)):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear((width, *hidden)[-1], outputs))

    def forward(
        self, x: Float[Tensor, "batch time width"], state: None = None
    ) -> tuple[Float[Tensor, "batch time outputs"], None]:
        return self.layers(x), None


class _Recurrent(nn.Module):
    def __init__(self, width: int, hidden: int, layers: int, dropout: float, outputs: int) -> None:
        super().__init__()
        between = dropout if layers > 1 else 0.0
        self.memory = nn.LSTM(width, hidden, layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(hidden, outputs)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Float[Tensor, "batch time outputs"], tuple[Tensor, Tensor]]:
        values, state = self.memory(x, state)
        return self.readout(self.dropout(values)), state


def _check_sizes(name: str, sizes: tuple[int, ...], dropout: float) -> None:
    if any(size < 1 for size in sizes) or not 0 <= dropout < 1:
        raise ValueError(f"{name} must be at least 1 and dropout in [0, 1); got {sizes} and {dropout}")
