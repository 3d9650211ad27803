"""What do the weights of a new policy look like before training?

Truncated normals of deviation 0.02 for linear maps, embeddings and positions, zero biases, and identity for everything
that scales: norms, layer scales and FiLM start by doing nothing.
"""

from __future__ import annotations

from torch import nn
from transformers import initialization as init

from mist_interp.models.vit import AttentionPool, Block, LayerScale, VisionTower

DEVIATION = 0.02


def initialize(module: nn.Module) -> None:
    """Initialise the parameters that this module holds itself."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        init.trunc_normal_(module.weight, std=DEVIATION)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight, std=DEVIATION)
    elif isinstance(module, nn.LayerNorm) or type(module).__name__ == "LlamaRMSNorm":
        for name, parameter in module.named_parameters(recurse=False):
            init.ones_(parameter) if name == "weight" else init.zeros_(parameter)
    elif isinstance(module, LayerScale):
        init.ones_(module.scale_factor)
    elif isinstance(module, VisionTower):
        init.trunc_normal_(module.pos_embed, std=DEVIATION)
        if module.prefix_tokens:
            init.trunc_normal_(module.cls_token, std=DEVIATION)
            init.trunc_normal_(module.reg_token, std=DEVIATION)
    elif isinstance(module, AttentionPool):
        init.trunc_normal_(module.latent, std=DEVIATION)
    elif isinstance(module, Block) and hasattr(module, "scale"):
        for film in (module.scale, module.shift):
            init.zeros_(film.weight)
            init.zeros_(film.bias)
