"""Where in the module tree does each named activation live?

One entry per registered name: the path of a module (with the published names), whether the activation is what goes in
or what comes out, and how the tensor there becomes the shape that the registry promises. Reading gives that shape, and
what is written back is put into the module's own shape again. No module is run, replaced or changed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch

from mist_interp.core.names import Catalogue, Site

Tensor = torch.Tensor


@dataclass(frozen=True)
class Location:
    """A place that a tracer can read and write.

    Attributes:
        path: of the module, from the policy.
        get: takes the tracer's view of that module, gives the tensor there.
        put: takes the view and a new tensor of the same shape.
        show: module's shape to registry's shape, given the batch size.
        hide: its inverse, given the original tensor.
    """

    path: str
    get: Callable[[Any], Tensor]
    put: Callable[[Any, Tensor], None]
    show: Callable[[Tensor, int], Tensor] = field(default=lambda raw, batch: raw)
    hide: Callable[[Tensor, Tensor], Tensor] = field(default=lambda new, raw: new)


def locate(site: Site, policy: Any) -> Location:
    """Place of a site in this policy's module tree."""
    return locator(policy)(site)


def locator(policy: Any) -> Callable[[Site], Location]:
    """`locate` for many sites of one policy: its configuration is read once."""
    return partial(_locate, policy.variant, policy.config.llm.num_attention_heads)


@lru_cache(maxsize=8192)
def _locate(variant: str, n_heads: int, site: Site) -> Location:
    layer = "" if site.layer is None else str(site.layer)
    block = f"language_model.model.layers.{layer}"
    head = {"l1": "action_head.model", "diffusion": "action_head.noise_predictor.mlp_resnet"}.get(variant, "")
    match site.hook.pattern:
        case "vision.dino.blocks.{i}.hook_resid_post":
            return _outgoing(f"vision_backbone.featurizer.blocks.{layer}", _rows, _unrows)
        case "vision.siglip.blocks.{i}.hook_resid_post":
            return _outgoing(f"vision_backbone.fused_featurizer.blocks.{layer}", _rows, _unrows)
        case "projector.hook_out":
            return _outgoing("projector", _rows, _unrows)
        case "proprio.hook_in":
            return _incoming("proprio_projector", _rows, _unrows)
        case "proprio.hook_out":
            return _outgoing("proprio_projector", _rows, _unrows)
        case "hook_embed":
            return _incoming("language_model.model.layers.0")
        case "blocks.{i}.hook_resid_pre":
            return _incoming(block)
        case "blocks.{i}.attn.hook_q":
            return _attention_argument(f"{block}.self_attn", 1)
        case "blocks.{i}.attn.hook_k":
            return _attention_argument(f"{block}.self_attn", 2)
        case "blocks.{i}.attn.hook_v":
            return _attention_argument(f"{block}.self_attn", 3)
        case "blocks.{i}.attn.hook_pattern":
            return Location(f"{block}.self_attn", _get_softmax, _put_softmax)
        case "blocks.{i}.attn.hook_z":
            split = lambda raw, batch: raw.unflatten(-1, (n_heads, -1))  # noqa: E731  # used once, beside its inverse
            return _incoming(f"{block}.self_attn.o_proj", split, lambda new, raw: new.flatten(-2))
        case "blocks.{i}.hook_attn_out":
            return Location(f"{block}.self_attn", _get_first, _put_first)
        case "blocks.{i}.hook_resid_mid":
            return Location(f"{block}.post_attention_layernorm", _get_input, _overwrite_input)
        case "blocks.{i}.mlp.hook_pre":
            return _outgoing(f"{block}.mlp.gate_proj")
        case "blocks.{i}.mlp.hook_pre_linear":
            return _outgoing(f"{block}.mlp.up_proj")
        case "blocks.{i}.mlp.hook_post":
            return _incoming(f"{block}.mlp.down_proj")
        case "blocks.{i}.hook_mlp_out":
            return _outgoing(f"{block}.mlp")
        case "blocks.{i}.hook_resid_post":
            return _outgoing(block)
        case "ln_final.hook_normalized":
            return _outgoing("language_model.model.norm")
        case "action_head.hook_in":
            return _incoming(head)
        case "action_head.blocks.{i}.hook_post":
            return _outgoing(f"{head}.mlp_resnet_blocks.{layer}")
        case "action_head.hook_out":
            return _outgoing(head)
    raise NotImplementedError(f"{site} is registered but has no place in the module tree")


def catalogue(policy: Any) -> Catalogue:
    """The sites that this policy has, and why it lacks the others."""
    config = policy.config
    absent: dict[str, str] = {}
    if not config.use_proprio:
        absent |= dict.fromkeys(["proprio.hook_in", "proprio.hook_out"], "this policy takes no proprioception")
    if policy.variant in ("discrete", "base"):
        names = ["action_head.hook_in", "action_head.blocks.{i}.hook_post", "action_head.hook_out"]
        absent |= dict.fromkeys(names, "this policy decodes its actions as tokens and has no action head")
    if config.llm._attn_implementation != "eager":
        reason = (
            f"attention weights exist only with attn_implementation='eager', not {config.llm._attn_implementation!r}"
        )
        absent["blocks.{i}.attn.hook_pattern"] = reason
    dino, siglip = config.towers
    # The last block of each tower is part of the checkpoint and never runs.
    depths = {"dino": dino.depth - 1, "siglip": siglip.depth - 1, "llm": config.llm.num_hidden_layers}
    if policy.variant in ("l1", "diffusion"):
        depths["head"] = len(policy.get_submodule(locate(Site("action_head.hook_in"), policy).path).mlp_resnet_blocks)
    return Catalogue(depths, absent)  # type: ignore[arg-type]  # the keys are stacks


def _incoming(path: str, *shapes: Any) -> Location:
    return Location(path, _get_input, _put_input, *shapes)


def _outgoing(path: str, *shapes: Any) -> Location:
    return Location(path, _get_output, _put_output, *shapes)


def _get_input(view: Any) -> Tensor:
    return view.input


def _put_input(view: Any, new: Tensor) -> None:
    view.input = new


def _overwrite_input(view: Any, new: Tensor) -> None:
    """Write into the module's input itself: the block adds that very tensor again after the MLP."""
    raw = view.input
    raw.copy_(new.clone() if new.untyped_storage().data_ptr() == raw.untyped_storage().data_ptr() else new)


def _get_output(view: Any) -> Tensor:
    return view.output


def _put_output(view: Any, new: Tensor) -> None:
    view.output = new


def _get_first(view: Any) -> Tensor:
    return view.output[0]


def _put_first(view: Any, new: Tensor) -> None:
    view.output = (new, *view.output[1:])


def _attention_argument(path: str, place: int) -> Location:
    """One of q, k, v as the attention function gets them: (batch, head, token, d_head), after rotation."""

    def get(view: Any) -> Tensor:
        return _attention_call(view).inputs[0][place]

    def put(view: Any, new: Tensor) -> None:
        call = _attention_call(view)
        arguments, keywords = call.inputs
        call.inputs = ((*arguments[:place], new, *arguments[place + 1 :]), keywords)

    return Location(path, get, put, lambda raw, batch: raw.transpose(1, 2), lambda new, raw: new.transpose(1, 2))


def _attention_call(view: Any) -> Any:
    # Operation 0 of that name is the assignment of the function, 1 is the call.
    return view.source.attention_interface_1


def _get_softmax(view: Any) -> Tensor:
    return _attention_call(view).source.nn_functional_softmax_0.output


def _put_softmax(view: Any, new: Tensor) -> None:
    _attention_call(view).source.nn_functional_softmax_0.output = new


def _rows(raw: Tensor, batch: int) -> Tensor:
    """(batch * camera, token, d) or (batch, d) to (batch, token, d)."""
    return raw.reshape(batch, -1, raw.shape[-1])


def _unrows(new: Tensor, raw: Tensor) -> Tensor:
    return new.reshape(raw.shape)
