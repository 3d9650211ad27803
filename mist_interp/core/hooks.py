"""Which activations of a vision-language-action policy have a name, and what is each of them?

One row per name, in the order in which the network computes them. The names are those of TransformerLens where it has
one, so that code and habits carry over; `{i}` stands for a layer. In shapes, `token` counts the whole multimodal
sequence (`mist_interp.core.layout`), `patches` the image tokens of one camera. A shape is arithmetic on names of sizes,
which `HookedVLA.shapes` evaluates, so that no row can promise what the network does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stack = Literal["dino", "siglip", "llm", "head"]
Axis = Literal["tower", "patches", "proprio", "sequence", "pattern", "chunk", "logits"]


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
KV_HEADS = "(batch, token, kv_head, d_head)"
PAIRS = "(batch, head, query, key)"
NEURONS = "(batch, token, d_mlp)"
SCALE = "(batch, token, 1)"
BLOCK = "blocks.{i}."


def _tower(stack: Literal["dino", "siglip"], title: str, shape: str) -> tuple[Hook, ...]:
    """The names of one vision tower, whose blocks are all built alike."""

    def row(name: str, meaning: str, stream: bool = False) -> Hook:
        full = f"vision.{stack}.blocks.{{i}}.hook_{name}"
        return Hook(full, f"{stack}.{name}", stack, "tower", shape, meaning, stream)

    return (
        row("resid_pre", f"Residual stream of the {title} tower entering block i (block 0: patch embeddings)."),
        row("attn_out", f"What the attention of block i adds to the {title} tower's stream, layer scale included."),
        row(
            "resid_mid",
            f"Residual stream of the {title} tower between attention (and FiLM, if any) and MLP of block i.",
        ),
        row("mlp_out", f"What the MLP of block i adds to the {title} tower's stream, layer scale included."),
        row(
            "resid_post",
            f"Residual stream of the {title} tower after block i; the last one listed is what the projector gets.",
            True,
        ),
    )


def _stream(name: str, meaning: str) -> Hook:
    """A row of the language model's residual stream."""
    return Hook(f"{BLOCK}hook_{name}", name, "llm", "sequence", TOKENS, meaning)


def _inside(part: str, name: str, short: str, axis: Axis, shape: str, meaning: str) -> Hook:
    """A row inside a block of the language model, captured only when it is named."""
    return Hook(f"{BLOCK}{part}.hook_{name}", short, "llm", axis, shape, meaning, stream=False)


def _attention(name: str, shape: str, meaning: str, axis: Axis = "sequence") -> Hook:
    return _inside("attn", name, name, axis, shape, meaning)


def _part(part: str, name: str, shape: str, meaning: str) -> Hook:
    return _inside(part, name, f"{part}.{name}", "sequence", shape, meaning)


HOOKS: tuple[Hook, ...] = (
    *_tower("dino", "DINOv2", "(batch, camera * (prefix + patches), d_dino)"),
    *_tower("siglip", "SigLIP", "(batch, camera * patches, d_siglip)"),
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
    _stream("resid_pre", "Residual stream entering block i."),
    _part("ln1", "scale", SCALE, "Root mean square by which the norm before the attention of block i divides."),
    _part("ln1", "normalized", TOKENS, "Residual stream after that norm, its weight included: what q, k and v read."),
    _attention("q", HEADS, "Queries of block i, after the rotary position embedding."),
    _attention(
        "k",
        KV_HEADS,
        "Keys of block i, after the rotary position embedding; of the tokens that this run of the model reads.",
    ),
    _attention("v", KV_HEADS, "Values of block i; of the tokens that this run of the model reads."),
    _attention(
        "attn_scores", PAIRS, "Attention logits of block i before the softmax, mask added (eager only).", "pattern"
    ),
    _attention(
        "pattern", PAIRS, "Attention weights of block i after the softmax; rows sum to 1 (eager only).", "pattern"
    ),
    _attention("z", HEADS, "Weighted values of block i per head, before the output projection."),
    _attention(
        "result",
        "(batch, token, head, d_model)",
        "What each head of block i adds to attn_out: z times its part of the output matrix (n_heads times the size).",
    ),
    _stream("attn_out", "What the attention of block i adds to the residual stream."),
    _stream("resid_mid", "Residual stream of block i between attention and MLP."),
    _part("ln2", "scale", SCALE, "Root mean square by which the norm before the MLP of block i divides."),
    _part("ln2", "normalized", TOKENS, "Residual stream after that norm, its weight included: what the MLP reads."),
    _part("mlp", "pre", NEURONS, "Gate of the MLP of block i, before its activation function."),
    _part("mlp", "pre_linear", NEURONS, "The linear branch of the MLP of block i, which the gate multiplies."),
    _part(
        "mlp",
        "post",
        NEURONS,
        "Neurons of the MLP of block i: activated gate times linear branch, before the output projection.",
    ),
    _stream("mlp_out", "What the MLP of block i adds to the residual stream."),
    _stream("resid_post", "Residual stream leaving block i."),
    Hook(
        "ln_final.hook_scale",
        "ln_final.scale",
        None,
        "sequence",
        SCALE,
        "Root mean square by which the final norm divides.",
        stream=False,
    ),
    Hook(
        "ln_final.hook_normalized",
        "ln_final.normalized",
        None,
        "sequence",
        TOKENS,
        "Residual stream after the final norm, its weight included: what the action head reads.",
    ),
    Hook(
        "unembed.hook_out",
        "logits",
        None,
        "logits",
        "(batch, read, vocab)",
        "Token logits at action_read of a policy that speaks its actions as tokens (base OpenVLA: one token per run).",
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
        "(batch, chunk, d_model)",
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
