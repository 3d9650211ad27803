"""Collection in real LIBERO: two processes, kill -9, resume, and the stored actions replay to the stored states."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("libero")

from mist_interp.data import Protocol, RolloutStore, collect_rollouts
from mist_interp.data.replay import Blindfolded, replay
from mist_interp.libero.env import LiberoEnv
from mist_interp.libero.suite import LiberoSuite
from mist_interp.models.random import random_policy
from mist_interp.models.save import save_policy
from mist_interp.probing import Risk

pytestmark = pytest.mark.sim

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = Protocol(resolution=64, max_steps=16)
SCRIPT = """
import sys
from mist_interp.data import Protocol, collect_rollouts
if __name__ == "__main__":
    model, out, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    collect_rollouts(model, "libero_spatial", out=out, tasks=(0, 1), inits=range(3), sites="resid_post",
                     tokens=("action_read", "wrist"), protocol=Protocol(resolution=64, max_steps=16), workers=workers)
"""


def start(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    script = folder / "collect.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *arguments]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def test_killed_workers_lose_only_the_episodes_in_flight(tmp_path: Path) -> None:
    model, out = str(save_policy(random_policy(0), tmp_path / "policy")), tmp_path / "store"
    process = start(tmp_path, model, str(out), "2")
    deadline = time.monotonic() + 300
    while len(list((out / "episodes").glob("*.parquet"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, "the collection ended early"
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)  # its own session: the parent and both workers
    process.wait()
    kept = {key: RolloutStore.open(out).episode(key) for key in RolloutStore.open(out).keys}
    assert len(kept) >= 2

    assert start(tmp_path, model, str(out), "1").wait() == 0
    store = RolloutStore.open(out)
    assert len(store) == 6
    for key, before in kept.items():
        after = store.episode(key)
        assert (after.seconds, after.steps) == (before.seconds, before.steps), "a stored episode was run again"
    assert len(store.load(("resid_post", -1), "wrist")[0]) == len(store.queries()) == 12


@pytest.mark.parametrize("perturbation", ["none", "noise0.6"])
def test_an_episode_can_be_replayed_from_its_record(tmp_path: Path, perturbation: str) -> None:
    """Same start state, same actions: the simulator is in the recorded state at every query, bit for bit."""
    from mist_interp.tracing.hooked import HookedVLA

    suite = LiberoSuite("libero_spatial")
    vla = HookedVLA(random_policy(0).requires_grad_(False))
    store = collect_rollouts(
        vla, suite, out=tmp_path, tasks=(3,), inits=(7,), perturbations=(perturbation,), protocol=PROTOCOL
    )
    record = store.episode(store.keys[0])
    assert record.steps == 16 and record.instruction == suite[3].instruction
    env = LiberoEnv(suite[3], resolution=64)
    try:
        env.reset(7)
        for query in record.queries:
            assert env.state_hash() == query.state_hash
            seen = env.proprioception()
            np.testing.assert_allclose(query.robot_state[:3], seen["robot0_eef_pos"], atol=1e-6)
            np.testing.assert_allclose(query.objects["plate_1"][:3], seen["plate_1_pos"], atol=1e-6)
            assert query.hand is not None and query.hand.shape == (8, 13)
            for action, hand in zip(query.executed, query.hand, strict=True):
                np.testing.assert_array_equal(hand, env.hand_motion())
                env.step(action)
        again = replay(Blindfolded(env), record)
    finally:
        env.close()
    assert (again.contacts, again.releases) == (record.contacts, record.releases)
    assert again.touches is not None and again.touches == record.touches
    labels = Risk().labels(store)
    assert labels.values.shape == (2, 7) and np.isnan(labels.values).all(), "both windows go beyond the 16 steps"
