"""Steering a real (small, random) network: exactly there, exactly that much, and exactly nothing at zero."""

from __future__ import annotations

import pytest
import torch

from mist_interp.core.inputs import PolicyInputs
from mist_interp.models.random import random_policy
from mist_interp.steering import SteeringDirection
from mist_interp.tracing.hooked import HookedVLA


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return HookedVLA(random_policy(seed=3).requires_grad_(False))


@pytest.fixture(scope="module")
def inputs(vla: HookedVLA) -> PolicyInputs:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 255, (56, 56, 3), generator=generator, dtype=torch.uint8).numpy() for _ in range(4)]
    observations = [
        {
            "agentview_image": images[2 * i],
            "robot0_eye_in_hand_image": images[2 * i + 1],
            "robot0_eef_pos": [0.1, 0.2, 0.9],
            "robot0_eef_quat": [1.0, 0.0, 0.0, 0.0],
            "robot0_gripper_qpos": [0.04, -0.04],
        }
        for i in range(2)
    ]
    # Prompts of different lengths: the selected tokens lie at different positions in the two samples.
    return vla.prepare(observations, ["pick up the black bowl", "push the plate to the front of the stove"])


def direction(vla: HookedVLA, layer: int, tokens: str = "action_read") -> SteeringDirection:
    vector = torch.randn(vla.cfg.d_model, generator=torch.Generator().manual_seed(layer))
    return SteeringDirection(vla.site(("resid_post", layer)), vector, tokens)


@pytest.mark.parametrize("layer", [0, 2, -1])
@pytest.mark.parametrize("tokens", ["action_read", "wrist", "action_read.dz", "text:bowl"])
def test_the_change_is_where_it_was_asked_for_and_as_large(
    vla: HookedVLA, inputs: PolicyInputs, layer: int, tokens: str
) -> None:
    if tokens == "text:bowl":
        inputs = inputs[0]
    d = direction(vla, layer, tokens)
    _, clean = vla.run_with_cache(inputs, names=[d.site])
    with d.scope(vla, -1.5):
        _, steered = vla.run_with_cache(inputs, names=[d.site])
    change = steered[d.site].values - clean[d.site].values
    mask = vla.layout(inputs).mask(tokens)
    assert torch.equal(change[~mask], torch.zeros_like(change[~mask]))
    torch.testing.assert_close(change[mask], (-1.5 * d.vector).expand_as(change[mask]), atol=1e-4, rtol=1e-4)


def test_zero_is_bit_identical_and_more_is_not(vla: HookedVLA, inputs: PolicyInputs) -> None:
    d = direction(vla, 1)
    plain = vla(inputs).normalized
    with d.scope(vla, 0.0):
        assert vla.edits() == () and torch.equal(vla(inputs).normalized, plain)
    with d.scope(vla, 1.0):
        assert not torch.equal(vla(inputs).normalized, plain)
    assert vla.edits() == () and torch.equal(vla(inputs).normalized, plain)


def test_two_directions_add_up_whatever_the_order(vla: HookedVLA, inputs: PolicyInputs) -> None:
    a, b = direction(vla, 1), SteeringDirection.random(direction(vla, 1), seed=4)
    with a.scope(vla, 1.0), b.scope(vla, 2.0):
        nested = vla(inputs).normalized
    with (a + 2 * b).scope(vla, 1.0):
        summed = vla(inputs).normalized
    with b.scope(vla, 2.0), a.scope(vla, 1.0):
        swapped = vla(inputs).normalized
    torch.testing.assert_close(nested, summed, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(nested, swapped, atol=1e-5, rtol=1e-5)


def test_a_direction_of_another_model_is_an_error(vla: HookedVLA, inputs: PolicyInputs) -> None:
    wrong = SteeringDirection(vla.site(("resid_post", 1)), torch.ones(7))
    with pytest.raises(Exception, match=r"\(7,\): it was made with another model"), wrong.scope(vla, 1.0):
        vla(inputs)
    assert vla.edits() == ()
