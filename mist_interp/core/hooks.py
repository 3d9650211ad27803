"""Which activations of a vision-language-action policy have a name, and what is each of them?

One row per name, in the order in which the network computes them. The names are those of TransformerLens where it has
one, so that code and habits carry over; `{i}` stands for a layer. In shapes, `token` counts the whole multimodal
sequence (`mist_interp.core.layout`), `patches` the image tokens of one camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stack = Literal["dino", "siglip", "llm", "head"]
Axis = Literal["tower", "patches", "proprio", "sequence", "pattern", "chunk"]


@dataclass(frozen=True)
class Hook:
    """One registered name.

    Attributes:
        pattern: the full name, with `{i}` for the layer.
        short: the short form that stands for it, `("resid_post", 3)`.
        stack: which stack of layers `{i}` counts in; None for a name without layers.
        axis: what the token axis of the activation holds.
        shape: axes of the tensor, batch first.
        meaning: one sentence.
        stream: whether it is captured when the user names nothing (internals of attention and MLP are not).
    """

    pattern: str
    short: str
    stack: Stack | None
    axis: Axis
    shape: str
    meaning: str
    stream: bool = True


TOKENS = "(batch, token, d_model)"
HEADS = "(batch, token, head, d_head)"

HOOKS: tuple[Hook, ...] = (
    Hook(
        "vision.dino.blocks.{i}.hook_resid_post",
        "dino.resid_post",
        "dino",
        "tower",
        "(batch, camera * (class + registers + patches), d_dino)",
        "Residual stream of the DINOv2 tower after block i; the last one listed is what the projector gets.",
    ),
    Hook(
        "vision.siglip.blocks.{i}.hook_resid_post",
        "siglip.resid_post",
        "siglip",
        "tower",
        "(batch, camera * patches, d_siglip)",
        "Residual stream of the SigLIP tower after block i; the last one listed is what the projector gets.",
    ),
    Hook(
        "projector.hook_out",
        "projector.out",
        None,
        "patches",
        "(batch, camera * patches, d_model)",
        "Image patches of all cameras in the width of the language model, as the sequence gets them.",
    ),
    Hook(
        "proprio.hook_in",
        "proprio.in",
        None,
        "proprio",
        "(batch, 1, state)",
        "Robot state after normalisation with the checkpoint's statistics.",
    ),
    Hook(
        "proprio.hook_out",
        "proprio.out",
        None,
        "proprio",
        "(batch, 1, d_model)",
        "The proprioception token, as the sequence gets it.",
    ),
    Hook("hook_embed", "embed", None, "sequence", TOKENS, "The whole multimodal sequence entering block 0."),
    Hook("blocks.{i}.hook_resid_pre", "resid_pre", "llm", "sequence", TOKENS, "Residual stream entering block i."),
    Hook(
        "blocks.{i}.attn.hook_q",
        "q",
        "llm",
        "sequence",
        HEADS,
        "Queries of block i, after the rotary position embedding.",
        stream=False,
    ),
    Hook(
        "blocks.{i}.attn.hook_k",
        "k",
        "llm",
        "sequence",
        "(batch, token, kv_head, d_head)",
        "Keys of block i, after the rotary position embedding.",
        stream=False,
    ),
    Hook(
        "blocks.{i}.attn.hook_v",
        "v",
        "llm",
        "sequence",
        "(batch, token, kv_head, d_head)",
        "Values of block i.",
        stream=False,
    ),
    Hook(
        "blocks.{i}.attn.hook_pattern",
        "pattern",
        "llm",
        "pattern",
        "(batch, head, query token, key token)",
        "Attention weights of block i after the softmax; rows sum to 1 (eager attention only).",
        stream=False,
    ),
    Hook(
        "blocks.{i}.attn.hook_z",
        "z",
        "llm",
        "sequence",
        HEADS,
        "Weighted values of block i per head, before the output projection.",
        stream=False,
    ),
    Hook(
        "blocks.{i}.hook_attn_out",
        "attn_out",
        "llm",
        "sequence",
        TOKENS,
        "What the attention of block i adds to the residual stream.",
    ),
    Hook(
        "blocks.{i}.hook_resid_mid",
        "resid_mid",
        "llm",
        "sequence",
        TOKENS,
        "Residual stream of block i between attention and MLP.",
    ),
    Hook(
        "blocks.{i}.mlp.hook_pre",
        "mlp.pre",
        "llm",
        "sequence",
        "(batch, token, d_mlp)",
        "Gate of the MLP of block i, before its activation function.",
        stream=False,
    ),
    Hook(
        "blocks.{i}.mlp.hook_pre_linear",
        "mlp.pre_linear",
        "llm",
        "sequence",
        "(batch, token, d_mlp)",
        "The linear branch of the MLP of block i, which the gate multiplies.",
        stream=False,
    ),
    Hook(
        "blocks.{i}.mlp.hook_post",
        "mlp.post",
        "llm",
        "sequence",
        "(batch, token, d_mlp)",
        "Neurons of the MLP of block i: activated gate times linear branch, before the output projection.",
        stream=False,
    ),
    Hook(
        "blocks.{i}.hook_mlp_out",
        "mlp_out",
        "llm",
        "sequence",
        TOKENS,
        "What the MLP of block i adds to the residual stream.",
    ),
    Hook("blocks.{i}.hook_resid_post", "resid_post", "llm", "sequence", TOKENS, "Residual stream leaving block i."),
    Hook(
        "ln_final.hook_normalized",
        "ln_final.normalized",
        None,
        "sequence",
        TOKENS,
        "Residual stream after the final norm, its weight included: what the action head reads.",
    ),
    Hook(
        "action_head.hook_in",
        "action_head.in",
        None,
        "chunk",
        "(batch, chunk, dim * d_model)",
        "The states of one chunk step's tokens side by side, as the action head gets them.",
    ),
    Hook(
        "action_head.blocks.{i}.hook_post",
        "action_head.post",
        "head",
        "chunk",
        "(batch, chunk, d_head)",
        "Residual stream of the action head after its block i.",
    ),
    Hook(
        "action_head.hook_out",
        "action_head.out",
        None,
        "chunk",
        "(batch, chunk, dim)",
        "Normalised action chunk (for a diffusion head: the noise it predicts).",
    ),
)

BY_PATTERN = {hook.pattern: hook for hook in HOOKS}
ORDER = {hook.pattern: place for place, hook in enumerate(HOOKS)}
