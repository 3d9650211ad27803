"""A small random policy and pairs of queries, for the tests of patching."""

from __future__ import annotations

from functools import cache

import torch

from mist_interp.models import random_policy
from mist_interp.tracing import HookedVLA
from mist_interp.tracing.checks import noise_inputs

torch.set_num_threads(1)

SIZES = {"layers": 3, "image_size": 28, "chunk_size": 2, "hidden": 48, "heads": 3}


@cache
def make(variant: str = "l1", attention: str = "eager", seed: int = 0, **sizes) -> HookedVLA:
    given = {**SIZES, **sizes}
    if variant == "base":
        del given["chunk_size"]
    if variant == "diffusion":
        given |= {"diffusion_steps": 2, "diffusion_train_steps": 50}
    policy = random_policy(seed=seed, variant=variant, **given).requires_grad_(False)
    policy.set_attn_implementation(attention)
    return HookedVLA(policy)


def pairs(vla: HookedVLA):
    """Two clean and two corrupt queries; their prompts have 9 and 6 ids."""
    return noise_inputs(vla, 0), noise_inputs(vla, 1)
