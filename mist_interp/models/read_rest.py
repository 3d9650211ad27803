"""What would the policy do if the residual stream at some read positions were this, as cheaply as it can be said?

The same answer as `rest_of`, for one query and for chosen chunk steps, computed only where it is read: behind the last
block nothing but the states of these steps matters, so that block asks and answers at these positions alone (its keys
and values still come from everywhere), and the head reads these steps alone. For derivatives this counts doubly:
a batch of backward passes is as wide as what it goes through.

    numbers(states at the positions) -> normalised actions of the steps

The sums are the same, their order is not: the numbers agree with those of the whole network up to rounding. So it is
for derivatives; what the robot executes comes from the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from mist_interp.core.errors import UnknownName

if TYPE_CHECKING:
    from mist_interp.models.policy import OpenVLAPolicy

Numbers = Callable[[Float[Tensor, "position d_model"]], Float[Tensor, "step dim"]]


def numbers_of_steps(
    policy: OpenVLAPolicy,
    layer: int,
    states: Float[Tensor, "token d_model"],
    positions: Int[Tensor, " position"],
    steps: Sequence[int],
) -> Numbers:
    """The actions of some chunk steps as a function of the stream at their read positions, entering block `layer`.

    Args:
        policy: with a regression head ("l1").
        layer: first block that runs, 0 to the number of blocks.
        states: of the whole sequence of one query, without padding; what the other positions hold.
        positions: where the chosen steps are read, step after step.
        steps: chunk steps.

    Raises:
        ValueError: another kind of head, or another number of positions than the steps have numbers.
        UnknownName: no such block.
    """
    if policy.variant != "l1":
        raise ValueError(f"only a regression head computes actions from states; this policy is {policy.variant!r}")
    whole, head = policy.language_model.model, policy.action_head.get_submodule("model")
    depth, dims = len(whole.layers), policy.config.action_dim
    if not 0 <= layer <= depth:
        raise UnknownName("layer to start at", layer, map(str, range(depth + 1)))
    if len(positions) != len(steps) * dims:
        raise ValueError(f"{len(positions)} positions for {len(steps)} chunk steps of {dims} numbers")
    states, places = states.detach()[None], torch.arange(len(states), device=states.device)[None]
    cosine, sine = whole.rotary_emb(states, places)
    rest = torch.ones(states.shape[1], dtype=torch.bool).index_fill(0, positions.cpu(), False).nonzero()[:, 0]
    rest = rest.to(states.device)

    def block(number: int, x: Tensor) -> Tensor:
        output = whole.layers[number](
            x, attention_mask=None, position_ids=places, position_embeddings=(cosine, sine), is_causal=False
        )
        return output if isinstance(output, Tensor) else output[0]

    def keys_and_values(seen: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        attention = whole.layers[depth - 1].self_attn
        heads = (-1, attention.head_dim)
        key = attention.k_proj(seen).unflatten(-1, heads).transpose(1, 2)
        value = attention.v_proj(seen).unflatten(-1, heads).transpose(1, 2)
        return apply_rotary_pos_emb(key, key, cosine[:, where], sine[:, where])[0], value

    def last(others: Tensor, asked: Tensor) -> Tensor:
        """The last block at the positions, whose states are `asked`; `others` are those of the other tokens."""
        here = whole.layers[depth - 1]
        attention = here.self_attn
        own = here.input_layernorm(asked)
        query = attention.q_proj(own).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        query, _ = apply_rotary_pos_emb(query, query, cosine[:, positions], sine[:, positions])
        near, far = keys_and_values(own, positions), keys_and_values(here.input_layernorm(others), rest)
        shared = query.shape[1] // near[0].shape[1]
        (key, value), (far_key, far_value) = (
            [one.repeat_interleave(shared, 1) for one in part] for part in (near, far)
        )
        # The order of the keys is of no matter; kept apart, no derivative is taken towards tokens that do not change.
        scores = torch.cat([query @ one.transpose(-1, -2) for one in (key, far_key)], -1) * attention.scaling
        to_near, to_far = scores.softmax(-1, dtype=torch.float32).to(query).split([key.shape[2], far_key.shape[2]], -1)
        mixed = (to_near @ value + to_far @ far_value).transpose(1, 2).flatten(-2)
        middle = asked + attention.o_proj(mixed)
        added: Tensor = here.mlp(here.post_attention_layernorm(middle))
        return middle + added

    def numbers(changed: Float[Tensor, "position d_model"]) -> Float[Tensor, "step dim"]:
        others, asked = states[:, rest], changed[None]
        if layer < depth - 1:
            x = states.index_copy(1, positions, asked)
            for number in range(layer, depth - 1):
                x = block(number, x)
            others, asked = x[:, rest], x[:, positions]
        if layer < depth:
            asked = last(others, asked)
        final = whole.norm(asked).unflatten(1, (len(steps), -1)).flatten(2)
        found: Tensor = head(final)
        return found[0]

    return numbers
