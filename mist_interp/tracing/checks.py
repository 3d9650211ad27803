"""Can what this package says about a policy be trusted?

Four facts that raise no error anywhere when they are wrong, measured on the policy at hand:

    attention       bidirectional for the parallel variants, causal for base OpenVLA
    reading         a forward whose activations are captured answers bit for bit like the plain network
    layout          the sequence has the tokens that the layout names, and the placeholders are empty
    read-out        the action head gets the final states at `action_read`, and not one position beside
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mist_interp.core.inputs import PolicyInputs

if TYPE_CHECKING:
    from mist_interp.tracing.hooked import HookedVLA


@dataclass(frozen=True)
class Report:
    """What was verified, one sentence each."""

    model_id: str
    facts: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.model_id}:", *(f"  ok  {fact}" for fact in self.facts)])


def check(vla: HookedVLA, inputs: PolicyInputs | None = None) -> Report:
    """Verify the four facts; `inputs` default to noise.

    Raises:
        RuntimeError: one of them does not hold; the message says which.
    """
    if vla.edits():
        raise RuntimeError(f"check() needs the policy as it is, but {len(vla.edits())} edits are live")
    inputs = noise_inputs(vla) if inputs is None else inputs
    regime = vla.policy.check()
    evidence = getattr(vla.policy, "variant_evidence", "the configuration")
    facts = [f"variant {vla.cfg.variant}, {vla.cfg.chunk} actions per query, read off: {evidence}"]
    facts += [f"attention is {'causal' if regime.causal else 'bidirectional'} under {regime.implementation}"]
    with torch.no_grad():
        plain = vla(inputs)
        names = ["hook_embed", "ln_final.hook_normalized"]
        names += ["action_head.hook_in"] if "action_head.hook_in" in vla.catalogue.names else []
        read, cache = vla.run_with_cache(inputs, names=names)
    _demand(torch.equal(plain.normalized, read.normalized), "captured and plain forward differ")
    facts.append("reading activations leaves the actions bit-identical")
    embed, layout = cache["hook_embed"], cache.layout
    _demand(embed.shape[1] == layout.length, f"{embed.shape[1]} tokens where the layout names {layout.length}")
    if vla.cfg.variant in ("l1", "discrete"):
        _demand(not bool(embed.at("action_slot").any()), "the action placeholders are not empty")
    facts.append(f"the sequence has the {layout.length} tokens that the layout names")
    if "action_head.hook_in" in cache:
        states = cache["ln_final.hook_normalized"].at("action_read")
        same = torch.equal(states.reshape(cache["action_head.hook_in"].shape), cache["action_head.hook_in"].values)
        _demand(same, "the action head does not read the positions that the layout calls action_read")
        facts.append("the action head reads the final states at action_read")
    return Report(vla.cfg.model_id, tuple(facts))


def noise_inputs(vla: HookedVLA, seed: int = 0) -> PolicyInputs:
    """A batch of two made-up queries whose prompts differ in length."""
    config, generator = vla.policy.config, torch.Generator().manual_seed(seed)
    images, size = config.num_images or (1 if config.variant == "base" else 2), config.image_size
    ids = torch.randint(3, min(config.llm.vocab_size, 100), (2, 9), generator=generator)
    ids[:, 0] = 1
    attention = torch.ones_like(ids)
    attention[1, 6:] = 0
    noise = torch.randn(2, config.chunk_size, config.action_dim, generator=generator)
    return PolicyInputs(
        ids,
        attention,
        torch.randn(2, 6 * images, size, size, generator=generator),
        torch.rand(2, config.proprio_dim, generator=generator) if config.use_proprio else None,
        noise if config.variant == "diffusion" else None,
    ).to(vla.policy.device)


def _demand(holds: bool, failure: str) -> None:
    if not holds:
        raise RuntimeError(f"the policy failed its check: {failure}")
