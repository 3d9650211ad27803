"""Does the language model attend the way its weights were trained?

A causal mask on OpenVLA-OFT, or a bidirectional one on base OpenVLA, raises no error anywhere; the policy merely fails
half of its tasks. So it is measured: replace the last token of a short sequence and see whether the first one notices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM

TOKENS = 6


@dataclass(frozen=True)
class AttentionRegime:
    """What was found.

    Attributes:
        causal: whether the first token is blind to the last one.
        change_at_first: largest change of the first token's final state.
        implementation: the attention implementation that was running.
    """

    causal: bool
    change_at_first: float
    implementation: str


def check_attention(llm: LlamaForCausalLM, expect_causal: bool) -> AttentionRegime:
    """Show that attention is causal, or bidirectional, as expected.

    Args:
        llm: the language model, in its present settings.
        expect_causal: True for base OpenVLA, False for OpenVLA-OFT.

    Raises:
        RuntimeError: if it is the other way round.
    """
    table = llm.get_input_embeddings()
    ids = torch.arange(1, TOKENS + 2, device=llm.device)[None]
    with torch.no_grad():
        embeddings = table(ids)
        changed = torch.cat([embeddings[:, : TOKENS - 1], embeddings[:, TOKENS:]], dim=1)
        first, second = (
            llm.model(
                inputs_embeds=given, attention_mask=torch.ones_like(ids[:, :TOKENS]), use_cache=False
            ).last_hidden_state[0, 0]
            for given in (embeddings[:, :TOKENS], changed)
        )
    change = (first - second).abs().max().item()
    found = AttentionRegime(change == 0.0, change, str(llm.config._attn_implementation))
    if found.causal != expect_causal:
        names = {True: "causal", False: "bidirectional"}
        raise RuntimeError(
            f"attention is {names[found.causal]} but this variant needs it {names[expect_causal]} "
            f"({found.implementation}; replacing the last token moved the first one by {change:.3g})"
        )
    return found
