"""How do several cameras become tokens of the language model?

Each picture arrives as six channels: three normalised for DINOv2, three for SigLIP. All cameras of all samples pass
through a tower as one batch. The features of the two towers are joined per patch, the cameras are laid one after the
other, and a three-layer MLP maps every patch into the language model's space. Nothing marks which camera a patch is
from, only its position in the sequence.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mist_interp.models.config import OpenVLAConfig
from mist_interp.models.vit import VisionTower

CHANNELS_PER_IMAGE = 6


class VisionBackbone(nn.Module):
    """DINOv2 (`featurizer`) and SigLIP (`fused_featurizer`), side by side."""

    def __init__(self, config: OpenVLAConfig):
        super().__init__()
        dino, siglip = config.towers
        self.featurizer = VisionTower(dino, config)
        self.fused_featurizer = VisionTower(siglip, config)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        language: Float[Tensor, "batch hidden"] | None = None,
    ) -> Float[Tensor, "batch patch width"]:
        """Features of every patch of every camera.

        Args:
            pixel_values: per camera three DINOv2 channels, then three SigLIP channels.
            language: mean language embedding of each sample (FiLM), else None.

        Returns:
            (batch, images * patches, DINOv2 width + SigLIP width), camera after camera.
        """
        batch = pixel_values.shape[0]
        pictures = pixel_values.unflatten(1, (-1, CHANNELS_PER_IMAGE)).flatten(0, 1)
        if language is not None:
            language = language.repeat_interleave(len(pictures) // batch, dim=0)
        dino = self.featurizer(pictures[:, :3], language)
        siglip = self.fused_featurizer(pictures[:, 3:], language)
        return torch.cat([dino, siglip], dim=-1).unflatten(0, (batch, -1)).flatten(1, 2)


class VisionProjector(nn.Module):
    """Patch features to language model tokens: three linear maps with exact GELUs between them."""

    def __init__(self, config: OpenVLAConfig):
        super().__init__()
        width = sum(tower.width for tower in config.towers)
        hidden = config.llm.hidden_size
        self.fc1 = nn.Linear(width, 4 * width)
        self.act_fn1 = nn.GELU()
        self.fc2 = nn.Linear(4 * width, hidden)
        self.act_fn2 = nn.GELU()
        self.fc3 = nn.Linear(hidden, hidden)

    def forward(self, features: Float[Tensor, "batch patch width"]) -> Float[Tensor, "batch patch hidden"]:
        return self.fc3(self.act_fn2(self.fc2(self.act_fn1(self.fc1(features)))))


class TokenProjector(nn.Module):
    """Numbers to tokens: the robot state (one token), or each number of a noisy chunk (one token each)."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.act_fn1 = nn.GELU()
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, numbers: Float[Tensor, "batch token inputs"]) -> Float[Tensor, "batch token hidden"]:
        return self.fc2(self.act_fn1(self.fc1(numbers)))
