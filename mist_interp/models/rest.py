"""What would the policy do if the residual stream before one block were this?

The network from block `layer` of the language model on, without the cameras, the prompt embedding and the blocks below.
Nothing is written anew: the rest is a language model of the published class over the same module objects (so a tracer
that watches them sees them run), with the first blocks left out, followed by the policy's own read-out.

    rest = rest_of(policy, 3)
    rest(states, inputs)        states (batch, token, d_model) -> ActionChunk

`states` equal to what the whole network has there give its own answer bit for bit. `layer` may equal the number of
blocks: then only the final norm and the action head are left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mist_interp.core.actions import ActionChunk
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.models import sequence
from mist_interp.models.vision import CHANNELS_PER_IMAGE

if TYPE_CHECKING:
    from mist_interp.models.policy import OpenVLAPolicy

Rest = Callable[[Float[Tensor, "batch token hidden"], PolicyInputs], ActionChunk]


def rest_of(policy: OpenVLAPolicy, layer: int) -> Rest:
    """The network from block `layer` on, as it is configured now.

    Args:
        policy: a variant whose query runs the language model once: "l1" or "discrete".
        layer: first block that runs, 0 to the number of blocks.

    Returns:
        A function of the states that enter that block and of the inputs, of which only the prompt lengths and the
        number of pictures matter. It raises ValueError for states of another length than those of the inputs.

    Raises:
        ValueError: base OpenVLA or a diffusion head, which run the language model several times per query.
        UnknownName: no such block.
    """
    if policy.variant not in ("l1", "discrete"):
        raise ValueError(f"a {policy.variant!r} policy runs its language model several times per query: it has no rest")
    whole = policy.language_model.model
    depth = len(whole.layers)
    if not 0 <= layer <= depth:
        raise UnknownName("layer to start at", layer, map(str, range(depth + 1)))
    config = copy.deepcopy(whole.config)
    config.num_hidden_layers = 0
    with torch.device("meta"):  # its own weights would be the embedding table, which is never asked
        tail = type(whole)(config).eval()
    config.num_hidden_layers = depth - layer
    tail.config._attn_implementation = whole.config._attn_implementation
    tail.layers = nn.ModuleList(whole.layers[layer:])
    tail.norm, tail.rotary_emb = whole.norm, whole.rotary_emb

    def answer(states: Float[Tensor, "batch token hidden"], inputs: PolicyInputs) -> ActionChunk:
        prompt = sequence.close_prompt(inputs.input_ids, inputs.attention_mask, policy.config.lone_space_token_id)
        text = sequence.append_slots(
            prompt, policy.config.action_slots, policy.config.placeholder_token_id, policy.config.stop_token_id
        )
        side = policy.config.image_size // policy.config.towers[0].patch
        patches = inputs.pixel_values.shape[1] // CHANNELS_PER_IMAGE * side**2
        inserted = patches + policy.config.use_proprio
        if states.shape[1] != inserted + text.ids.shape[1]:
            expected = inserted + text.ids.shape[1]
            raise ValueError(
                f"these queries are sequences of {expected} tokens, the states given have {states.shape[1]}"
            )
        mask = sequence.attend_to_inserted(text.attention, inserted)
        final = tail(inputs_embeds=states, attention_mask=mask, use_cache=False).last_hidden_state
        return policy.decide(sequence.read_slots(final, text, inserted))

    return answer
