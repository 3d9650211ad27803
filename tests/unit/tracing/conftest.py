"""Small random policies, shared by the tests of one run; nobody changes their weights."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from mist_interp.models import random_policy
from mist_interp.tracing import HookedVLA
from mist_interp.tracing.checks import noise_inputs

torch.set_num_threads(1)


@cache
def make(variant: str = "l1", attention: str = "eager", **sizes) -> HookedVLA:
    policy = random_policy(variant=variant, **sizes).requires_grad_(False)
    policy.set_attn_implementation(attention)
    return HookedVLA(policy)


@pytest.fixture
def vla() -> HookedVLA:
    """The L1 variant with eager attention, so that every registered name is there."""
    hooked = make()
    yield hooked
    assert hooked.edits() == (), "a test left edits behind"


@pytest.fixture
def inputs(vla):
    """Two queries whose prompts differ in length."""
    return noise_inputs(vla)


@pytest.fixture
def make_vla():
    return make
