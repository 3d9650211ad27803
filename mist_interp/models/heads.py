"""How do hidden states become actions?

Both heads join the states of one chunk step (one per action number) into a vector and pass it through a small residual
MLP that is shared by all steps. The regression head reads actions off directly; the diffusion head predicts the noise
in a noisy chunk, and `denoise` walks from noise to actions (DDIM, Song et al. 2021, with the squared cosine schedule of
Nichol and Dhariwal 2021, no added noise, and the predicted clean chunk clipped to [-1, 1] at every step).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mist_interp.models.config import OpenVLAConfig


class ResidualBlock(nn.Module):
    """``x + ReLU(Linear(LayerNorm(x)))``."""

    def __init__(self, width: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Float[Tensor, "batch chunk width"]) -> Float[Tensor, "batch chunk width"]:
        return x + self.ffn(x)


class ResidualMLP(nn.Module):
    """The MLP of both heads."""

    def __init__(self, inputs: int, hidden: int, outputs: int, blocks: int = 2):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, hidden)
        self.relu = nn.ReLU()
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Float[Tensor, "batch chunk inputs"]) -> Float[Tensor, "batch chunk outputs"]:
        x = self.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class RegressionHead(nn.Module):
    """Hidden states at the action positions to normalised actions."""

    def __init__(self, config: OpenVLAConfig):
        super().__init__()
        self.chunk_size = config.chunk_size
        hidden = config.llm.hidden_size
        self.model = ResidualMLP(config.action_dim * hidden, hidden, config.action_dim)

    def forward(self, states: Float[Tensor, "batch slot hidden"]) -> Float[Tensor, "batch chunk dim"]:
        """Read one chunk off ``chunk * dim`` states, one chunk step after the other."""
        return self.model(states.unflatten(1, (self.chunk_size, -1)).flatten(2))


class TimestepEncoder(nn.Module):
    """Sinusoidal embedding of the noise level: half sines, half cosines."""

    def __init__(self, hidden: int):
        super().__init__()
        self.sines = hidden // 2

    def forward(self, timestep: Float[Tensor, " batch"]) -> Float[Tensor, "batch hidden"]:
        exponents = torch.arange(self.sines, device=timestep.device) * -math.log(10000) / (self.sines - 1)
        angles = timestep[:, None] * torch.exp(exponents)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class NoisePredictor(nn.Module):
    """The diffusion head's MLP, under the name it has in published checkpoints."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.mlp_resnet = ResidualMLP(inputs, hidden, outputs)

    def forward(self, x: Float[Tensor, "batch chunk inputs"]) -> Float[Tensor, "batch chunk outputs"]:
        return self.mlp_resnet(x)


class DiffusionHead(nn.Module):
    """Hidden states at the action positions to the noise in the chunk."""

    def __init__(self, config: OpenVLAConfig):
        super().__init__()
        self.chunk_size = config.chunk_size
        hidden = config.llm.hidden_size
        self.noise_predictor = NoisePredictor(config.action_dim * hidden, hidden, config.action_dim)
        self.time_encoder = TimestepEncoder(hidden)

    def forward(self, states: Float[Tensor, "batch slot hidden"]) -> Float[Tensor, "batch chunk dim"]:
        """Predict the noise from ``chunk * dim`` states, one chunk step after the other."""
        return self.noise_predictor(states.unflatten(1, (self.chunk_size, -1)).flatten(2))


def cosine_schedule(steps: int) -> Float[Tensor, " step"]:
    """Share of the signal's variance that is left after each step of the noise schedule, float32."""

    def signal(fraction: float) -> float:
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - signal((i + 1) / steps) / signal(i / steps), 0.999) for i in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), dim=0)


def denoise(
    chunk: Float[Tensor, "batch chunk dim"],
    predict_noise: Callable[[Float[Tensor, "batch chunk dim"], int], Float[Tensor, "batch chunk dim"]],
    train_steps: int,
    steps: int,
) -> Float[Tensor, "batch chunk dim"]:
    """Walk from noise to a clean chunk.

    Args:
        chunk: Gaussian noise.
        predict_noise: the noise in a chunk at a given timestep.
        train_steps: length of the noise schedule.
        steps: how many of its steps to take.
    """
    kept = cosine_schedule(train_steps).to(chunk.device)
    stride = train_steps // steps
    for timestep in reversed(range(0, stride * steps, stride)):
        noise = predict_noise(chunk, timestep)
        now = kept[timestep]
        after = kept[timestep - stride] if timestep >= stride else torch.ones_like(now)
        clean = ((chunk - (1 - now) ** 0.5 * noise) / now**0.5).clamp(-1, 1)
        chunk = after**0.5 * clean + (1 - after) ** 0.5 * noise
    return chunk
