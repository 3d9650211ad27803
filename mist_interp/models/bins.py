"""How does a token stand for an action?

The last 256 ids of the vocabulary (before the padding of the embedding table) are action bins. The edges are
``linspace(-1, 1, 256)``; an action is encoded as ``vocabulary - digitize(action)``, so a larger id means a smaller
action, and decoded as the centre of its bin. There are 255 centres for 256 ids: the two lowest ids decode alike, and
ids outside the range decode to the nearest end.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@lru_cache(maxsize=16)
def bin_edges(bins: int, device: torch.device) -> Float[Tensor, " edge"]:
    """Edges of the bins, float64, rounded as numpy does, which decides where an action on an edge goes."""
    with torch.inference_mode(False):
        return torch.from_numpy(np.linspace(-1, 1, bins)).to(device)


def encode(actions: Float[Tensor, "..."], vocab_size: int, bins: int = 256) -> Int[Tensor, "..."]:
    """Normalised actions to token ids; values outside [-1, 1] go to the end bins.

    Args:
        actions: normalised actions.
        vocab_size: ids below this one are tokens; the highest are the bins.
        bins: number of bin ids.
    """
    clipped = actions.double().clamp(-1, 1)
    return vocab_size - torch.bucketize(clipped, bin_edges(bins, actions.device), right=True)


def decode(token_ids: Int[Tensor, "..."], vocab_size: int, bins: int = 256) -> Float[Tensor, "..."]:
    """Token ids to the centres of their bins, float64."""
    edges = bin_edges(bins, token_ids.device)
    centres = (edges[:-1] + edges[1:]) / 2
    return centres[(vocab_size - token_ids - 1).clamp(0, bins - 2)]
