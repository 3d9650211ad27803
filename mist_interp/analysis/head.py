"""How does the final residual stream become one number of an action, and which direction there moves that number?

    action = head(norm(x)),    x = resid_post[last] at the read positions,  (batch, slot, d_model)

`tail` computes it in wide arithmetic with the scales of all norms, and the ReLU gates, taken either from x itself or
from another state `at`. With `at` held fixed the map is affine in x, so that what parts of x contribute adds up:

    live      at = x            the true local slope: what a small push really does
    frozen    at = x, constant  the slope at held scales and gates: what parts of x contribute

The two differ much. The head begins with a LayerNorm over the states of one chunk step, so making all of x larger
changes nothing: the live gradient is orthogonal to x, and parts attributed with it would add up to almost zero.

A policy that speaks in tokens has no number to differentiate. There the measure of an action number is a logit
difference: the logit of one bin (by default the one it chose) minus the mean logit of all bins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site, SiteKey
from mist_interp.models.normalization import EPSILON, unnormalize
from mist_interp.tracing.hooked import HookedVLA
from mist_interp.tracing.interventions import Intervention
from mist_interp.tracing.targets import ActionTarget as ActionTarget
from mist_interp.tracing.targets import action_weights as action_weights

NO_DIFFUSION = (
    "a diffusion head predicts the noise in a noisy chunk, and its action is the end of many such runs, each from "
    "another state: no state of one run stands for an action. Analyse action_head.hook_out of one denoising step by "
    "patching, or use a policy with the regression head"
)


def refuse_diffusion(vla: HookedVLA, what: str) -> None:
    """Raise where there is no way from one state to an action.

    Raises:
        ValueError: the policy has a diffusion head.
    """
    if vla.cfg.variant == "diffusion":
        raise ValueError(f"{what} is not defined here: {NO_DIFFUSION}")


def speaks_tokens(vla: HookedVLA) -> bool:
    """Whether actions are tokens of the vocabulary, and not numbers of a head."""
    return vla.cfg.variant in ("discrete", "base")


def action_unit(vla: HookedVLA) -> str:
    """Unit of what `tail` gives."""
    return "logit above the mean of the bins" if speaks_tokens(vla) else "action (unit of the demonstrations)"


def read_states(
    vla: HookedVLA, inputs: PolicyInputs, names: SiteKey | Iterable[SiteKey], detach: bool = True
) -> tuple[ActionChunk, dict[Site, Tensor]]:
    """Answer a query and keep the activations of named sites at the read positions, after all live edits.

    Base OpenVLA reads one action number in each of its runs; its runs are joined, so that it has slots like the others.

    Returns:
        The action, and per site (batch, slot, ...), slots in the order of the chunk; with the graph if not `detach`.
    """
    kept: dict[Site, list[Tensor]] = {site: [] for site in vla.sites(names)}

    def keep(values: Tensor, site: Site) -> None:
        kept[site].append(values.detach() if detach else values)

    with vla.hooks(*((site, keep, "action_read") for site in kept)):
        action = vla(inputs)
    return action, {site: torch.cat(runs, dim=1) for site, runs in kept.items()}


def wide(values: Tensor) -> Tensor:
    """The values in a type whose rounding does not show: float64, or float32 where the network has 16 bits."""
    return values.double() if values.dtype in (torch.float32, torch.float64) else values.float()


def tail(
    vla: HookedVLA,
    states: Float[Tensor, "batch slot d_model"],
    at: Float[Tensor, "batch slot d_model"] | None = None,
    bins: Int[Tensor, "batch slot"] | None = None,
) -> Float[Tensor, "batch chunk dim"]:
    """Action numbers of final residual states, differentiable.

    Args:
        vla: the policy; its weights are read and its modules are not run.
        states: resid_post[last] at the read positions.
        at: states from which the scales of norms and the gates are taken; None means `states` themselves.
        bins: for policies that speak in tokens, whose logit is measured (0 is the bin of the largest token id, as in
            `mist_interp.models.bins`); None means the most likely bin.

    Returns:
        Actions in the unit of the demonstrations; for policies that speak in tokens, logits above the mean of the bins.
    """
    refuse_diffusion(vla, "an action of one state")
    policy, cfg = vla.policy, vla.cfg
    states = wide(states)
    at = states if at is None else wide(at)
    norm = policy.language_model.model.norm
    scale = torch.rsqrt(at.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight.to(at)
    states, at = states * scale, at * scale
    if speaks_tokens(vla):
        logits = states @ bin_rows(vla).to(states).T
        chosen = top_bins(vla, at) if bins is None else bins
        values = logits.gather(-1, chosen[..., None])[..., 0] - logits.mean(-1)
        return values.unflatten(1, (cfg.chunk, -1))
    per_step = (cfg.chunk, -1)
    normalized = _mlp(policy.action_head.model, *(x.unflatten(1, per_step).flatten(2) for x in (states, at)))
    return unnormalize(normalized, policy.bounds("action"), EPSILON)


def target_value(
    vla: HookedVLA,
    states: Float[Tensor, "batch slot d_model"],
    target: ActionTarget,
    at: Float[Tensor, "batch slot d_model"] | None = None,
    bins: Int[Tensor, "batch slot"] | None = None,
) -> Float[Tensor, " batch"]:
    """The target number of final residual states, see `tail` and `action_weights`."""
    values = tail(vla, states, at, bins)
    return (values * action_weights(vla, target).to(values)).sum((1, 2))


def slope(
    vla: HookedVLA,
    states: Float[Tensor, "batch slot d_model"],
    target: ActionTarget,
    frozen: bool = False,
    bins: Int[Tensor, "batch slot"] | None = None,
) -> Float[Tensor, "batch slot d_model"]:
    """Gradient of the target with respect to given final residual states."""
    with torch.enable_grad():
        leaf = wide(states).detach().requires_grad_()
        value = target_value(vla, leaf, target, leaf.detach() if frozen else leaf, bins)
        return torch.autograd.grad(value.sum(), leaf)[0]


def head_direction(
    vla: HookedVLA, inputs: PolicyInputs, target: ActionTarget, frozen: bool = False
) -> Float[Tensor, "batch slot d_model"]:
    """The direction in the final residual stream that moves one action number, for every read token.

    There is no fixed direction per dimension, as an unembedding has: the head is not linear, so the direction is the
    gradient at the state of this very query, and all tokens of a chunk step have one.

    Where it misleads: it is local. `frozen=False` says what a small push does, and overstates large ones; compare
    with the effect of really pushing. `frozen=True` is for adding up parts and is no slope of anything.

    Args:
        vla: the policy.
        inputs: queries.
        target: "t0.dz", "dz" (mean over the chunk) or weights.
        frozen: hold the scales of all norms and the gates.

    Returns:
        Per read token, in the order of `action_read`; zero at tokens of other chunk steps. In the target's unit per
        unit of the residual stream.

    Raises:
        UnknownName, ValueError: no such target; a diffusion head.
    """
    refuse_diffusion(vla, "the direction of an action number")
    action_weights(vla, target)
    last = vla.site(("resid_post", -1))
    _, states = read_states(vla, inputs, last)
    return slope(vla, states[last], target, frozen)


def bin_ids(vla: HookedVLA) -> Int[Tensor, " bin"]:
    """Token ids of the action bins, largest id (smallest action) first."""
    config = vla.policy.config
    return config.bin_vocab_size - 1 - torch.arange(config.n_action_bins, device=vla.policy.device)


def bin_rows(vla: HookedVLA) -> Float[Tensor, "bin d_model"]:
    """Rows of the unembedding that belong to the action bins."""
    weight: Tensor = vla.policy.language_model.lm_head.weight
    return weight[bin_ids(vla)]


def top_bins(vla: HookedVLA, normalized: Float[Tensor, "batch slot d_model"]) -> Int[Tensor, "batch slot"]:
    """The most likely bin of states after the final norm."""
    return (normalized @ bin_rows(vla).to(normalized).T).argmax(-1)


def live_edits(vla: HookedVLA) -> list[str]:
    """What is live on a policy, in words; an edit that is data with the hash of all that it holds.

    Two vectors at one site read alike, so the words alone do not tell them apart; of a function only its name is known.
    """
    hashes = [f", sha256 {edit.fn.fingerprint}" if isinstance(edit.fn, Intervention) else "" for edit in vla.edits()]
    return [f"{edit}{found}" for edit, found in zip(vla.edits(), hashes, strict=True)]


def source_of(vla: HookedVLA, **facts: Any) -> dict[str, Any]:
    """What every result says of its origin."""
    cfg = vla.cfg
    edits = {"edits": live_edits(vla)} if vla.edits() else {}
    return {"model": cfg.model_id, "variant": cfg.variant, "unnorm_key": cfg.unnorm_key, **edits, **facts}


def _mlp(mlp: Any, x: Tensor, at: Tensor) -> Tensor:
    """The regression head on x, with scales and gates of `at`."""
    x, at = _layer_norm(mlp.layer_norm1, x, at)
    x, at = _relu(*_linear(mlp.fc1, x, at))
    for block in mlp.mlp_resnet_blocks:
        norm, linear, _ = block.ffn
        added = _relu(*_linear(linear, *_layer_norm(norm, x, at)))
        x, at = x + added[0], at + added[1]
    return _linear(mlp.fc2, *_layer_norm(mlp.layer_norm2, x, at))[0]


def _layer_norm(norm: nn.LayerNorm, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(at.var(-1, correction=0, keepdim=True) + norm.eps) * norm.weight.to(at)
    bias = norm.bias.to(at)
    return (x - x.mean(-1, keepdim=True)) * scale + bias, (at - at.mean(-1, keepdim=True)) * scale + bias


def _linear(linear: nn.Linear, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = linear.weight.to(at), linear.bias.to(at)
    return nn.functional.linear(x, weight, bias), nn.functional.linear(at, weight, bias)


def _relu(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    gate = at > 0
    return x * gate, at * gate
