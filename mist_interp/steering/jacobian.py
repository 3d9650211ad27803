"""What is the smallest push at a site that moves chosen dimensions of the action and holds the others?

    J = d (the numbers of one chunk step) / d (activations at the selected tokens)         (dim, positions * width)
    edit = J^+ delta                        the smallest edit with J edit = delta, one vector per token

All dimensions of a step are read from the same states, so there is no direction of "dz" alone; there is an edit that
moves dz and, to first order, nothing else. Because the edit is small only where J is large, it depends on the query:
J is taken anew at each.

Where it misleads: first order. How far the held dimensions really move is measured by `cross_talk`, which belongs
beside every use. At the last layer such an edit is an offset of the action in disguise: what is behind it is linear
but for a norm and the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.axes import axis_of
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site, SiteKey
from mist_interp.core.selectors import Selector
from mist_interp.steering.gradient import refuse_without_gradient
from mist_interp.tracing.verbs import add

if TYPE_CHECKING:
    from mist_interp.tracing.hooked import HookedVLA

Delta = Mapping[str, float] | Tensor
# A dimension counts as reached if the linear edit gives it all but this share of the largest change asked for.
REACHED = 1e-3


def action_jacobian(
    vla: HookedVLA, inputs: PolicyInputs, site: SiteKey, tokens: Selector = "action_read", step: int = 0
) -> Float[Tensor, "batch dim position width"]:
    """Derivative of the numbers of one chunk step with respect to the selected tokens of a site, after all live edits.

    One forward; the backward passes of all dimensions go together.

    Args:
        vla: the policy.
        inputs: queries.
        site: any site with tokens before the head's answer, e.g. `("resid_post", 2)`.
        tokens: which tokens may be moved; "action_read.t0" are those of the first chunk step.
        step: chunk step.

    Returns:
        In the unit of the demonstrations per unit of the activation; float64, on the policy's device.

    Raises:
        UnknownName: no such site, tokens or chunk step.
        ValueError: the actions have no gradient, or the queries have different numbers of selected tokens.
    """
    refuse_without_gradient(vla)
    place, chunk = vla.site(site), vla.cfg.chunk
    if not 0 <= step < chunk:
        raise UnknownName("chunk step", f"t{step}", [f"t{k}" for k in range(chunk)])
    leaves: list[Tensor] = []

    def cut(values: Tensor, _: Site) -> Tensor:
        leaves.append(values.detach().clone().requires_grad_())
        return leaves[-1]

    with torch.enable_grad(), vla.hooks((place, cut)):
        numbers = vla(inputs).values[:, step]
    (leaf,) = leaves
    selection = axis_of(place.hook.axis, vla.layout(inputs), leaf.shape[1]).select(tokens)
    if selection.ragged or not selection.index.shape[1]:
        raise ValueError(f"the queries have no or different numbers of {tokens!r} tokens; take one query at a time")
    batch, dim = numbers.shape
    each = torch.eye(dim, dtype=numbers.dtype, device=numbers.device)[:, None].expand(dim, batch, dim)
    (found,) = torch.autograd.grad(numbers, leaf, each, is_grads_batched=True, allow_unused=True)
    if found is None:
        raise ValueError(f"the action does not depend on {place}")
    rows = torch.arange(batch, device=found.device)[:, None]
    return found[:, rows, selection.index.to(found.device)].transpose(0, 1).double().detach()


def minimum_norm_edit(
    jacobian: Float[Tensor, "*batch dim position width"],
    delta: Delta,
    hold: bool = True,
    names: tuple[str, ...] = ACTION_NAMES,
) -> Float[Tensor, "*batch position width"]:
    """The smallest edit that changes the action by `delta` to first order.

    Args:
        jacobian: of `action_jacobian`.
        delta: change by dimension, {"dz": 0.02}, or (dim,), in the unit of the demonstrations.
        hold: keep the dimensions that `delta` does not name where they are; else they go where they go. With a tensor
            the dimensions with change 0 are those that it does not name.
        names: of the dimensions.

    Returns:
        What to add at the selected tokens, float64: `add(site, edit, tokens)`.

    Raises:
        UnknownName: no such dimension.
        ValueError: no change is asked for, or no edit at this place makes it (to first order).
    """
    change = _change(delta, names).to(jacobian)
    if not bool(change.any()) or not bool(torch.isfinite(change).all()):
        raise ValueError(f"delta={delta}: give at least one finite change that is not 0")
    rows = jacobian.flatten(-2)
    if not hold:
        rows, change = rows[..., change != 0, :], change[change != 0]
    # Dimensions with other units must not decide on the rank.
    lengths = rows.norm(dim=-1)
    scale = torch.where(lengths > 0, lengths, 1.0)
    edit = (torch.linalg.pinv(rows / scale[..., None], rtol=1e-9) @ (change / scale)[..., None])[..., 0]
    missed = ((rows @ edit[..., None])[..., 0] - change).abs()
    if bool((missed > REACHED * change.abs().max()).any()):
        raise ValueError(f"delta={delta}: no edit of these tokens gives that, to first order; the dimensions are tied")
    return edit.unflatten(-1, jacobian.shape[-2:])


def cross_talk(
    vla: HookedVLA,
    inputs: PolicyInputs,
    site: SiteKey,
    tokens: Selector = "action_read",
    step: int = 0,
    size: float | Float[Tensor, " dim"] = 0.01,
    hold: bool = True,
) -> Float[Tensor, "commanded realised"]:
    """What every dimension really does when the edit for one dimension is made; the identity if all were linear.

    Args:
        vla: the policy.
        inputs: queries; the mean over them is returned.
        site: where.
        tokens: which tokens are moved.
        step: chunk step.
        size: the change that is asked for, of all dimensions or one for each, in the unit of the demonstrations.
        hold: as in `minimum_norm_edit`.

    Returns:
        Row d: realised change of every dimension, each as a share of its own `size`, when d was asked for.
    """
    jacobian = action_jacobian(vla, inputs, site, tokens, step)
    names = vla.cfg.action_names
    sizes = torch.as_tensor(size).to(jacobian).expand(len(names))
    with torch.no_grad():
        before = vla(inputs).values[:, step]
        rows = []
        for place in range(len(names)):
            delta = torch.zeros_like(sizes)
            delta[place] = sizes[place]
            edit = minimum_norm_edit(jacobian, delta, hold, tuple(names))
            with vla.hooks(add(vla.site(site), edit, tokens)):
                rows.append(((vla(inputs).values[:, step] - before) / sizes.to(before)).mean(0))
    return torch.stack(rows)


def _change(delta: Delta, names: tuple[str, ...]) -> Float[Tensor, " dim"]:
    if isinstance(delta, Tensor):
        if delta.shape != (len(names),):
            raise ValueError(f"delta has shape {tuple(delta.shape)}; needed: one change for each of {', '.join(names)}")
        return delta.double()
    change = torch.zeros(len(names), dtype=torch.float64)
    for name, value in delta.items():
        if name not in names:
            raise UnknownName("action dimension", name, names)
        change[names.index(name)] = value
    return change
