"""Which number of an action chunk is meant?

"t0.dz" is one number, "dz" its mean over the chunk; {"t0.dx": 1, "t0.dy": -1} weighs several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.core.errors import UnknownName
from mist_interp.core.selectors import parse_action

if TYPE_CHECKING:
    from mist_interp.tracing.hooked import HookedVLA

ActionTarget = str | Mapping[str, float]


def action_weights(vla: HookedVLA, target: ActionTarget) -> Float[Tensor, "chunk dim"]:
    """Weight of every number of a chunk in a target.

    Raises:
        UnknownName: no such chunk step or dimension.
        TypeError: neither a text nor numbers with weights.
        ValueError: a whole chunk step, whose numbers have no common unit; a text that is no target; no weight at all.
    """
    if not isinstance(target, str | Mapping):
        raise TypeError(
            f"a target is a text such as 't0.dz' or 'dz', or numbers with weights such as {{'t0.dx': 1, 't0.dy': -1}}; "
            f"given a {type(target).__name__}: {target!r}"
        )
    cfg = vla.cfg
    names = list(cfg.action_names)
    weights = torch.zeros(cfg.chunk, len(names), dtype=torch.float64)
    for key, weight in ({target: 1.0} if isinstance(target, str) else target).items():
        step, dim = parse_action(key)
        if dim is None:
            raise ValueError(f"{key!r} is a whole chunk step; a target is one number, such as {key + '.' + names[0]!r}")
        if dim not in names:
            raise UnknownName("action dimension", dim, names)
        if step is not None and step >= cfg.chunk:
            raise UnknownName("chunk step", f"t{step}", [f"t{k}" for k in range(cfg.chunk)])
        steps = slice(None) if step is None else slice(step, step + 1)
        weights[steps, names.index(dim)] += weight / (cfg.chunk if step is None else 1)
    if not bool(weights.any()):
        raise ValueError(f"the target {target!r} gives no number any weight")
    return weights
