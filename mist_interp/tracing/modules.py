"""Which torch module does a name stand for?

Besides activations the parts of a policy have the names that TransformerLens gives them, whatever the published
checkpoint calls them:

    embed, blocks.{i}, blocks.{i}.attn, blocks.{i}.mlp, blocks.{i}.ln1, blocks.{i}.ln2, ln_final, unembed,
    projector, proprio, action_head, action_head.blocks.{i}, vision.dino, vision.dino.blocks.{i}, vision.siglip, ...
"""

from __future__ import annotations

import re

from torch import nn

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import Catalogue, Site
from mist_interp.tracing.locations import HEADS, TOWERS, locate

LLM = "language_model.model"
PARTS = {
    "embed": f"{LLM}.embed_tokens",
    "blocks.{i}": f"{LLM}.layers.{{i}}",
    "blocks.{i}.attn": f"{LLM}.layers.{{i}}.self_attn",
    "blocks.{i}.mlp": f"{LLM}.layers.{{i}}.mlp",
    "blocks.{i}.ln1": f"{LLM}.layers.{{i}}.input_layernorm",
    "blocks.{i}.ln2": f"{LLM}.layers.{{i}}.post_attention_layernorm",
    "ln_final": f"{LLM}.norm",
    "unembed": "language_model.lm_head",
    "projector": "projector",
    "proprio": "proprio_projector",
    "action_head": "action_head",
    "action_head.blocks.{i}": "",  # where they are depends on the head
    **{f"vision.{tower}": path for tower, path in TOWERS.items()},
    **{f"vision.{tower}.blocks.{{i}}": f"{path}.blocks.{{i}}" for tower, path in TOWERS.items()},
}


def module_path(name: str, policy: nn.Module, catalogue: Catalogue) -> str:
    """Path in the policy's module tree of a part, of the module at which a site is read, or of a path itself.

    Raises:
        UnknownName: no such part here.
    """
    layer = re.search(r"\.(-?\d+)(?=\.|$)", name)
    pattern = name if layer is None else f"{name[: layer.start()]}.{{i}}{name[layer.end() :]}"
    modules = dict(policy.named_modules())
    if pattern in PARTS:
        path = PARTS[pattern] or f"{HEADS.get(getattr(policy, 'variant', ''), '')}.mlp_resnet_blocks.{{i}}"
        if layer is not None:
            stack = path.removesuffix(".{i}").split(".{i}")[0]
            depth = len(modules[stack]) if stack in modules else 0
            number = int(layer[1])
            if not -depth <= number < depth:
                raise UnknownName(f"layer of {pattern}", number, [str(i) for i in range(depth)])
            path = path.replace("{i}", str(number % depth))
        if path in modules:
            return path
    elif name in modules:
        return name
    else:
        try:
            return locate(catalogue.one(name), policy).path
        except UnknownName:
            pass
    raise UnknownName("module", name, [*PARTS, *modules])


def sites_at(path: str, policy: nn.Module, catalogue: Catalogue) -> tuple[Site, ...]:
    """Sites that are read at this very module; the inverse of `locate`."""
    return tuple(site for site in catalogue.sites if locate(site, policy).path == path)
