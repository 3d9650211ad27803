"""The Jacobian of an action is the one of finite differences, and the edit made from it does what it says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from mist_interp.core.inputs import PolicyInputs
from mist_interp.models import random_policy
from mist_interp.steering.jacobian import action_jacobian, cross_talk, minimum_norm_edit
from mist_interp.tracing.checks import noise_inputs
from mist_interp.tracing.hooked import HookedVLA
from mist_interp.tracing.verbs import add

SITE = ("resid_post", 1)
T1 = "action_read.t1"


@cache
def vla() -> HookedVLA:
    """Weights in float64, so that finite differences are exact to some digits."""
    return HookedVLA(random_policy(seed=3).double().requires_grad_(False))


@cache
def inputs() -> PolicyInputs:
    made = noise_inputs(vla())
    return replace(made, pixel_values=made.pixel_values.double(), proprio=made.proprio.double())


@cache
def jacobian(tokens: str = T1) -> torch.Tensor:
    return action_jacobian(vla(), inputs(), SITE, tokens, step=1)


def numbers(edit: torch.Tensor | None = None, tokens: str = T1, step: int = 1) -> torch.Tensor:
    with torch.no_grad(), vla().hooks(*([] if edit is None else [add(SITE, edit, tokens)])):
        return vla()(inputs()).values[:, step]


@pytest.mark.parametrize("tokens", [T1, "wrist[0, :]"])
def test_it_is_the_jacobian_of_finite_differences(tokens: str) -> None:
    found = jacobian(tokens)
    push = torch.randn(
        found.shape[0], *found.shape[2:], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    expected = (found * push[:, None]).sum((2, 3))
    # The norms of the network compute in float32, which bounds how small a step can be.
    realised = (numbers(2e-3 * push, tokens) - numbers(-2e-3 * push, tokens)) / 4e-3
    size = float(expected.abs().max())
    torch.testing.assert_close(realised, expected, rtol=0.01, atol=0.01 * size)


def test_the_edit_moves_what_is_asked_for_and_holds_the_rest() -> None:
    for delta in ({"dz": 1e-4}, {"dx": -1e-4, "gripper": 1e-4}):
        edit = minimum_norm_edit(jacobian(), delta)
        moved = numbers(edit) - numbers()
        expected = torch.zeros_like(moved)
        for name, value in delta.items():
            expected[:, vla().cfg.action_names.index(name)] = value
        torch.testing.assert_close(moved, expected, atol=3e-6, rtol=0)


def test_without_holding_the_edit_is_smaller_and_other_dimensions_go_along() -> None:
    held, free = (minimum_norm_edit(jacobian(), {"dz": 1e-4}, hold=hold) for hold in (True, False))
    assert bool((free.flatten(1).norm(dim=1) < held.flatten(1).norm(dim=1)).all())
    moved = numbers(free) - numbers()
    torch.testing.assert_close(moved[:, 2], torch.full_like(moved[:, 2], 1e-4), atol=3e-6, rtol=0)
    assert float(moved[:, [0, 1, 3, 4, 5, 6]].abs().max()) > 1e-5


def test_no_edit_with_the_same_effect_is_smaller() -> None:
    edit = minimum_norm_edit(jacobian(), {"dy": 1.0})
    rows = jacobian().flatten(2)
    other = torch.randn(edit.shape, dtype=edit.dtype, generator=torch.Generator().manual_seed(1)).flatten(1)
    nothing = other - (torch.linalg.pinv(rows) @ (rows @ other[..., None]))[..., 0]  # changes no dimension
    assert float((rows @ nothing[..., None]).abs().max()) < 1e-9
    for share in (0.1, -0.1):
        larger = edit.flatten(1) + share * nothing
        assert bool((larger.norm(dim=1) > edit.flatten(1).norm(dim=1)).all())


def test_cross_talk_vanishes_with_the_size() -> None:
    small, large = (cross_talk(vla(), inputs(), SITE, T1, 1, size) for size in (1e-4, 0.05))
    eye = torch.eye(7, dtype=torch.float64)
    assert float((small - eye).abs().max()) < 0.05
    assert float((small - eye).abs().max()) < 0.1 * float((large - eye).abs().max())
    free = cross_talk(vla(), inputs(), SITE, T1, 1, 1e-4, hold=False)
    assert float((free - eye).abs().max()) > 0.1, "without holding, the matrix must show it"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="t9"):
        action_jacobian(vla(), inputs(), SITE, T1, step=9)
    with pytest.raises(ValueError, match="different numbers"):
        action_jacobian(vla(), inputs(), SITE, "text")
    with pytest.raises(ValueError, match="did you mean"):
        minimum_norm_edit(jacobian(), {"dzz": 1.0})
    with pytest.raises(ValueError, match="not 0"):
        minimum_norm_edit(jacobian(), {"dz": 0.0})
    tied = jacobian().clone()
    tied[:, 3] = 2 * tied[:, 2]
    with pytest.raises(ValueError, match="tied"):
        minimum_norm_edit(tied, {"dz": 1.0})
    tied[:, 3] = 0
    minimum_norm_edit(tied, {"dz": 1.0})
    with pytest.raises(ValueError, match="no gradient"):
        action_jacobian(HookedVLA(random_policy(variant="discrete").requires_grad_(False)), inputs(), SITE)
