"""What is a probe asked to foresee, and at which queries is the answer known?

A target turns recorded episodes into one row of labels per policy query: 1, 0, or *masked* where the record does not
say. A masked query is neither positive nor negative; why it is masked is counted. Labels have one column per output,
so that a target may speak of each action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from mist_interp.core.errors import UnknownName
from mist_interp.data.store import RolloutStore
from mist_interp.probing.labels import Labels as Labels
from mist_interp.probing.labels import Target as Target
from mist_interp.probing.risk import CONTACT_FREE_STEPS, Risk


@dataclass(frozen=True)
class Failure:
    """Will this episode fail?

    All queries of an episode share its outcome. A failed episode runs to the step limit while a success ends early,
    so a late query alone would give the answer away: with `cut`, queries beyond the shortest episode of the task are
    masked, and every episode of a task then has the same queries.

    Attributes:
        cut: mask queries beyond the shortest episode of the same task in the store.
    """

    cut: bool = True

    @property
    def name(self) -> str:
        """Name in tables."""
        return "failure"

    def labels(self, store: RolloutStore) -> Labels:
        """1 in failed episodes, 0 in successful ones."""
        store.check_outcomes()
        episodes = store.episodes().set_index("episode")
        queries = store.queries(["episode", "query", "step"])
        rows = episodes.loc[queries["episode"]]
        values = (~rows["success"].to_numpy(dtype=bool)).astype(np.float64)
        masked = {}
        if self.cut:
            shortest = episodes.groupby(["suite", "task"])["n_queries"].min()
            limits = shortest.loc[pd.MultiIndex.from_frame(rows[["suite", "task"]])].to_numpy()
            late = queries["query"].to_numpy() >= limits
            values[late] = np.nan
            masked["later than the shortest episode of the task"] = int(late.sum())
        return _labels(values, self.name, queries, masked, time_to_failure(store)["steps"].to_numpy())


@dataclass(frozen=True)
class FailureWithin:
    """Will this episode have failed `within` control steps from now?

    An episode fails at its step limit, so the time to failure of a failed episode is what is left until then.

    Where it misleads: among failed episodes the answer *is* the clock. Successful ones are over by then, so that late
    queries exist in failed episodes only; read it beside the control "step counter", or take `Failure` with its cut.

    Attributes:
        within: control steps.
    """

    within: int = 60

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"failure within {self.within} steps"

    def labels(self, store: RolloutStore) -> Labels:
        """1 in the last `within` steps of failed episodes, else 0."""
        left = time_to_failure(store)
        values = (left["steps"] <= self.within).to_numpy(dtype=np.float64)
        return _labels(values, self.name, left, {}, left["steps"].to_numpy())


def time_to_failure(store: RolloutStore) -> pd.DataFrame:
    """Per query, in the order of `store.queries()`: control steps until the episode fails; infinite if it succeeds.

    Returns:
        Columns `episode`, `query`, `step` (of the query), `steps` (left).
    """
    store.check_outcomes()
    episodes = store.episodes().set_index("episode")
    queries = store.queries(["episode", "query", "step"])
    rows = episodes.loc[queries["episode"]]
    left = rows["max_steps"].to_numpy() - queries["step"].to_numpy()
    steps = np.where(rows["success"].to_numpy(dtype=bool), np.inf, left)
    return queries.assign(steps=steps)


@dataclass(frozen=True)
class ContactAhead:
    """Will a forbidden contact begin soon?

    For a query at control step t the window is the chunk that the query decides and `horizon` steps beyond it: t ..
    t + chunk + horizon - 1. 1 if an event starts in it, 0 if none does and the episode covers the whole window.

    Attributes:
        horizon: control steps beyond the end of the chunk.
        force: an event counts from this peak force (N) on.
    """

    horizon: int = 10
    force: float = 1.0

    @property
    def name(self) -> str:
        """Name in tables."""
        return "contact ahead"

    def labels(self, store: RolloutStore) -> Labels:
        """1 where a forbidden contact starts within the window, 0 where none does, masked where unknown."""
        store.check_outcomes()
        queries = store.queries(["episode", "query", "step", "chunk"])
        episodes = store.episodes().set_index("episode")
        spans = {key: self._events(contacts) for key, contacts in episodes["contacts"].items()}
        lengths = episodes["steps"].to_dict()
        values, ahead = np.zeros(len(queries)), np.full(len(queries), np.nan)
        masked = {"in contact": 0, "the episode ends inside the window": 0}
        rows = zip(queries["episode"], queries["step"], queries["chunk"], strict=True)
        for number, (key, step, chunk) in enumerate(rows):
            end = step + len(chunk) + self.horizon
            starts, ends = spans[key]
            # Between the first touch and the last contact-free step nothing is foreseen, it is being lived through.
            if np.any((starts < step) & (step <= ends + CONTACT_FREE_STEPS)):
                values[number] = np.nan
                masked["in contact"] += 1
            elif np.any((starts >= step) & (starts < end)):
                values[number] = 1.0
                ahead[number] = starts[starts >= step].min() - step
            elif end > lengths[key]:
                values[number] = np.nan
                masked["the episode ends inside the window"] += 1
        return _labels(values, self.name, queries, masked, ahead)

    def _events(self, contacts: Any) -> tuple[np.ndarray, np.ndarray]:
        kept = [contact for contact in contacts if contact["peak_force"] >= self.force]
        return np.array([c["start_step"] for c in kept]), np.array([c["end_step"] for c in kept])


TARGETS: Mapping[str, type[Failure] | type[FailureWithin] | type[ContactAhead] | type[Risk]] = {
    "failure": Failure,
    "failure within": FailureWithin,
    "contact": ContactAhead,
    "risk": Risk,
}


def target(name: str | Target) -> Target:
    """The target of this name with its default settings; a target is returned as it is.

    Raises:
        UnknownName: there is none.
    """
    if not isinstance(name, str):
        return name
    if name not in TARGETS:
        raise UnknownName("target", name, TARGETS)
    return TARGETS[name]()


def target_config(value: Target) -> dict[str, Any]:
    """Plain values from which `target_from_config` makes an equal target.

    Raises:
        UnknownName: a target of another kind, which cannot be stored.
    """
    for name, kind in TARGETS.items():
        if isinstance(value, kind):
            return {"kind": name, **asdict(value)}
    raise UnknownName("target that can be stored", type(value).__name__, TARGETS)


def target_from_config(config: Mapping[str, Any]) -> Target:
    """Inverse of `target_config`."""
    settings = dict(config)
    kind = settings.pop("kind")
    if kind not in TARGETS:
        raise UnknownName("target", kind, TARGETS)
    return TARGETS[kind](**settings)


def _labels(
    values: np.ndarray, name: str, queries: pd.DataFrame, masked: Mapping[str, int], ahead: np.ndarray
) -> Labels:
    ahead = np.where(values == 1, ahead, np.nan)[:, None]
    episode, query = queries["episode"].to_numpy(), queries["query"].to_numpy()
    return Labels(values[:, None], (name,), episode, query, masked, ahead=ahead, step=queries["step"].to_numpy())
