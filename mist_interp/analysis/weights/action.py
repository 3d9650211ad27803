"""Can a head, by its weights, write what moves an action number?

The direction of an action number is the gradient of the action with respect to the final residual stream, summed over
the read tokens of a chunk step (the same push given to all of them) and averaged over the chunk and over real inputs.
OV = U diag(S) V^T of a head writes along the rows of V^T: the slope of action dimension a along component i is

    slope(i, a) = S_i * <v_i, direction_a>          action units per unit of the normalised input along u_i

and the share of the direction that lies in what the head can write at all is |V direction|^2 / |direction|^2, where a
random space of d_head dimensions has d_head / d_model.

Where it misleads. Only the direct path is seen: what later blocks make of the write is not (for the last block there is
nothing else). The direction is a mean of local slopes; where slopes of samples point in different ways, the mean is
short (`agreement`). A component that could move the gripper need never be read: compare with the input's real
projection on u_i, or ablate. Singular vectors have no sign of their own; `slope` carries that of both.

Source: Millidge and Black 2022 (singular vectors of weight matrices), with the action head in the place of the
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.analysis.attention.mass import Layers
from mist_interp.analysis.head import action_unit, head_direction, source_of
from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.several import Several
from mist_interp.analysis.weights.circuits import ov_circuit
from mist_interp.core.inputs import PolicyInputs
from mist_interp.tracing.hooked import HookedVLA


def action_directions(
    vla: HookedVLA, inputs: PolicyInputs, frozen: bool = False, batch: int = 16
) -> Float[Tensor, "sample dim d_model"]:
    """For each action dimension, where a push of all read tokens of a chunk step moves it; the mean over the chunk.

    Args:
        vla: a policy without a diffusion head.
        inputs: queries at whose states the head is linearised.
        frozen: hold scales of norms and gates, see `mist_interp.analysis.head`.
        batch: samples at a time.

    Raises:
        ValueError: a diffusion head.
    """
    found = []
    for start in range(0, inputs.batch_size, batch):
        some = inputs[start : start + batch]
        # The target "dz" is the mean over the chunk, so the sum over all slots is the mean over its steps.
        slopes = [head_direction(vla, some, name, frozen).sum(1) for name in vla.cfg.action_names]
        found.append(torch.stack(slopes, dim=1).float().cpu())
    return torch.cat(found)


@dataclass(frozen=True, eq=False)
class ActionReadout(Several):
    """What the heads can write, against what the action head reads.

    Attributes:
        slope: axes (layer, head, component, dim), components by falling singular value.
        share: of each dimension's direction that lies in what the head can write, axes (layer, head, dim).
        even: the share that a random space of the same size has on average.
        agreement: per dimension, length of the mean direction over the mean length: 1 if all samples agree.
    """

    main = "slope"

    slope: Result
    share: Result
    even: float
    agreement: Result


def ov_toward_action(
    vla: HookedVLA, inputs: PolicyInputs, layers: Layers = None, directions: Tensor | None = None
) -> ActionReadout:
    """Singular components of every head's OV circuit, as slopes of the action dimensions.

    Args:
        vla: a policy without a diffusion head.
        inputs: queries at whose states the head is linearised.
        layers: of the language model; default: all.
        directions: (sample, dim, d_model), if `action_directions` was computed already.

    Raises:
        ValueError: a diffusion head.
        UnknownName: no such layer.
    """
    cfg, wanted = vla.cfg, list(range(vla.cfg.n_layers)) if layers is None else list(layers)
    each = action_directions(vla, inputs) if directions is None else directions
    mean = each.mean(0)
    slopes, shares = [], []
    for layer in wanted:
        _, singular, right = ov_circuit(vla, layer).svd  # right: (head, component, d_model)
        along = (right @ mean.T.to(right)).cpu()
        slopes.append(singular.cpu()[..., None] * along)
        shares.append(along.pow(2).sum(1) / mean.pow(2).sum(-1))
    names, heads = list(cfg.action_names), range(cfg.n_heads)
    axes = {"layer": wanted, "head": heads, "component": range(cfg.d_head), "dim": names}
    facts = source_of(vla, samples=len(each), directions="mean live slope of the head")
    agreement = mean.norm(dim=-1) / each.norm(dim=-1).mean(0)
    return ActionReadout(
        Result(
            labelled(torch.stack(slopes), **axes),
            f"{action_unit(vla)} per unit of normalised input",
            "Slope of an action number along one singular component of a head's OV circuit, by the direct path.",
            facts,
        ),
        Result(
            labelled(torch.stack(shares), layer=wanted, head=heads, dim=names),
            "share",
            "Share of an action number's direction that lies in what a head can write.",
            facts,
        ),
        cfg.d_head / cfg.d_model,
        Result(labelled(agreement, dim=names), "share", "Length of the mean direction over the mean length.", facts),
    )
