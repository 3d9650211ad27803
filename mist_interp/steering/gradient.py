"""Which push at a site moves one number of the action, and by how much?

    g = mean over queries of the sum over the selected tokens of d action / d activation

A vector that is added at every selected token moves the number by its product with g, to first order. The head of
OpenVLA-OFT mixes the states of a chunk step, so "the direction of dz" exists only as such a gradient, and only near the
queries that it was taken at.

Where it misleads: the direction of steepest rise of dz usually moves the other numbers too; an edit that holds them
needs all seven gradients (`mist_interp.steering.jacobian`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site, SiteKey
from mist_interp.core.selectors import Selector
from mist_interp.data.records import Array
from mist_interp.tracing.targets import ActionTarget, action_weights

if TYPE_CHECKING:
    from mist_interp.tracing.hooked import HookedVLA


@dataclass(frozen=True)
class Slope:
    """How an action number depends on a vector that is added at the selected tokens of a site.

    Attributes:
        site: where.
        gradients: (queries, width) of each query, in the unit of the action per unit of the activation.
        rows: (queries, width) the activations there, mean over the selected tokens.
    """

    site: Site
    gradients: Float[Array, "queries width"]
    rows: Float[Array, "queries width"]

    @property
    def gradient(self) -> Float[Array, " width"]:
        """(width,) mean over the queries."""
        mean: Array = self.gradients.mean(0)
        return mean


def refuse_without_gradient(vla: HookedVLA) -> None:
    """Raise where an action number has no gradient.

    Raises:
        ValueError: the policy chooses tokens, or ends many denoising steps.
    """
    if vla.cfg.variant != "l1":
        raise ValueError(
            f"the actions of this policy ({vla.cfg.variant}) have no gradient with respect to one forward: only the "
            "regression head (l1) computes them; take a contrast, or the direction of a probe"
        )


def action_slope(
    vla: HookedVLA,
    inputs: PolicyInputs,
    target: ActionTarget,
    site: SiteKey,
    tokens: Selector = "action_read",
    batch: int = 16,
) -> Slope:
    """Gradient of one action number with respect to a vector added at the selected tokens.

    Args:
        vla: the policy.
        inputs: queries.
        target: "t0.dz", "dz" (mean over the chunk), or numbers with weights.
        site: a site with tokens.
        tokens: where the vector would be added.
        batch: queries that go through together.

    Raises:
        UnknownName: no such target, site or tokens.
        ValueError: the action has no gradient, or no token is selected.
    """
    refuse_without_gradient(vla)
    place, weights = vla.site(site), action_weights(vla, target)

    def number(action: ActionChunk) -> torch.Tensor:
        return (action.values * weights.to(action.values)).sum((1, 2))

    gradients, rows = [], []
    for start in range(0, inputs.batch_size, batch):
        _, cache, slopes = vla.run_with_gradients(inputs[start : start + batch], number, names=[place])
        mask = cache[place].axis.select(tokens).mask(cache[place].shape[1]).to(cache[place].device)
        if not bool(mask.any(1).all()):
            raise ValueError(f"{tokens!r} selects no token")
        values, slope = (one[place].values.double() * mask[..., None] for one in (cache, slopes))
        gradients.append(slope.sum(1))
        rows.append(values.sum(1) / mask.sum(1, keepdim=True))
    joined = [torch.cat(parts).cpu().numpy().astype(np.float64) for parts in (gradients, rows)]
    return Slope(place, *joined)
