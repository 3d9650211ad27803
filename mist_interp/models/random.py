"""How does a test get a policy without any checkpoint?

The same graph as the published models, a few hundred thousand random parameters. Weights are scaled so that every part
has a visible effect on the actions: nothing is left at the identity or at zero, where a mistake would not show.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mist_interp.models.policy import OpenVLAPolicy
from mist_interp.models.processor import Processor
from mist_interp.models.small import small_config
from mist_interp.models.tokenizer import word_tokenizer

SIZES: dict[str, Any] = {
    "dino": (32, 4, 2),
    "siglip": (48, 3, 3),
    "hidden": 64,
    "layers": 4,
    "heads": 4,
    "ffn": 96,
    "image_size": 56,
}


def random_policy(seed: int = 0, **sizes: Any) -> OpenVLAPolicy:
    """A small policy with random weights, a tokenizer and made-up statistics.

    The same seed and sizes give the same weights. torch's global generator is left as it was.

    Args:
        seed: of the weights.
        **sizes: anything that `small_config` takes: sizes, variant, film, num_images, use_proprio, chunk_size, ...
    """
    tokenizer, vocabulary = word_tokenizer()
    given = {**SIZES, "vocabulary": vocabulary, "norm_stats": random_statistics(seed, **_dims(sizes)), **sizes}
    config = small_config(**given)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = OpenVLAPolicy(config)
        _randomize(policy)
    policy.processor = Processor(config, tokenizer)
    policy.model_id = f"random policy of seed {seed}"
    return policy.eval()


def random_statistics(seed: int = 0, action_dim: int = 7, proprio_dim: int = 8) -> dict[str, Any]:
    """Statistics of a made-up dataset "random", with bounds that are not symmetric."""
    generator = torch.Generator().manual_seed(seed)

    def part(count: int) -> dict[str, Any]:
        low = -0.5 - torch.rand(count, generator=generator, dtype=torch.float64)
        high = 0.5 + torch.rand(count, generator=generator, dtype=torch.float64)
        bounds = {"q01": low, "q99": high, "min": low - 0.1, "max": high + 0.1, "mean": (low + high) / 2, "std": high}
        return {name: value.tolist() for name, value in bounds.items()}

    action = {**part(action_dim), "mask": [True] * (action_dim - 1) + [False]}
    return {"random": {"action": action, "proprio": part(proprio_dim), "num_transitions": 0, "num_trajectories": 0}}


def _dims(sizes: dict[str, Any]) -> dict[str, int]:
    return {name: sizes[name] for name in ("action_dim", "proprio_dim") if name in sizes}


def _randomize(policy: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.ndim >= 2 and name.endswith("weight"):
                fan_in = parameter[0].numel() if "embed_tokens" not in name else 1
                parameter.normal_(std=fan_in**-0.5)
            elif name.endswith(("weight", "scale_factor")):
                parameter.normal_(mean=1.0, std=0.2)
            else:
                parameter.normal_(std=0.2)
