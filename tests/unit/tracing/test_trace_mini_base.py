"""Can every one of mini-base's seven runs be read, named by the action number that it generates?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.tracing.hooked import HookedVLA

WORDS = "pick up the black bowl on the stove and place it on the plate"


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return HookedVLA.from_pretrained("mini-base")


@pytest.fixture(scope="module")
def inputs(vla: HookedVLA):  # type: ignore[no-untyped-def]
    y, x = np.mgrid[0:256, 0:256]
    return vla.prepare({"agentview_image": np.stack([y, x, 255 - y], -1).astype(np.uint8)}, WORDS)


@pytest.mark.parametrize(("run", "name"), list(enumerate(ACTION_NAMES)))
def test_each_run_says_its_own_number(vla: HookedVLA, inputs, run: int, name: str) -> None:  # type: ignore[no-untyped-def]
    out, cache = vla.run_with_cache(inputs, names=["logits", "resid_post"], step=name)
    assert out.token_ids is not None
    said = cache["logits"].reshape(-1, vla.policy.config.llm.vocab_size)[-1].argmax()
    assert int(said) == int(out.token_ids[0, 0, run])
    length = vla.layout(inputs).length
    assert cache["resid_post", 0].shape == (1, length if run == 0 else 1, 192)


def test_action_read_is_the_end_of_the_prompt(vla: HookedVLA, inputs) -> None:  # type: ignore[no-untyped-def]
    _, every = vla.run_with_cache(inputs, names=[("resid_post", 3)])
    _, read = vla.run_with_cache(inputs, names=[("resid_post", 3)], tokens="action_read")
    assert torch.equal(read["resid_post", 3], every["resid_post", 3][:, -1:])


def test_the_checks_pass(vla: HookedVLA, inputs) -> None:  # type: ignore[no-untyped-def]
    vla.check(inputs)
