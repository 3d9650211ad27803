"""Does the rest of a network continue exactly what the whole one does?"""

from __future__ import annotations

import threading

import pytest
import torch

from mist_interp.core.errors import UnknownName
from mist_interp.models import random_policy
from mist_interp.models.rest import rest_of
from mist_interp.tracing import HookedVLA, add, scale
from mist_interp.tracing.checks import noise_inputs
from mist_interp.tracing.rest import RestOfForward

torch.set_num_threads(1)
SIZES = {"layers": 3, "image_size": 28, "chunk_size": 2, "hidden": 48, "heads": 3}


def hooked(variant: str, attention: str = "sdpa") -> HookedVLA:
    policy = random_policy(variant=variant, **SIZES).requires_grad_(False)
    policy.set_attn_implementation(attention)
    return HookedVLA(policy)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", ["l1", "discrete"])
def test_it_continues_bit_for_bit(variant, attention) -> None:
    vla = hooked(variant, attention)
    for inputs in (noise_inputs(vla), noise_inputs(vla)[:1]):  # with padding and without
        answer, cache = vla.run_with_cache(inputs)
        for site in [*vla.sites("resid_pre"), *vla.sites("resid_post"), *vla.sites("hook_embed")]:
            rest = RestOfForward(vla, site)(cache[site].values, inputs)
            assert torch.equal(rest.values, answer.values), site


def test_hooks_apply_behind_the_start_and_are_refused_before_it() -> None:
    vla = hooked("l1")
    inputs = noise_inputs(vla)
    _, cache = vla.run_with_cache(inputs)
    hooks = [(("z", 1), lambda x, site: 2 * x), (("resid_post", 2), lambda x, site: x + 1, "action_read")]
    rest = RestOfForward(vla, ("resid_pre", 1))
    states = cache["resid_pre", 1].values
    assert torch.equal(rest(states, inputs, hooks).values, vla.run_with_hooks(inputs, hooks).values)
    with vla.hooks(hooks[0]):
        live = rest(states, inputs, hooks[1:])
    assert torch.equal(live.values, rest(states, inputs, hooks).values)
    with pytest.raises(ValueError, match="not computed after"):
        rest(states, inputs, [(("attn_out", 0), lambda x, site: x)])
    with pytest.raises(ValueError, match="can go on after"):
        RestOfForward(vla, ("attn_out", 1))


def test_the_rest_is_a_forward_like_any_other() -> None:
    vla = hooked("l1")
    inputs = noise_inputs(vla)
    _, cache = vla.run_with_cache(inputs)
    states, rest = cache["resid_pre", 1].values, RestOfForward(vla, ("resid_pre", 1))
    edits = [scale(("mlp_out", 2), 2.0), add(("resid_post", 1), torch.ones(48), "action_read")]
    with vla.hooks(*edits, scale(("mlp_out", 0), 1.0)):
        vla(inputs)
        whole = vla.changes()
    with vla.hooks(edits[0], scale(("mlp_out", 0), 1.0)):
        rest(states, inputs, edits[1:])
        assert [change.edit for change in vla.changes()] == [change.edit for change in whole[:2]]
        assert [change.total for change in vla.changes()] == pytest.approx([change.total for change in whole[:2]])
    rest(states, inputs)
    assert vla.changes() == ()


def test_the_rest_does_not_run_under_the_edits_of_another_thread() -> None:
    vla = hooked("l1")
    inputs = noise_inputs(vla)
    _, cache = vla.run_with_cache(inputs)
    rest, found = RestOfForward(vla, ("resid_pre", 1)), []

    def work() -> None:
        try:
            rest(cache["resid_pre", 1].values, inputs)
        except RuntimeError as error:
            found.append(str(error))

    with vla.hooks(scale(("mlp_out", 2), 2.0)):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(found) == 1 and "edits of another thread" in found[0]


def test_states_of_another_shape() -> None:
    vla = hooked("l1")
    inputs = noise_inputs(vla)
    _, cache = vla.run_with_cache(inputs)
    states, rest = cache["resid_pre", 1].values, RestOfForward(vla, ("resid_pre", 1))
    for wrong in (states[:1], states[..., :-1], states[0]):
        with pytest.raises(ValueError, match=r"states of shape .* batch = 2 and d_model = 48"):
            rest(wrong, inputs)
    with pytest.raises(IndexError, match=r"no 7, only 0\.\.2"):
        rest(states, inputs, [scale(("z", 1), 2.0, head=7)])


def test_the_weights_are_shared() -> None:
    vla = hooked("l1")
    inputs = noise_inputs(vla)
    _, cache = vla.run_with_cache(inputs)
    rest = rest_of(vla.policy, 2)
    states = cache["resid_pre", 2].values
    before = rest(states, inputs).values
    with torch.no_grad():
        vla.policy.language_model.model.layers[2].mlp.down_proj.weight.mul_(1.5)
    assert not torch.equal(rest(states, inputs).values, before)


def test_what_has_no_rest() -> None:
    with pytest.raises(ValueError, match="several times"):
        rest_of(random_policy(variant="diffusion", **SIZES), 0)
    vla = hooked("l1")
    with pytest.raises(UnknownName, match="layer"):
        rest_of(vla.policy, 4)
    inputs = noise_inputs(vla)
    _, cache = vla.run_with_cache(inputs)
    with pytest.raises(ValueError, match="tokens"):
        rest_of(vla.policy, 0)(cache["hook_embed"].values, inputs[1])
