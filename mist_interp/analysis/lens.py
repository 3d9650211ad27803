"""What would the policy do if it had to act after layer L?

    action after layer L = head(norm(resid_post[L] at the read positions))

The final norm is computed anew for every layer, because the stream grows from layer to layer: with the last layer's
scale all early layers would look alike. "embed" is the stream before block 0; the last layer is the action itself, bit
for bit. For a policy that speaks in tokens this is the logit lens over the action bins.

Where it misleads: the head has seen nothing but last states, and it is not linear in seven tokens at once, so an early
layer is foreign to it. A lens far from the final action does not show that the layer knows nothing, and one near the
mean action does not show that it knows something. `mist_interp.analysis.translator` puts the controls beside it: a
translator per layer, a ridge probe from the same states, and the lens on states whose tokens were shuffled.

Source: nostalgebraist 2020 (logit lens), Belrose et al. 2023 (tuned lens), for a regression head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.analysis.head import bin_ids, read_states, refuse_diffusion, source_of, speaks_tokens
from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.several import Described
from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site
from mist_interp.models import bins
from mist_interp.tracing.cache import ActivationCache
from mist_interp.tracing.hooked import HookedVLA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SITES = ("hook_embed", "resid_post")

# Gets the states of one layer (batch, slot, d_model) and its label, gives states that the last layer could have.
Translator = Callable[[Tensor, str], Tensor]


@dataclass(frozen=True, eq=False)
class LayerResult(Result):
    """A result whose layers are called "embed", "0", "1", ...; `sel` also takes the numbers, negative from the end."""

    def sel(self, **labels: Any) -> Self:
        """See `Result.sel`: `sel(layer=3)`, `sel(layer=["embed", -1])`."""
        if "layer" in labels and "layer" in self.axes:
            wanted, count = labels["layer"], len([layer for layer in self.axes["layer"] if layer != "embed"])
            one = lambda layer: str(layer + count if isinstance(layer, int) and layer < 0 else layer)  # noqa: E731
            labels["layer"] = [one(layer) for layer in wanted] if isinstance(wanted, list | tuple) else one(wanted)
        return super().sel(**labels)


@dataclass(frozen=True, eq=False)
class ActionLens(LayerResult):
    """Actions read off every layer, axes (sample, layer, step, dim)."""

    def error_to_final(self, over: Sequence[str] = ("sample", "step")) -> LayerResult:
        """Mean absolute difference to the last layer, averaged over some axes; (layer, dim) by default."""
        final = self.values.isel(layer=-1, drop=True)
        rest = [axis for axis in over if axis in self.values.dims]
        what = f"distance of the lens from the action, mean over {' and '.join(rest)}"
        return LayerResult(abs(self.values - final).mean(rest), self.unit, what, self.source)

    def plot(self, step: int = 0, title: str = "", **options: Any) -> Figure:
        """One panel per dimension: the lens of every sample over the layers, at one chunk step.

        A lens that was cut down to three axes or fewer is drawn like any result.
        """
        if self.values.ndim != 4 or options:
            return super().plot(title=title, **options)
        from mist_interp.analysis.figures import line_panels

        chosen = self.values.isel(step=step).transpose("dim", "sample", "layer")
        return line_panels(
            chosen.values,
            self.axes["dim"],
            self.axes["layer"],
            "layer",
            self.unit,
            title or f"{self.what}; chunk step {self.axes['step'][step]}",
        )


@dataclass(frozen=True, eq=False)
class LogitLens(Described):
    """What every layer says in action tokens; each with the axes (sample, layer, step, dim).

    Attributes:
        top: action of the most likely bin.
        expected: mean action under the bins' probabilities, which moves where `top` cannot.
        entropy: of the bins' probabilities in nats; ln(256) = 5.5 knows nothing.
        outside: probability of all tokens that are no action bin.
    """

    main = "top"

    top: ActionLens
    expected: ActionLens
    entropy: LayerResult
    outside: LayerResult


def action_lens(
    vla: HookedVLA, given: PolicyInputs | ActivationCache, translator: Translator | None = None
) -> ActionLens:
    """Read an action off every layer; see the module's text for where this misleads.

    Args:
        vla: the policy.
        given: queries, answered now under the live edits; or a cache that holds resid_post (of the layers wanted) and
            hook_embed at `action_read`.
        translator: maps states of an early layer to states that the head knows (`TunedTranslator`).

    Returns:
        Actions in the unit of the demonstrations, axes (sample, layer, step, dim); for policies that speak in tokens,
        of the most likely bin.

    Raises:
        ValueError: a diffusion head; a cache of base OpenVLA, which holds only one of its runs.
        RuntimeError: the last layer is not the action, because edits are live behind it.
    """
    states, action = lens_states(vla, given)
    if speaks_tokens(vla):
        return _logit_lens(vla, states, action, translator).top
    return lens_of(vla, states, vla.policy.decide, translator, action)


def logit_lens(
    vla: HookedVLA, given: PolicyInputs | ActivationCache, translator: Translator | None = None
) -> LogitLens:
    """Read the probabilities of the action bins off every layer of a policy that speaks in tokens.

    Base OpenVLA speaks one token per run: number k is read in run k, after the tokens that the whole network chose
    before, so early layers are never judged on a sentence of their own.

    Where it misleads: as `action_lens`; and the vocabulary holds thousands of tokens that are no action. `top` and
    `entropy` look at the bins alone; `outside` says how much that leaves out. Where the policy itself chooses a token
    that is no bin, its action is the nearest end of the range, and the last layer of the lens is not.

    Raises:
        ValueError: the policy does not speak in tokens; otherwise as `action_lens`.
    """
    if not speaks_tokens(vla):
        raise ValueError(f"a policy of variant {vla.cfg.variant!r} has no action tokens; use action_lens")
    return _logit_lens(vla, *lens_states(vla, given), translator)


def lens_states(
    vla: HookedVLA, given: PolicyInputs | ActivationCache
) -> tuple[dict[str, Float[Tensor, "batch slot d_model"]], ActionChunk | None]:
    """States at the read positions by layer label, in the order of the network; and the action, if it was computed."""
    refuse_diffusion(vla, "the action lens")
    if isinstance(given, PolicyInputs):
        action, found = read_states(vla, given, SITES)
        return {_label(site): states for site, states in found.items()}, action
    if vla.cfg.variant == "base":
        raise ValueError("a cache holds one run of base OpenVLA, and every action number has its own; give inputs")
    sites = [site for site in vla.sites(SITES) if site in given]
    if vla.site(("resid_post", -1)) not in sites:
        raise ValueError(f"the lens needs the last layer, {vla.site(('resid_post', -1))}, which was not captured")
    dtype = vla.policy.dtype
    return {_label(site): given[site].at("action_read").to(vla.policy.device, dtype) for site in sites}, None


def lens_of(
    vla: HookedVLA,
    states: Mapping[str, Float[Tensor, "batch slot d_model"]],
    decide: Callable[[Tensor], ActionChunk] | None = None,
    translator: Translator | None = None,
    action: ActionChunk | None = None,
) -> ActionLens:
    """The lens of given states.

    Args:
        vla: the policy.
        states: by layer label, the last layer last; it is not translated.
        decide: from states after the final norm to actions; by default the policy's own way.
        translator: see `action_lens`.
        action: what the last layer must give, if it is known.

    Raises:
        RuntimeError: the last layer gives something else.
    """
    decide = decide or vla.policy.decide
    norm, last = vla.policy.language_model.model.norm, list(states)[-1]
    actions = []
    with torch.no_grad():
        for layer, values in states.items():
            translated = values if translator is None or layer == last else translator(values, layer)
            actions.append(decide(norm(translated)).values)
    if action is not None and not speaks_tokens(vla) and not torch.equal(actions[-1], action.values):
        worst = float((actions[-1] - action.values).abs().max())
        raise RuntimeError(f"the lens of the last layer is {worst:.2g} off the action: edits behind it are live")
    kind = "Action" if translator is None else "Translated action"
    array = labelled(torch.stack(actions, dim=1), **_axes(vla, list(states), len(actions[0])))
    what = f"{kind} if the head read the residual stream after this layer"
    return ActionLens(array, "action (unit of the demonstrations)", what, source_of(vla, translated=bool(translator)))


def _logit_lens(
    vla: HookedVLA, states: dict[str, Tensor], action: ActionChunk | None, translator: Translator | None
) -> LogitLens:
    policy, cfg = vla.policy, vla.cfg
    ids = bin_ids(vla)
    centres = bins.decode(ids, policy.config.bin_vocab_size, policy.config.n_action_bins)
    found: dict[str, list[Tensor]] = {"expected": [], "entropy": [], "outside": []}

    def decide(normalized: Tensor) -> ActionChunk:
        logits = policy.language_model.lm_head(normalized)
        among = logits[..., ids].double().softmax(-1)
        found["expected"].append(policy.as_chunk((among * centres).sum(-1)).values)
        found["entropy"].append(torch.special.entr(among).sum(-1))
        found["outside"].append(1 - logits.double().softmax(-1)[..., ids].sum(-1).clamp(0, 1))
        return policy.as_chunk(centres[logits[..., ids].argmax(-1)])

    top = lens_of(vla, states, decide, translator, action)
    if action is not None and action.token_ids is not None:
        said = (action.token_ids >= int(ids.min())) & (action.token_ids <= int(ids.max()))
        final = torch.from_numpy(top.values.isel(layer=-1).values).to(said.device)
        if not torch.equal(final[said], action.values[said]):
            raise RuntimeError("the lens of the last layer is not the action: edits behind it are live")
    axes = _axes(vla, list(states), top.values.sizes["sample"])
    shape = (-1, cfg.chunk, cfg.action_dim)
    stacked = {
        name: labelled(torch.stack([layer.reshape(shape) for layer in layers], dim=1), **axes)
        for name, layers in found.items()
    }
    return LogitLens(
        top,
        replace(top, values=stacked["expected"], what="Mean action under the bins' probabilities after this layer"),
        LayerResult(stacked["entropy"], "nats", "Entropy over the action bins after this layer", top.source),
        LayerResult(stacked["outside"], "probability", "Probability of tokens that are no action bin", top.source),
    )


def _label(site: Site) -> str:
    return "embed" if site.layer is None else str(site.layer)


def _axes(vla: HookedVLA, layers: list[str], samples: int) -> dict[str, Any]:
    cfg = vla.cfg
    return {
        "sample": np.arange(samples).tolist(),
        "layer": layers,
        "step": [f"t{step}" for step in range(cfg.chunk)],
        "dim": list(cfg.action_names),
    }
