"""How far is each dimension of the action from what an expert would have done, as the activations have it?

    deviation_d = mean over a segment of the chunk of (expert_d - policy_d)    normalised units of the policy, signed
    predicted   = W standardised(rows) + b                                     ridge regression, all numbers at once
    risk_d      = |m_d|,   m <- memory * m + (1 - memory) * mean over the segments of predicted
                                                                               from 0 at the start of an episode

The rows are one layer's states at several groups of tokens, side by side. A deviation that persists is a risk
per dimension: the policy is doing this dimension wrong. Its sign and amount say what would be right, so the read-out
that opens a gate also says what an edit should bring about (`wanted="learned"` of the arm `mist`).

Where it misleads: it is fitted on states that the unedited policy came into; an edited one comes into others. What it
regresses is one expert's way (`mist_interp.probing.advice`), and a policy that errs in what it sees errs here as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.errors import UnknownName
from mist_interp.core.kept import keep, kept, triples
from mist_interp.core.names import Site, SiteKey
from mist_interp.core.provenance import provenance
from mist_interp.data.activation_set import StartState, fingerprint, refuse_shared, start_states, unit_of_episode
from mist_interp.data.artefact import OnHub
from mist_interp.data.capture import pooled
from mist_interp.data.records import Array, Unit
from mist_interp.data.store import RolloutStore
from mist_interp.probing.advice import Advice

TOKENS = ("action_read", "vision", "proprio")


@dataclass(frozen=True)
class Note:
    """What a read-out saw in one episode, and the expert's answers.

    Attributes:
        unit: what was run.
        rows: what was read at each query (`Deviation.rows_of`).
        deviation: expert minus policy at each step of the chunk, normalised units.
    """

    unit: Unit
    rows: Float[Array, "queries width"]
    deviation: Float[Array, "queries chunk 7"]


class Deviation(OnHub):
    """A linear read-out of what an expert would have done otherwise, per dimension.

    Args:
        site: one site of the network, such as ("resid_post", 2).
        tokens: groups of tokens whose pooled states are read side by side.
        pool: how they are pooled.
        alpha: strength of the ridge penalty on standardised rows.
        memory: of the risk, from 0 (this query alone) to below 1.
        segments: equal parts of the chunk, each with a deviation of its own.

    Attributes (after `fit`):
        site_: the site, resolved.
        mean_, scale_: (width,) of the training rows.
        weights_: (segments * 7, width) on standardised rows.
        intercept_: (segments * 7,).
        trained_on_: start states of the training episodes.
        source_: data, counts and versions.
    """

    hub_files: ClassVar[tuple[str, ...]] = ("deviation.json", "deviation.safetensors")

    def __init__(
        self,
        site: SiteKey,
        tokens: Sequence[str] = TOKENS,
        pool: str = "mean",
        alpha: float = 30.0,
        memory: float = 0.5,
        segments: int = 2,
    ) -> None:
        if not tokens or not np.isfinite(alpha) or alpha < 0 or not 0 <= memory < 1 or segments < 1:
            raise ValueError(
                "a deviation needs groups of tokens, alpha >= 0, 0 <= memory < 1 and segments >= 1; given "
                f"{tokens}, {alpha}, {memory}, {segments}"
            )
        self.site, self.tokens, self.pool = site, tuple(tokens), pool
        self.alpha, self.memory, self.segments = float(alpha), float(memory), segments

    # -- fitting

    def fit(
        self,
        train: RolloutStore,
        advice: Advice,
        half_range: Float[Array, "7"],
        more: Iterable[Note] = (),
    ) -> Deviation:
        """Fit on all queries of `train`; an earlier fit is forgotten.

        Args:
            train: recorded episodes of a policy.
            advice: what the expert says to each of them.
            half_range: values per normalised unit of each dimension (`half_range_of`).
            more: further episodes, such as those of an edited policy.

        Raises:
            UnknownName: an episode without advice; no such site or tokens in the store.
            ValueError: the advice has other queries than the episode.
        """
        more = list(more)
        rows = np.concatenate([self.rows(train), *(note.rows for note in more)])
        said = [segment_means(note.deviation, self.segments) for note in more]
        self._solve(rows, np.concatenate([deviations(train, advice, half_range, self.segments), *said]))
        self.site_ = train.group(self.tokens[0], self.pool).one(self.site)
        units = [*unit_of_episode(train).values(), *(note.unit for note in more)]
        self.trained_on_: frozenset[StartState] = start_states(units)
        self.source_: dict[str, Any] = {
            "data": dict(train.manifest.settings),
            "episodes": len(train),
            "further_episodes": len(more),
            "queries": len(rows),
            "start_states": fingerprint(self.trained_on_),
            "versions": provenance(),
        }
        return self

    def out_of_fold(
        self, store: RolloutStore, advice: Advice, half_range: Float[Array, "7"], by: str = "init_state", folds: int = 5
    ) -> Float[Array, "queries segments 7"]:
        """Each query's prediction by a read-out that saw no episode of its task (`task`) or start state.

        Args:
            store: recorded episodes.
            advice: what the expert says to each of them.
            half_range: as in `fit`.
            by: `task` leaves tasks out; `init_state` start states, each with all its perturbations.
            folds: number of parts.

        Raises:
            UnknownName: another `by`.
        """
        if by not in ("task", "init_state"):
            raise UnknownName("what to leave out", by, ("task", "init_state"))
        rows, target = self.rows(store), deviations(store, advice, half_range, self.segments)
        units = unit_of_episode(store)
        keys = store.queries(["episode"])["episode"]
        places = {key: (unit.task,) if by == "task" else (unit.task, unit.init_state) for key, unit in units.items()}
        names = sorted(set(places.values()))
        groups = np.array([names.index(places[key]) for key in keys])
        predicted = np.full(target.shape, np.nan)
        for train, test in GroupKFold(folds).split(rows, groups=groups):
            one = Deviation(self.site, self.tokens, self.pool, self.alpha, self.memory, self.segments)
            one._solve(rows[train], target[train])
            predicted[test] = one.predict(rows[test])
        return predicted

    def _solve(self, rows: Float[Array, "queries width"], target: Float[Array, "queries segments 7"]) -> None:
        self.mean_ = rows.mean(0, dtype=np.float64)
        spread = rows.std(0, dtype=np.float64)
        self.scale_ = np.where(spread > 0, spread, 1.0)
        solved = Ridge(self.alpha).fit((rows - self.mean_) / self.scale_, target.reshape(len(target), -1))
        self.weights_, self.intercept_ = np.atleast_2d(solved.coef_), np.asarray(solved.intercept_)

    # -- reading

    def rows(self, store: RolloutStore) -> Float[Array, "queries width"]:
        """What is read at each query of a store."""
        return np.concatenate([store.load(self.site, tokens, self.pool)[0] for tokens in self.tokens], axis=1)

    def rows_of(self, cache: Any) -> Float[Array, "queries width"]:
        """What is read of a forward pass."""
        parts = [pooled(cache, self.site, tokens, self.pool).detach().float().cpu().numpy() for tokens in self.tokens]
        return np.concatenate(parts, axis=1)

    def predict(self, rows: Float[Array, "queries width"]) -> Float[Array, "queries segments 7"]:
        """Predicted deviations, normalised units.

        Raises:
            ValueError: nothing was fitted, or rows of another width.
        """
        if not hasattr(self, "weights_"):
            raise ValueError("this deviation is not fitted: call fit first")
        if rows.ndim != 2 or rows.shape[1] != len(self.mean_):
            raise ValueError(f"fitted on rows of width {len(self.mean_)}; given {rows.shape}")
        found = ((rows - self.mean_) / self.scale_) @ self.weights_.T + self.intercept_
        return found.reshape(len(rows), self.segments, len(ACTION_NAMES))

    def risk(self, store: RolloutStore) -> Float[Array, "queries 7"]:
        """Size of the persisting deviations at each query of a store, normalised units."""
        found = self.predict(self.rows(store)).mean(1)
        for places in store.queries(["episode"]).groupby("episode", sort=False).indices.values():
            m = self.start()
            for place in places:
                m = found[place] = self._after(m, found[place])
        return np.abs(found)

    def _after(self, m: Float[Array, "7"], predicted: Float[Array, "7"]) -> Float[Array, "7"]:
        return self.memory * m + (1 - self.memory) * predicted

    # -- as the risk of a gate (`RiskSource`)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The action dimensions."""
        return ACTION_NAMES

    @property
    def sites(self) -> tuple[SiteKey, ...]:
        """Where it reads."""
        return (self.site,)

    def start(self) -> Float[Array, "7"]:
        """See `RiskSource`."""
        return np.zeros(len(ACTION_NAMES))

    def step(self, cache: Any, state: Any) -> tuple[Float[Array, "7"], Any]:
        """See `RiskSource`."""
        m = self._after(state, self.predict(self.rows_of(cache))[0].mean(0))
        return np.abs(m), m

    def config(self) -> dict[str, Any]:
        """Everything that defines it, as JSON."""
        place = {
            "site": self.site_.name,
            "tokens": list(self.tokens),
            "pool": self.pool,
            "alpha": self.alpha,
            "memory": self.memory,
            "segments": self.segments,
        }
        return {"read_by": "Deviation", **place, "trained_on": fingerprint(self.trained_on_)}

    @property
    def trained_on(self) -> frozenset[StartState]:
        """See `Gate`."""
        return self.trained_on_

    def check_units(self, units: Any) -> None:
        """Refuse units on whose start states it was fitted.

        Raises:
            ValueError: there is one; the message names it.
        """
        refuse_shared(self.trained_on_, start_states(units))

    # -- keeping

    def save(self, folder: str | Path) -> None:
        """Write `deviation.safetensors` and `deviation.json`; no pickle."""
        facts = {
            "site": self.site_.name,
            "tokens": self.tokens,
            "pool": self.pool,
            "alpha": self.alpha,
            "memory": self.memory,
            "segments": self.segments,
            "trained_on": sorted(self.trained_on_),
            "source": self.source_,
        }
        keep(folder, "deviation", facts, {name: torch.from_numpy(getattr(self, f"{name}_")) for name in ARRAYS})

    @classmethod
    def load(cls, folder: str | Path) -> Deviation:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: there is none in this folder.
            ValueError: a format that this version does not know.
        """
        content, tensors = kept(folder, "deviation", "deviation")
        site = Site(content["site"])
        found = cls(site, content["tokens"], content["pool"], content["alpha"], content["memory"], content["segments"])
        for name, values in tensors.items():
            setattr(found, f"{name}_", values.numpy())
        found.site_, found.source_ = site, content["source"]
        found.trained_on_ = triples(content["trained_on"])
        return found

    def hub_facts(self) -> Mapping[str, Any]:
        """What the card on the Hub says of its making."""
        return {"site": self.site_.name, "tokens": self.tokens, "outputs": self.outputs, "source": self.source_}


ARRAYS = ("mean", "scale", "weights", "intercept")


def deviations(
    store: RolloutStore, advice: Advice, half_range: Float[Array, "7"], segments: int = 1
) -> Float[Array, "queries segments 7"]:
    """What the expert does otherwise at each query, mean over each segment of the chunk, normalised units.

    Raises:
        UnknownName: an episode without advice.
        ValueError: advice on another number of queries, or chunks of another length.
    """
    parts = []
    for key, rows in store.queries(["episode", "chunk"]).groupby("episode", sort=False):
        said = np.stack([np.stack(chunk) for chunk in rows["chunk"]])
        asked = advice.of(str(key))
        if said.shape != asked.shape:
            raise ValueError(f"{key} has chunks of shape {said.shape}, the advice on it {asked.shape}")
        parts.append(segment_means((asked - said) / half_range, segments))
    return np.concatenate(parts)


def segment_means(values: Float[Array, "queries chunk 7"], segments: int) -> Float[Array, "queries segments 7"]:
    """Means over equal parts of the chunk.

    Raises:
        ValueError: its length is no multiple of `segments`.
    """
    found: Array = values.reshape(len(values), segments, -1, values.shape[-1]).mean(2)
    return found


def half_range_of(policy: Any) -> Float[Array, "7"]:
    """Action values per normalised unit of a policy, 1 where a dimension is not normalised."""
    bounds = policy.bounds("action")
    low, high, mask = (np.asarray(part) for part in (bounds.low, bounds.high, bounds.mask))
    return np.where(mask, (high - low + 1e-8) / 2, 1.0)
