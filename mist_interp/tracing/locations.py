"""Where in the module tree does each named activation live?

One entry per registered name: the path of a module (with the published names), which of its tensors is meant
(`mist_interp.tracing.ports`), and how that tensor becomes the shape that the registry promises. Reading gives that
shape, and what is written back is put into the module's own shape again. No module is run, replaced or changed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch

from mist_interp.core.names import Catalogue, Site
from mist_interp.tracing import ports
from mist_interp.tracing.ports import Port

Tensor = torch.Tensor


@dataclass(frozen=True)
class Location:
    """A place that a tracer can read and write.

    Attributes:
        path: of the module, from the policy.
        port: which of its tensors.
        show: module's shape to registry's shape, given the batch size.
        hide: its inverse, given the original tensor.
    """

    path: str
    port: Port
    show: Callable[[Tensor, int], Tensor] = field(default=lambda raw, batch: raw)
    hide: Callable[[Tensor, Tensor], Tensor] = field(default=lambda new, raw: new)


def locate(site: Site, policy: Any) -> Location:
    """Place of a site in this policy's module tree."""
    return locator(policy)(site)


def locator(policy: Any) -> Callable[[Site], Location]:
    """`locate` for many sites of one policy: its configuration is read once."""
    return partial(_locate, policy.variant, policy.config.llm.num_attention_heads)


TOWERS = {"dino": "vision_backbone.featurizer", "siglip": "vision_backbone.fused_featurizer"}
HEADS = {"l1": "action_head.model", "diffusion": "action_head.noise_predictor.mlp_resnet"}
_TOWER_PLACES = {
    "resid_pre": ("", ports.INPUT),
    "attn_out": (".ls1", ports.OUTPUT),
    "resid_mid": (".norm2", ports.SHARED_INPUT),
    "mlp_out": (".ls2", ports.OUTPUT),
    "resid_post": ("", ports.OUTPUT),
}


@lru_cache(maxsize=8192)
def _locate(variant: str, n_heads: int, site: Site) -> Location:
    layer = "" if site.layer is None else str(site.layer)
    block = f"language_model.model.layers.{layer}"
    attention, mlp = f"{block}.self_attn", f"{block}.mlp"
    head = HEADS.get(variant, "")
    if site.hook.axis == "tower":
        below, port = _TOWER_PLACES[site.hook.short.split(".")[1]]
        return Location(f"{TOWERS[str(site.hook.stack)]}.blocks.{layer}{below}", port, _rows, _unrows)
    match site.hook.pattern:
        case "projector.hook_out":
            return Location("projector", ports.OUTPUT, _rows, _unrows)
        case "proprio.hook_in":
            return Location("proprio_projector", ports.INPUT, _rows, _unrows)
        case "proprio.hook_out":
            return Location("proprio_projector", ports.OUTPUT, _rows, _unrows)
        case "hook_embed":
            return Location("language_model.model.layers.0", ports.INPUT)
        case "blocks.{i}.hook_resid_pre":
            return Location(block, ports.INPUT)
        case "blocks.{i}.ln1.hook_scale":
            return Location(f"{block}.input_layernorm", ports.SCALE)
        case "blocks.{i}.ln1.hook_normalized":
            return Location(f"{block}.input_layernorm", ports.OUTPUT)
        case "blocks.{i}.attn.hook_q":
            return Location(attention, ports.QUERY, _swap, _unswap)
        case "blocks.{i}.attn.hook_k":
            return Location(attention, ports.CACHED_KEY if variant == "base" else ports.KEY, _swap, _unswap)
        case "blocks.{i}.attn.hook_v":
            return Location(attention, ports.CACHED_VALUE if variant == "base" else ports.VALUE, _swap, _unswap)
        case "blocks.{i}.attn.hook_attn_scores":
            return Location(attention, ports.SCORES)
        case "blocks.{i}.attn.hook_pattern":
            return Location(attention, ports.PATTERN)
        case "blocks.{i}.attn.hook_z":
            split = lambda raw, batch: raw.unflatten(-1, (n_heads, -1))  # noqa: E731  # used once, beside its inverse
            return Location(f"{attention}.o_proj", ports.INPUT, split, lambda new, raw: new.flatten(-2))
        case "blocks.{i}.attn.hook_result":
            return Location(f"{attention}.o_proj", ports.head_results(n_heads))
        case "blocks.{i}.hook_attn_out":
            return Location(attention, ports.FIRST_OUTPUT)
        case "blocks.{i}.hook_resid_mid":
            return Location(f"{block}.post_attention_layernorm", ports.SHARED_INPUT)
        case "blocks.{i}.ln2.hook_scale":
            return Location(f"{block}.post_attention_layernorm", ports.SCALE)
        case "blocks.{i}.ln2.hook_normalized":
            return Location(f"{block}.post_attention_layernorm", ports.OUTPUT)
        case "blocks.{i}.mlp.hook_pre":
            return Location(f"{mlp}.gate_proj", ports.OUTPUT)
        case "blocks.{i}.mlp.hook_pre_linear":
            return Location(f"{mlp}.up_proj", ports.OUTPUT)
        case "blocks.{i}.mlp.hook_post":
            return Location(f"{mlp}.down_proj", ports.INPUT)
        case "blocks.{i}.hook_mlp_out":
            return Location(mlp, ports.OUTPUT)
        case "blocks.{i}.hook_resid_post":
            return Location(block, ports.OUTPUT)
        case "ln_final.hook_scale":
            return Location("language_model.model.norm", ports.SCALE)
        case "ln_final.hook_normalized":
            return Location("language_model.model.norm", ports.OUTPUT)
        case "unembed.hook_out":
            return Location("language_model.lm_head", ports.OUTPUT)
        case "action_head.hook_in":
            return Location(head, ports.INPUT)
        case "action_head.blocks.{i}.hook_post":
            return Location(f"{head}.mlp_resnet_blocks.{layer}", ports.OUTPUT)
        case "action_head.hook_out":
            return Location(head, ports.OUTPUT)
    raise NotImplementedError(f"{site} is registered but has no place in the module tree")


def catalogue(policy: Any) -> Catalogue:
    """The sites that this policy has, and why it lacks the others."""
    config = policy.config
    absent: dict[str, str] = {}
    if not config.use_proprio:
        absent |= dict.fromkeys(["proprio.hook_in", "proprio.hook_out"], "this policy takes no proprioception")
    if policy.variant in HEADS:
        absent["unembed.hook_out"] = "this policy reads its actions off an action head and speaks no tokens"
    else:
        names = ["action_head.hook_in", "action_head.blocks.{i}.hook_post", "action_head.hook_out"]
        absent |= dict.fromkeys(names, "this policy decodes its actions as tokens and has no action head")
    if config.llm._attn_implementation != "eager":
        reason = f"it exists only with attn_implementation='eager', not {config.llm._attn_implementation!r}"
        absent |= dict.fromkeys(["blocks.{i}.attn.hook_attn_scores", "blocks.{i}.attn.hook_pattern"], reason)
    dino, siglip = config.towers
    # The last block of each tower is part of the checkpoint and never runs.
    depths = {"dino": dino.depth - 1, "siglip": siglip.depth - 1, "llm": config.llm.num_hidden_layers}
    if policy.variant in HEADS:
        depths["head"] = len(policy.get_submodule(HEADS[policy.variant]).mlp_resnet_blocks)
    return Catalogue(depths, absent)  # type: ignore[arg-type]  # the keys are stacks


def _swap(raw: Tensor, batch: int) -> Tensor:
    """(batch, head, token, d_head) to (batch, token, head, d_head)."""
    return raw.transpose(1, 2)


def _unswap(new: Tensor, raw: Tensor) -> Tensor:
    return new.transpose(1, 2)


def _rows(raw: Tensor, batch: int) -> Tensor:
    """(batch * camera, token, d) or (batch, d) to (batch, token, d)."""
    return raw.reshape(batch, -1, raw.shape[-1])


def _unrows(new: Tensor, raw: Tensor) -> Tensor:
    return new.reshape(raw.shape)
