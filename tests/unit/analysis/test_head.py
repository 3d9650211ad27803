"""Is the direction of an action number its gradient, and do frozen parts add up?"""

from __future__ import annotations

import pytest
import torch
from small_policies import queries, small

from mist_interp.analysis.head import action_weights, head_direction, read_states, tail, target_value
from mist_interp.core.errors import UnknownName


def last_states(vla, inputs):
    site = vla.site(("resid_post", -1))
    action, states = read_states(vla, inputs, site)
    return action, states[site]


def test_the_tail_is_the_policys_own():
    vla = small()
    action, states = last_states(vla, queries(vla))
    torch.testing.assert_close(tail(vla, states), action.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["discrete", "base"])
def test_the_tail_of_token_policies_measures_the_chosen_bin(variant):
    vla = small(variant)
    _, states = last_states(vla, queries(vla))
    normalized = vla.policy.language_model.model.norm(states)
    logits = vla.policy.language_model.lm_head(normalized)
    vocabulary = vla.policy.config.bin_vocab_size
    of_bins = logits[..., vocabulary - 256 : vocabulary]
    expected = (of_bins.max(-1).values - of_bins.mean(-1)).reshape(2, vla.cfg.chunk, 7)
    torch.testing.assert_close(tail(vla, states).float(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", ["t0.dz", "gripper", {"t1.dx": 1.0, "t7.dyaw": -2.0}])
def test_a_small_push_along_the_direction_moves_the_action_as_it_says(target):
    vla = small()
    inputs = queries(vla)
    direction = head_direction(vla, inputs, target)
    push, site = 1e-3 * direction, vla.site(("resid_post", -1))
    with vla.hooks((site, lambda values, site: values + push, "action_read")):
        pushed = vla(inputs)
    weights = action_weights(vla, target)
    moved = ((pushed.values - vla(inputs).values) * weights).sum((1, 2))
    torch.testing.assert_close(moved, 1e-3 * direction.pow(2).sum((1, 2)), rtol=0.02, atol=1e-6)


def test_only_the_tokens_of_the_step_have_a_direction():
    vla = small()
    direction = head_direction(vla, queries(vla), "t2.dz").unflatten(1, (8, 7)).abs().sum((0, -1))
    assert (direction[2] > 0).all() and direction[[0, 1, 3, 4, 5, 6, 7]].sum() == 0


def test_live_and_frozen_directions_differ_as_they_say():
    """The head starts with a norm: a larger state changes nothing, so the live gradient has no share."""
    vla = small()
    inputs = queries(vla)
    _, states = last_states(vla, inputs)
    states = states.double()
    live, frozen = (head_direction(vla, inputs, "t0.dz", frozen=how) for how in (False, True))
    assert (live * states).sum((1, 2)).abs().max() < 1e-5 < (frozen * states).sum((1, 2)).abs().min()
    zero = target_value(vla, torch.zeros_like(states), "t0.dz", at=states)
    total = zero + (frozen * states).sum((1, 2))
    torch.testing.assert_close(total, target_value(vla, states, "t0.dz"), atol=1e-9, rtol=0)


def test_read_states_join_the_runs_of_base_openvla():
    vla = small("base")
    inputs = queries(vla)
    action, states = last_states(vla, inputs)
    assert states.shape == (2, 7, 64)
    tokens = vla.policy.language_model.lm_head(vla.policy.language_model.model.norm(states)).argmax(-1)
    assert torch.equal(tokens, action.token_ids[:, 0])


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        ("t0.dzz", UnknownName, "did you mean 'dz'"),
        ("t8.dz", UnknownName, "t7"),
        ("t0", ValueError, "t0.dx"),
        ({"dz": 0.0}, ValueError, "no number any weight"),
        ({}, ValueError, "no number any weight"),
        (["t0.dz"], TypeError, "numbers with weights.*given a list"),
    ],
)
def test_wrong_targets(target, error, text):
    vla = small()
    with pytest.raises(error, match=text):
        head_direction(vla, queries(vla), target)


def test_a_diffusion_head_has_no_direction():
    vla = small("diffusion")
    with pytest.raises(ValueError, match="predicts the noise"):
        head_direction(vla, queries(vla), "t0.dz")
