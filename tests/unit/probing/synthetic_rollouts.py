"""Synthetic rollouts whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mist_interp.data.manifest import TokenGroup
from mist_interp.data.records import ContactRecord, EpisodeRecord, QueryRecord, Unit
from mist_interp.data.store import RolloutStore

SITE = "blocks.3.hook_resid_post"
NOISE_SITE = "blocks.0.hook_resid_post"
GROUP = TokenGroup("action_read", (NOISE_SITE, SITE))
WIDTH = 16

MakeStore = Callable[..., RolloutStore]


def contact(start: int, end: int | None = None, force: float = 5.0) -> ContactRecord:
    return ContactRecord(
        start, start if end is None else end, "hand", "table", "hand-table", force, 0.1, (0, 0, 0), (0, 0, 1)
    )


def make_episode(
    task: int,
    init_state: int,
    rng: np.random.Generator,
    *,
    success: bool = True,
    n_queries: int = 8,
    contacts: tuple[ContactRecord, ...] = (),
    signal: Any = None,
    action: Any = None,
    state: Any = None,
    task_offset: np.ndarray | None = None,
    simulator_seed: int = 0,
) -> EpisodeRecord:
    """Noise everywhere, plus a signal on coordinate 5 of `SITE`, coordinate 2 of the first action or of the state."""
    queries = []
    for i in range(n_queries):
        x, noise = rng.normal(size=WIDTH), rng.normal(size=WIDTH)
        chunk, robot = rng.normal(size=(8, 7)), rng.normal(size=9)
        if signal is not None:
            x[5] += signal[i] if np.ndim(signal) else signal
        if task_offset is not None:
            x += task_offset
        if action is not None:
            chunk[0, 2] += action[i] if np.ndim(action) else action
        if state is not None:
            robot[2] += state[i] if np.ndim(state) else state
        activations = {GROUP.key(SITE): x, GROUP.key(NOISE_SITE): noise}
        queries.append(QueryRecord(i, 8 * i, chunk, np.clip(chunk, -1, 1), robot, activations=activations))
    return EpisodeRecord(
        unit=Unit("libero_spatial", task, init_state, simulator_seed=simulator_seed),
        instruction="go",
        success=success,
        steps=8 * n_queries,
        max_steps=220,
        queries=tuple(queries),
        contacts=contacts,
    )


def outcome_store(
    make_store: MakeStore,
    *,
    tasks: int = 6,
    inits: int = 16,
    first_init: int = 0,
    seed: int = 0,
    failure_rate: float = 0.5,
    **strengths: float,
) -> RolloutStore:
    """Episodes that fail at random; `signal`, `action`, `state` say how strongly the failure shows where."""
    rng = np.random.default_rng(seed)
    episodes = []
    for task in range(tasks):
        offset = 0.5 * rng.normal(size=WIDTH)
        for init_state in range(first_init, first_init + inits):
            success = bool(rng.random() > failure_rate)
            shown = {name: strength * (not success) for name, strength in strengths.items()}
            episodes.append(make_episode(task, init_state, rng, success=success, task_offset=offset, **shown))
    return make_store(episodes)
