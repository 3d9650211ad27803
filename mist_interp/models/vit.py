"""How does a vision tower turn a picture into patch features?

A plain vision transformer (Dosovitskiy et al. 2021) whose parameters carry timm's names, so that published weights load
one to one. Two things are special to OpenVLA:

* the feature is the output of the last but one block, without the final norm; the last block, the norm and SigLIP's
  pooling head are part of every checkpoint and never run;
* in the FiLM variant each block scales and shifts its residual stream by the mean language embedding, between attention
  and MLP: ``x <- x (1 + scale(e)) + shift(e)``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mist_interp.models.config import OpenVLAConfig, TowerSize

NORM_EPSILON = 1e-6


class PatchEmbedding(nn.Module):
    """Cut a picture into squares and map each to a token."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image patch width"]:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class LayerScale(nn.Module):
    """A learnt factor per channel (stored as `scale_factor` in OpenVLA checkpoints, `gamma` in timm)."""

    def __init__(self, width: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "image token width"]) -> Float[Tensor, "image token width"]:
        return x * self.scale_factor


class Attention(nn.Module):
    """Multi-head self-attention, written out when the policy's attention implementation is "eager"."""

    def __init__(self, size: TowerSize, config: OpenVLAConfig):
        super().__init__()
        self.heads = size.heads
        self.config = config
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.proj = nn.Linear(size.width, size.width)

    def forward(self, x: Float[Tensor, "image token width"]) -> Float[Tensor, "image token width"]:
        images, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(images, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.config._attn_implementation == "eager":
            pattern = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
            z = pattern @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v)
        return self.proj(z.transpose(1, 2).reshape(images, tokens, width))


class MLP(nn.Module):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "image token width"]) -> Float[Tensor, "image token width"]:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """One pre-norm transformer block, with FiLM between its two branches where the variant asks for it."""

    def __init__(self, size: TowerSize, config: OpenVLAConfig):
        super().__init__()
        scaled = LayerScale if size.layer_scale else nn.Identity
        self.norm1 = nn.LayerNorm(size.width, eps=NORM_EPSILON)
        self.attn = Attention(size, config)
        self.ls1 = scaled(size.width)
        if config.film:
            self.scale = nn.Linear(config.llm.hidden_size, size.width)
            self.shift = nn.Linear(config.llm.hidden_size, size.width)
        self.norm2 = nn.LayerNorm(size.width, eps=NORM_EPSILON)
        self.mlp = MLP(size.width, int(size.width * size.mlp_ratio))
        self.ls2 = scaled(size.width)

    def forward(
        self, x: Float[Tensor, "image token width"], language: Float[Tensor, "image hidden"] | None = None
    ) -> Float[Tensor, "image token width"]:
        x = x + self.ls1(self.attn(self.norm1(x)))
        if language is not None:
            x = x * (1 + self.scale(language)[:, None]) + self.shift(language)[:, None]
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """SigLIP's pooling head: held because checkpoints contain it, never run."""

    def __init__(self, size: TowerSize):
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, size.width))
        self.q = nn.Linear(size.width, size.width)
        self.kv = nn.Linear(size.width, 2 * size.width)
        self.proj = nn.Linear(size.width, size.width)
        self.norm = nn.LayerNorm(size.width, eps=NORM_EPSILON)
        self.mlp = MLP(size.width, int(size.width * size.mlp_ratio))


class VisionTower(nn.Module):
    """One vision transformer, from normalised pixels to patch features."""

    def __init__(self, size: TowerSize, config: OpenVLAConfig):
        super().__init__()
        self.size = size
        patches = (config.image_size // size.patch) ** 2
        if size.registers:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
            self.reg_token = nn.Parameter(torch.zeros(1, size.registers, size.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, size.width))
        self.patch_embed = PatchEmbedding(size.width, size.patch)
        self.blocks = nn.ModuleList(Block(size, config) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=NORM_EPSILON)
        if size.attention_pool:
            self.attn_pool = AttentionPool(size)

    @property
    def prefix_tokens(self) -> int:
        """Tokens in front of the patches: class token and registers."""
        return 1 + self.size.registers if self.size.registers else 0

    def forward(
        self,
        pixels: Float[Tensor, "image 3 height width"],
        language: Float[Tensor, "image hidden"] | None = None,
    ) -> Float[Tensor, "image patch width"]:
        """Features of every patch, row by row from the top left.

        Args:
            pixels: normalised with this tower's mean and deviation.
            language: mean language embedding for each image (FiLM), else None.
        """
        x = self.patch_embed(pixels) + self.pos_embed
        if self.prefix_tokens:
            prefix = torch.cat([self.cls_token, self.reg_token], dim=1)
            x = torch.cat([prefix.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks[:-1]:
            x = block(x, language)
        return x[:, self.prefix_tokens :]
