"""The expert beside a recorded episode, in real LIBERO: it answers every query and leaves the episode as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("libero")

from mist_interp.data import Protocol, RolloutStore, collect_rollouts
from mist_interp.data.replay import Environments
from mist_interp.libero.expert import Expert
from mist_interp.probing.advice import Advice, advise, as_dataset, rehearsed

pytestmark = pytest.mark.sim


def test_the_expert_answers_every_query_and_the_replay_stays_on_the_recorded_states(tmp_path: Path) -> None:
    # Recorded here and now: the states of another machine's processor differ in their last bits.
    protocol = Protocol(resolution=64, max_steps=40, profile="fast")
    collect_rollouts("mini", "libero_spatial", out=tmp_path / "rollouts", tasks=(0,), inits=(0,), protocol=protocol)
    store = RolloutStore.open(tmp_path / "rollouts")
    (key,) = store.keys
    episode = store.episode(key)
    with Environments() as environments:
        env = environments.of(episode)
        said = advise(env, episode)  # raises where a rehearsal has disturbed what comes after it
        env.reset(episode.unit.init_state)
        before, expert = env.state_hash(), Expert(env)
        first = rehearsed(env, expert, 8)
        assert env.state_hash() == before
        for action in first[:4]:
            env.step(action)
        following = rehearsed(env, expert, 4)
    assert said.shape == (len(episode.queries), 8, 7)
    assert np.allclose(said[0], as_dataset(first), atol=1e-6) and np.allclose(first[4:], following)
    assert set(np.unique(said[..., 6])) <= {0.0, 1.0} and as_dataset(np.array([[0] * 6 + [-1.0]]))[0, 6] == 1
    assert np.abs(said[..., :6]).max() <= 1 and np.ptp(said[:, 0], axis=0)[:3].min() > 0
    advice = Advice(tmp_path / "advice")
    advice.append(key, said)
    assert key in advice and np.array_equal(advice.of(key), said) and advice.keys == (key,)
