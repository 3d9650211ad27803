"""What else happened in a recorded episode?

The simulator is deterministic and the record holds every action that drove it, so an episode can be run again, bit for
bit, to see what was not written down: an older layout lacks allowed contacts, a picture was not kept, and an audit
asks what would have happened without one dimension. The state's hash is compared at every query; a replay that leaves
the recorded states (another version of the simulator, or a processor that rounds otherwise) is an error and never a
result.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mist_interp.core.files import write_atomic
from mist_interp.data.attempts import SURPLUS
from mist_interp.data.findings import findings_text, read_findings
from mist_interp.data.manifest import SCHEMA_VERSION
from mist_interp.data.perturbation import NONE
from mist_interp.data.records import Decision, EpisodeRecord
from mist_interp.data.rollout import Environment, rollout
from mist_interp.data.store import RolloutStore


class ReplayDiffers(ValueError):
    """The simulator does not come back to the recorded states, so what it would show is not what was recorded."""


class Blindfolded:
    """An environment whose observations lack the pictures, which a replay has no use for.

    Args:
        env: a `LiberoEnv`.
    """

    def __init__(self, env: Any) -> None:
        self._env = env

    def observe(self) -> Mapping[str, Any]:
        """The observation without images."""
        observation: Mapping[str, Any] = self._env.proprioception()
        return observation

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


def replay_until(
    env: Environment,
    episode: EpisodeRecord,
    step: int,
    start: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Bring an environment of the episode's task to the moment before control step `step` (from 0).

    Args:
        env: the environment.
        episode: what was recorded.
        step: where to stop.
        start: the control step before which the environment already is; None begins with a reset.
        on_step: called with the number of finished control steps, 0 after the reset: frames of a film.

    Raises:
        ReplayDiffers: the replay leaves the recorded states; names the query.
        ValueError: the episode is shorter.
    """
    if not (start or 0) <= step <= episode.steps:
        raise ValueError(f"{episode.key} has control steps {start or 0} to {episode.steps}, asked for {step}")
    tell = on_step or (lambda _: None)
    if start is None:
        env.reset(episode.unit.init_state)
        tell(0)
    done = start or 0
    for query in episode.queries:
        if query.step > step:
            return
        if query.step >= done:
            _check(env, episode, query.index)
        for action in query.executed[max(0, done - query.step) : step - query.step]:
            env.step(action)
            done += 1
            tell(done)


def replay(env: Environment, episode: EpisodeRecord) -> EpisodeRecord:
    """Run a whole episode again and record what the present layout records.

    Args:
        env: an environment of the episode's task, fixtures placed with the same seed. Pictures are asked for at every
            query: wrap it in `Blindfolded` to save their time.
        episode: what was recorded; its activations, scores, edits and timings are kept.

    Raises:
        ReplayDiffers: the replay leaves the recorded states; names the query.
        ValueError: it ends otherwise.
    """

    def act(observation: Mapping[str, Any], index: int) -> Decision:
        _check(env, episode, index)
        query = episode.queries[index]
        return Decision(query.executed, chunk=query.chunk, activations=query.activations)

    # What disturbed the robot is part of what was executed.
    unit = replace(episode.unit, perturbation=NONE)
    again = rollout(env, act, unit=unit, instruction=episode.instruction, max_steps=episode.steps, arm=episode.arm)
    if (again.steps, again.success) != (episode.steps, episode.success):
        raise ValueError(f"replay of {episode.key} ends otherwise than the recorded episode: {again.success}")
    queries = tuple(replace(old, hand=new.hand) for old, new in zip(episode.queries, again.queries, strict=True))
    return replace(episode, queries=queries, contacts=again.contacts, touches=again.touches, releases=again.releases)


def upgrade(store: RolloutStore, out: str | Path) -> RolloutStore:
    """Replay the episodes of a store of LIBERO rollouts into a store of the present layout; resumable.

    Their films, what an audit found in them, and the attempts that were not stored go along.

    Args:
        store: rollouts of any readable layout; a view (`where`, `only`) gives its episodes.
        out: folder of the new store.

    Raises:
        ValueError: a replay leaves the recorded states.
    """
    store.check_outcomes()
    new = RolloutStore.create(out, replace(store.manifest, version=SCHEMA_VERSION))
    with Environments() as environments:
        for key in store.keys:
            if key not in new:
                episode = store.episode(key)
                new.append(replay(Blindfolded(environments.of(episode)), episode))
    for name, film in store.videos().items():
        (new.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(film, new.folder / name)
    if findings := read_findings(store.audit_path, store.keys):
        write_atomic(new.audit_path, findings_text(findings))
    attempts = store.folder / SURPLUS
    if attempts.is_file() and store.kept is None:  # attempts that were run and not stored: the counts need them
        shutil.copyfile(attempts, new.folder / SURPLUS)
    return new


class Environments:
    """Keeps the LIBERO environment of the last episode's task; a context manager that closes it."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._env: Any = None

    def of(self, episode: EpisodeRecord) -> Any:
        """An environment in which the episode can be replayed."""
        unit = episode.unit
        key = (unit.suite, unit.task, unit.simulator_seed)
        if key != self._key:
            from mist_interp.libero.env import LiberoEnv
            from mist_interp.libero.suite import LiberoSuite

            self.close()
            self._env, self._key = LiberoEnv(LiberoSuite(unit.suite).tasks[unit.task], seed=unit.simulator_seed), key
        return self._env

    def close(self) -> None:
        """Free the simulator."""
        env, self._env, self._key = self._env, None, None
        if env is not None:
            env.close()

    def __enter__(self) -> Environments:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(env: Environment, episode: EpisodeRecord, index: int) -> None:
    recorded = episode.queries[index].state_hash
    if recorded and env.state_hash() != recorded:
        raise ReplayDiffers(
            f"the replay of {episode.key} leaves the recorded states at query {index}; it was recorded with "
            f"MuJoCo {dict(episode.provenance).get('mujoco', '(unknown version)')}. States repeat bit for bit with "
            "that version and on a processor that rounds alike: replay where it was recorded, or record it here again"
        )
