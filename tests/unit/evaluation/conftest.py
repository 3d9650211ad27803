"""A random network, and one query of it."""

import pytest

from mist_interp.core.inputs import PolicyInputs
from mist_interp.models.random import random_policy
from mist_interp.tracing.checks import noise_inputs
from mist_interp.tracing.hooked import HookedVLA


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return HookedVLA(random_policy(0).requires_grad_(False))


@pytest.fixture(scope="module")
def inputs(vla: HookedVLA) -> PolicyInputs:
    return noise_inputs(vla)[0]
