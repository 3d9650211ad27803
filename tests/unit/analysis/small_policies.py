"""Small random policies for the analyses' tests, shared by the tests of one run; nobody changes their weights."""

from __future__ import annotations

from functools import cache

import torch

from mist_interp.core.inputs import PolicyInputs
from mist_interp.models import random_policy
from mist_interp.tracing import HookedVLA
from mist_interp.tracing.checks import noise_inputs

torch.set_num_threads(1)


@cache
def small(variant: str = "l1", attention: str = "eager", **sizes: object) -> HookedVLA:
    policy = random_policy(variant=variant, **sizes).requires_grad_(False)
    policy.set_attn_implementation(attention)
    return HookedVLA(policy)


def queries(vla: HookedVLA, count: int = 2, seed: int = 0) -> PolicyInputs:
    """Noise, with prompts of two lengths."""
    return PolicyInputs.cat([noise_inputs(vla, seed + k) for k in range(-(-count // 2))])[:count]
