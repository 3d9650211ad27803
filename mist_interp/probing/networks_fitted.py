"""What does a fitted network say of the rows of an episode, at once or query by query?

    z   rows in units of the fitted ones -> network -> what sums up over time
    p = sigmoid(a z + b)

Scores are computed in double precision on the CPU: an episode at once and query by query agree to 1e-9, whatever stands
beside it in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import expit
from torch import Tensor, nn

from mist_interp.data.records import Array
from mist_interp.probing.networks import MLP, Network
from mist_interp.probing.temporal import OverTime, RunningSum

# Rows that are scored at once; bounds memory.
BLOCK = 8192


@dataclass(frozen=True)
class Training:
    """How a network is fitted.

    Attributes:
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch: queries per step, about; networks with a memory take whole episodes.
        epochs: at most.
        patience: epochs without a smaller held-out loss before training ends.
        held_out: share of the groups that is not fitted; 0 holds out nothing and trains all epochs.
        balanced: both labels of an output weigh the same in training; the probabilities stay those of the data.
        device: where it is trained; scores are always computed on the CPU.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch: int = 256
    epochs: int = 100
    patience: int = 8
    held_out: float = 0.2
    balanced: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.batch, self.epochs, self.patience) < 1 or not 0 <= self.held_out < 1:
            raise ValueError(f"batch, epochs and patience are at least 1, and held_out is in [0, 1); got {self}")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(f"learning_rate > 0 and weight_decay >= 0 are needed; got {self}")


@dataclass(frozen=True)
class Recipe:
    """What is fitted, and how.

    Attributes:
        network: the network.
        over_time: how its log odds become those so far; None reads each query as the network does.
        training: how it is fitted.
    """

    network: Network = field(default_factory=MLP)
    over_time: OverTime | None = None
    training: Training = field(default_factory=Training)

    @property
    def needs_episodes(self) -> bool:
        """Whether the order of the queries matters in training."""
        return self.network.has_memory or isinstance(self.over_time, RunningSum)


@dataclass(frozen=True)
class Streamed:
    """Where a network stands in the episodes that it is shown query by query; made anew by each step.

    Attributes:
        memory: of the network.
        so_far: of what sums up over time.
        episodes: how many are shown side by side.
    """

    memory: Any = None
    so_far: Float[Tensor, "episodes outputs"] | None = None
    episodes: int | None = None


@dataclass(frozen=True, eq=False)
class FittedNetwork:
    """A fitted network: rows of episodes -> calibrated log odds.

    Attributes:
        recipe: what was fitted.
        module: the network, in double precision.
        mean: (width,) of the fitted rows.
        scale: (width,) deviation of the fitted rows, 1 where they do not vary.
        slope: (outputs,) a of the calibration; 0 for an output that is constant.
        offset: (outputs,) b of the calibration.
        flags: what limits it: output number -> sentence.
        facts: epochs, held-out groups and loss.
    """

    recipe: Recipe
    module: nn.Module
    mean: Float[Array, " width"]
    scale: Float[Array, " width"]
    slope: Float[Array, " outputs"]
    offset: Float[Array, " outputs"]
    flags: tuple[tuple[int, str], ...] = ()
    facts: tuple[tuple[str, float], ...] = ()

    def step(
        self, rows: Float[Array, "episodes width"], state: Streamed
    ) -> tuple[Float[Array, "episodes outputs"], Streamed]:
        """Log odds at the next query of each episode.

        Raises:
            ValueError: rows of another width, not finite, or of another number of episodes than before.
        """
        if state.episodes not in (None, len(rows)):
            raise ValueError(f"{len(rows)} rows for {state.episodes} episodes; give one row per episode")
        values, memory, so_far = self._run(self._standardised(rows)[:, None], state.memory, state.so_far)
        return self._calibrated(values[:, 0].numpy()), Streamed(memory, so_far, len(rows))

    def scores(self, x: Float[Array, "rows width"], episode: np.ndarray) -> Float[Array, "rows outputs"]:
        """Log odds of all rows; larger means more likely.

        Args:
            x: rows of whole episodes, from their first query on.
            episode: per row which episode it is of; the rows of one are in order.
        """
        return self._calibrated(self.uncalibrated(x, episode))

    def uncalibrated(self, x: Float[Array, "rows width"], episode: np.ndarray) -> Float[Array, "rows outputs"]:
        """What the calibration starts from."""
        values = np.zeros((len(x), len(self.slope)))
        alone = not self.recipe.network.has_memory and self.recipe.over_time is None
        places = as_sequences(np.arange(len(x)) if alone else episode)
        for block in blocks(places, BLOCK):
            got, _, _ = self._run(self._standardised(x[block.clip(0)].reshape(-1, x.shape[1])).view(*block.shape, -1))
            values[block[block >= 0]] = got.numpy()[block >= 0]
        return values

    def _run(self, x: Tensor, memory: Any = None, so_far: Tensor | None = None) -> tuple[Tensor, Any, Tensor | None]:
        with torch.no_grad():
            values, memory = self.module(x, memory)
            if self.recipe.over_time is not None:
                values, so_far = self.recipe.over_time(values, so_far)
        return values, memory, so_far

    def _standardised(self, x: Float[Array, "rows width"]) -> Tensor:
        if np.ndim(x) != 2 or np.shape(x)[1] != len(self.mean):
            raise ValueError(f"this network was fitted on rows of width {len(self.mean)}; given {np.shape(x)}")
        rows = (np.asarray(x, dtype=np.float64) - self.mean) / self.scale
        if not np.isfinite(rows).all():
            raise ValueError("some rows are not finite")
        return torch.from_numpy(rows)

    def _calibrated(self, values: Array) -> Array:
        return np.asarray(self.slope * values + self.offset)


def probabilities(scores: Array) -> Array:
    """Probabilities of log odds."""
    return np.asarray(expit(scores))


def as_sequences(episode: np.ndarray) -> Int[np.ndarray, "episodes time"]:
    """Row numbers of each episode in order, -1 behind its end."""
    _, first, member = np.unique(episode, return_index=True, return_inverse=True)
    order = np.argsort(first[member], kind="stable")
    counts = np.bincount(member)[np.argsort(first)]
    starts = np.r_[0, np.cumsum(counts)[:-1]]
    places = np.full((len(counts), counts.max(initial=0)), -1)
    number = np.repeat(np.arange(len(counts)), counts)
    places[number, np.arange(len(episode)) - starts[number]] = order
    return places


def blocks(places: Int[np.ndarray, "episodes time"], rows: int) -> Iterator[Int[np.ndarray, "some time"]]:
    """Some episodes at a time, cut at the longest of them."""
    size = max(1, rows // max(1, places.shape[1]))
    for start in range(0, len(places), size):
        block = places[start : start + size]
        yield block[:, : int((block >= 0).sum(1).max())]
