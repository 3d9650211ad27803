"""How does base OpenVLA speak its actions?

Greedy decoding with a key-value cache: the prompt is read once, then each action token is fed back to get the next.
Prompts of a batch may differ in length; the tokens of a shorter prompt continue at its own positions, and nothing ever
attends to the padding between them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM


def greedy_action_tokens(
    llm: LlamaForCausalLM,
    embeddings: Float[Tensor, "batch sequence hidden"],
    attention: Bool[Tensor, "batch sequence"],
    lengths: Int[Tensor, " batch"],
    count: int,
) -> Int[Tensor, "batch count"]:
    """Decode action tokens after right-padded prompts.

    Args:
        llm: a causal language model.
        embeddings: prompts with their image tokens.
        attention: False where padded.
        lengths: tokens of each sequence without padding.
        count: tokens to decode.

    Returns:
        Ids of the most likely tokens over the whole vocabulary.
    """
    cache = DynamicCache(config=llm.config)
    states = llm.model(
        inputs_embeds=embeddings, attention_mask=attention, past_key_values=cache, use_cache=True
    ).last_hidden_state
    last = states.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1]))
    tokens = [llm.lm_head(last).argmax(-1)]
    for step in range(count - 1):
        attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
        states = llm.model(
            inputs_embeds=llm.get_input_embeddings()(tokens[-1]),
            attention_mask=attention,
            position_ids=(lengths + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        tokens.append(llm.lm_head(states).argmax(-1))
    return torch.cat(tokens, dim=1)
