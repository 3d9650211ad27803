"""The edit of one query on a real (random) network: its derivative, what it moves and what it holds."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.models.random import random_policy
from mist_interp.models.read_rest import numbers_of_steps
from mist_interp.steering.correction import Correctable, correctable, corrected, reached
from mist_interp.steering.jacobian import action_jacobian, minimum_norm_edit
from mist_interp.tracing.checks import noise_inputs
from mist_interp.tracing.hooked import HookedVLA
from mist_interp.tracing.rest import RestOfForward


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return HookedVLA(random_policy(0).double().requires_grad_(False))


@pytest.fixture(scope="module")
def inputs(vla: HookedVLA) -> PolicyInputs:
    return noise_inputs(vla)[0]


def ready(vla: HookedVLA, inputs: PolicyInputs, layer: int, steps: tuple[int, ...] | None) -> Correctable:
    rest = RestOfForward(vla, ("resid_post", layer))
    _, cache = vla.run_with_cache(inputs, names=[rest.after])
    return correctable(rest, inputs, cache[rest.after], steps)


@pytest.mark.parametrize("layer", [0, -2, -1])
@pytest.mark.parametrize("steps", [None, (1, 0)])
def test_the_numbers_and_the_derivative_are_those_of_the_whole_network(
    vla: HookedVLA, inputs: PolicyInputs, layer: int, steps: tuple[int, ...] | None
) -> None:
    at = ready(vla, inputs, layer, steps)
    chosen = list(range(vla.cfg.chunk) if steps is None else steps)
    whole = vla(inputs).normalized[0, chosen].double().mean(0)
    assert torch.allclose(at.numbers, whole, atol=1e-6)
    values = torch.zeros_like(at.jacobian)
    positions = [f"action_read.t{step}" for step in chosen]
    half = torch.tensor(vla.policy.bounds("action").high) - torch.tensor(vla.policy.bounds("action").low)
    scale = torch.where(torch.tensor(vla.policy.bounds("action").mask), half.double() / 2, 1.0)
    for step in chosen:  # the same derivative by the slow way, step by step and through every token
        found = action_jacobian(vla, inputs, ("resid_post", layer), positions, step)[0]
        values += (found / scale[:, None, None] / len(chosen)).to(values)
    assert torch.allclose(at.jacobian, values, atol=1e-6 * float(values.abs().max()), rtol=1e-4)


def test_the_derivative_is_the_slope_of_finite_differences(vla: HookedVLA, inputs: PolicyInputs) -> None:
    at = ready(vla, inputs, 0, None)
    push = torch.randn(at.jacobian.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numbers = numbers_of_steps(vla.policy, 1, at.states, at.positions, at.steps)
    here = at.states[at.positions]
    slope = (numbers(here + 1e-4 * push) - numbers(here - 1e-4 * push)).mean(0) / 2e-4
    # Norms and softmax are in float32, and a larger difference crosses kinks of the head.
    assert torch.allclose(slope, at.predicted(push), rtol=0, atol=2e-3)


@pytest.mark.parametrize("dim", ["dx", "dz", "dyaw", "gripper"])
@pytest.mark.parametrize("layer", [0, -2])
def test_a_small_edit_moves_its_dimension_and_holds_the_others(
    vla: HookedVLA, inputs: PolicyInputs, dim: str, layer: int
) -> None:
    at, rest = ready(vla, inputs, layer, None), RestOfForward(vla, ("resid_post", layer))
    delta = torch.tensor([0.01 * (name == dim) for name in ACTION_NAMES]).double()
    edit = at.edit(delta)
    assert torch.allclose(at.predicted(edit), delta, atol=1e-9)
    chunk, norm = corrected(rest, inputs, at, edit)
    moved = (chunk.normalized - vla(inputs).normalized)[0].double().mean(0)
    share = moved / 0.01
    assert float(share[ACTION_NAMES.index(dim)]) == pytest.approx(1, abs=0.05)
    assert float(share[[name != dim for name in ACTION_NAMES]].abs().max()) < 0.05
    assert norm == pytest.approx(float(edit.norm()), rel=1e-3)


def test_the_edit_is_the_smallest_one_and_that_of_the_pseudo_inverse(vla: HookedVLA, inputs: PolicyInputs) -> None:
    at = ready(vla, inputs, 0, (0, 1))
    delta = torch.tensor([0, 0.1, 0, -0.2, 0, 0, 0.05]).double()
    edit = at.edit(delta)
    assert torch.allclose(edit, minimum_norm_edit(at.jacobian.double(), delta), atol=1e-8)
    other = torch.randn(edit.shape, generator=torch.Generator().manual_seed(1)).double()
    rows = at.jacobian.double().flatten(1)
    kernel = other.flatten() - torch.linalg.pinv(rows) @ (rows @ other.flatten())
    assert float((edit.flatten() + kernel).norm()) > float(edit.norm())
    loose = at.edit(delta, hold=False)
    assert float(loose.norm()) < float(edit.norm())


@pytest.mark.parametrize("rounds", [1, 3])
def test_an_edit_that_holds_nothing_needs_the_derivative_of_what_it_moves_alone(
    vla: HookedVLA, inputs: PolicyInputs, rounds: int
) -> None:
    rest = RestOfForward(vla, ("resid_post", 0))
    _, cache = vla.run_with_cache(inputs, names=[rest.after])
    whole = correctable(rest, inputs, cache[rest.after], None, 2)
    some = correctable(rest, inputs, cache[rest.after], None, 2, ("dz", "dx"))
    taken = [place for place in range(14) if ACTION_NAMES[place % 7] in ("dx", "dz")]
    assert torch.allclose(some.jacobian[taken], whole.jacobian[taken], rtol=1e-6)
    delta = torch.zeros(14, dtype=torch.float64)
    delta[2], delta[9] = 0.3, -0.2
    free, same = (reached(rest, inputs, at, delta, hold=False, rounds=rounds, stride=0.5) for at in (some, whole))
    assert torch.allclose(free, same, atol=1e-9 * float(same.abs().max()))
    foreseen = some.predicted(free)
    assert torch.allclose(foreseen[taken], whole.predicted(free)[taken], rtol=1e-6)
    assert foreseen.isnan().tolist() == [place not in taken for place in range(14)]
    with pytest.raises(ValueError, match="droll, dy"):
        some.edit(delta)
    delta[1] = 0.1
    with pytest.raises(ValueError, match="of dy was not taken"):
        some.edit(delta, hold=False)
    with pytest.raises(UnknownName, match="dzz"):
        correctable(rest, inputs, cache[rest.after], dims=("dzz",))


def test_what_cannot_be_corrected_is_refused_in_a_sentence(vla: HookedVLA, inputs: PolicyInputs) -> None:
    at, rest = ready(vla, inputs, -2, None), RestOfForward(vla, ("resid_post", -2))
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        corrected(rest, inputs, at, torch.full(at.jacobian.shape[1:], np.nan))
    broken = Correctable(at.states, at.positions, at.steps, at.jacobian * np.nan, at.numbers)
    with pytest.raises(FloatingPointError, match="not finite"):
        broken.edit(torch.ones(7))
    with pytest.raises(UnknownName, match="t99"):
        correctable(rest, inputs, at.states[None], (99,))
    with pytest.raises(ValueError, match="one query at a time"):
        correctable(rest, PolicyInputs.cat([inputs, inputs]), at.states[None])
    with pytest.raises(ValueError, match="at least one finite"):
        at.edit(torch.zeros(7))


def test_nothing_is_left_on_the_network(vla: HookedVLA, inputs: PolicyInputs) -> None:
    before = vla(inputs).normalized
    at, rest = ready(vla, inputs, -2, None), RestOfForward(vla, ("resid_post", -2))
    answer: Tensor = corrected(rest, inputs, at, torch.zeros(at.jacobian.shape[1:]))[0].normalized
    assert torch.equal(answer, before) and torch.equal(vla(inputs).normalized, before) and vla.edits() == ()


def test_further_rounds_reach_a_large_change_that_one_round_misses(vla: HookedVLA, inputs: PolicyInputs) -> None:
    rest = RestOfForward(vla, ("resid_post", 0))
    _, cache = vla.run_with_cache(inputs, names=[rest.after])
    at = correctable(rest, inputs, cache[rest.after], None, 2)
    clean = vla(inputs).normalized[0].double().unflatten(0, (2, -1)).mean(1).flatten()
    assert at.segments == 2 and torch.allclose(at.numbers, clean, atol=1e-6)
    delta = torch.zeros(14, dtype=torch.float64)
    delta[2], delta[6] = 0.8, -0.5  # dz of the first half, the gripper of the first half
    missed = []
    for rounds in (1, 6):
        chunk, _ = corrected(rest, inputs, at, reached(rest, inputs, at, delta, rounds=rounds))
        moved = chunk.normalized[0].double().unflatten(0, (2, -1)).mean(1).flatten() - clean
        missed.append(float((moved - delta).norm()))
    assert missed[1] < 0.06 * float(delta.norm()) < missed[0]


def test_no_round_steps_further_than_its_stride(vla: HookedVLA, inputs: PolicyInputs) -> None:
    rest = RestOfForward(vla, ("resid_post", 0))
    _, cache = vla.run_with_cache(inputs, names=[rest.after])
    at = correctable(rest, inputs, cache[rest.after])
    delta, length = torch.full((7,), 5.0, dtype=torch.float64), float(at.states[at.positions].norm())
    assert float(reached(rest, inputs, at, delta).norm()) > 0.01 * length
    assert float(reached(rest, inputs, at, delta, stride=0.01).norm()) == pytest.approx(0.01 * length)
    assert float(reached(rest, inputs, at, delta, rounds=3, stride=0.01).norm()) <= 0.03 * length * (1 + 1e-9)
    with pytest.raises(ValueError, match="3 equal segments"):
        correctable(rest, inputs, cache[rest.after], None, 3)
