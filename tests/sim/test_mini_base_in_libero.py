"""Does mini-base drive LIBERO, one query per control step, and are its stored activations those of the first token?"""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("libero")

from mist_interp import HookedVLA
from mist_interp.data import Protocol, collect_rollouts
from mist_interp.libero.env import LiberoEnv
from mist_interp.libero.suite import LiberoSuite

pytestmark = pytest.mark.sim

STEPS = 3


@torch.no_grad()
def test_a_short_episode_is_stored_as_it_was_driven(tmp_path: Path) -> None:
    store = collect_rollouts(
        "mini-base",
        "libero_spatial",
        out=tmp_path / "store",
        sites=["resid_post"],
        tasks=[0],
        inits=[0],
        protocol=Protocol(max_steps=STEPS),
    )
    x, rows = store.load(("resid_post", -1))
    assert x.shape == (STEPS, 192) and list(rows["query"]) == list(range(STEPS))

    vla = HookedVLA.from_pretrained("mini-base")
    task = LiberoSuite("libero_spatial").tasks[0]
    env = LiberoEnv(task)
    env.reset(0)
    for step in range(STEPS):
        inputs = vla.prepare(env.observe(), task.instruction)
        last = vla.layout(inputs).length - 1
        first, cache = vla.run_with_cache(inputs, names=[("resid_post", -1)], step=0)
        np.testing.assert_allclose(x[step], cache["resid_post", -1][0, last].numpy(), atol=2e-2, rtol=2e-3)
        assert env.step(first.to_env()[0, 0].numpy()) is not None
    env.close()
