"""What would someone who sees the simulator's state have done at each query of a recorded episode?

The episode is replayed from its record; at every query the scripted expert drives a fork for as many steps as the
policy's chunk has, and the fork is thrown away. So every state that the policy came into on its own, the bad ones
above all, has an answer beside the policy's (the labels of DAgger: Ross et al., 2011). What is fitted on them sees
activations only; the simulator's state is needed to make the labels, never to use what was learned from them.

Advice is a folder with one Parquet file per episode, in the unit and convention of the policy's own chunks.

Where it misleads: the expert is one way of doing the task. That the policy does otherwise need not be wrong, and what
the expert does for eight steps with the state before its eyes is not what one look at the pictures can know.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.errors import UnknownName
from mist_interp.core.files import write_atomic
from mist_interp.data.records import Array, EpisodeRecord
from mist_interp.data.replay import replay_until

GRIPPER = ACTION_NAMES.index("gripper")


@dataclass(frozen=True)
class Advice:
    """The expert's chunks beside recorded episodes.

    Attributes:
        folder: one Parquet file per episode.
    """

    folder: Path

    def __contains__(self, episode: str) -> bool:
        return self._path(episode).is_file()

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the episodes that have advice."""
        return tuple(sorted(path.stem.replace("+", "/") for path in self.folder.glob("*.parquet")))

    def append(self, episode: str, chunks: Float[Array, "queries chunk 7"]) -> None:
        """Store the advice on one episode, whole or not at all."""
        buffer = io.BytesIO()
        shape = np.full(len(chunks), chunks.shape[1])
        table = pa.table({"chunk": chunks.reshape(len(chunks), -1).astype(np.float32).tolist(), "steps": shape})
        pq.write_table(table, buffer)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path(episode), buffer.getvalue())

    def of(self, episode: str) -> Float[Array, "queries chunk 7"]:
        """What the expert would have done, per query, as the policy's chunks are recorded.

        Raises:
            UnknownName: there is no advice on this episode.
        """
        if episode not in self:
            raise UnknownName(f"episode with advice in {self.folder}", episode, self.keys)
        table = pq.read_table(self._path(episode))
        values = np.array(table["chunk"].to_pylist(), dtype=np.float32)
        return values.reshape(len(values), -1, len(ACTION_NAMES))

    def _path(self, episode: str) -> Path:
        return self.folder / f"{episode.replace('/', '+')}.parquet"


def advise(env: Any, episode: EpisodeRecord) -> Float[Array, "queries chunk 7"]:
    """Ask the expert at every query of a recorded episode.

    Args:
        env: a `LiberoEnv` of the episode's task, fixtures placed with the episode's seed.
        episode: what is replayed.

    Raises:
        ValueError: the replay leaves the recorded states.
    """
    from mist_interp.libero.expert import Expert

    answers, expert, at = [], None, None
    for query in episode.queries:
        replay_until(env, episode, query.step, at)
        expert = expert or Expert(env)  # it remembers how the hand is turned before the first step
        answers.append(rehearsed(env, expert, len(query.chunk)))
        at = query.step
    return as_dataset(np.stack(answers))


def rehearsed(env: Any, expert: Any, steps: int) -> Float[Array, "steps 7"]:
    """The expert's next actions as the simulator takes them; the environment is put back to where it was."""
    before = env.save()
    actions = []
    for _ in range(steps):
        actions.append(expert.act())
        env.step(actions[-1])
    env.restore(before)
    return np.stack(actions)


def as_dataset(actions: Float[Array, "... 7"]) -> Float[Array, "... 7"]:
    """Actions as the simulator takes them (gripper -1 open) in the convention of the policy (1 open, 0 closed)."""
    converted = actions.astype(np.float32)
    converted[..., GRIPPER] = actions[..., GRIPPER] < 0
    return converted
