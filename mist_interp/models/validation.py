"""Can the policy read these inputs?

Called at the start of every forward pass, so that a wrong shape is reported as what it is and not as a matrix product
somewhere inside a vision tower.
"""

from __future__ import annotations

import torch

from mist_interp.core.inputs import PolicyInputs
from mist_interp.models.config import OpenVLAConfig
from mist_interp.models.vision import CHANNELS_PER_IMAGE


def check_inputs(inputs: PolicyInputs, config: OpenVLAConfig) -> None:
    """Compare the inputs with what the configuration needs.

    Raises:
        TypeError: if something else than `PolicyInputs` is given.
        ValueError: naming what was given and what is possible.
    """
    if not isinstance(inputs, PolicyInputs):
        raise TypeError(f"a policy takes PolicyInputs, not {type(inputs).__name__}; see policy.prepare")
    _check_pixels(inputs, config)
    _check_proprio(inputs, config)
    if inputs.noise is not None:
        expected = (inputs.batch_size, config.chunk_size, config.action_dim)
        if config.variant != "diffusion":
            raise ValueError(f"noise was given, but the {config.variant} variant does not start from noise")
        if tuple(inputs.noise.shape) != expected:
            raise ValueError(f"noise has shape {tuple(inputs.noise.shape)}; expected {expected}")
    _check_ids(inputs, config)
    for name in ("pixel_values", "proprio", "noise"):
        value = getattr(inputs, name)
        if value is not None and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds numbers that are not finite")


def _check_ids(inputs: PolicyInputs, config: OpenVLAConfig) -> None:
    ids = inputs.input_ids
    if ids.is_floating_point():
        raise ValueError(f"input_ids are {ids.dtype}; they must be integers")
    if not ids.numel():
        raise ValueError(f"input_ids have shape {tuple(ids.shape)}; a query holds at least one sample and one token")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= config.llm.vocab_size:
        last = config.llm.vocab_size - 1
        raise ValueError(f"input_ids range from {low} to {high}; this policy's vocabulary has the ids 0 to {last}")


def _check_pixels(inputs: PolicyInputs, config: OpenVLAConfig) -> None:
    pixels = inputs.pixel_values
    if not pixels.is_floating_point():
        raise ValueError(
            f"pixel_values are {pixels.dtype}; they must be floating point, normalised by the processor "
            "(policy.prepare takes raw uint8 images)"
        )
    channels, *size = pixels.shape[1:]
    images = config.num_images
    expected = f"(batch, {CHANNELS_PER_IMAGE} * {images or 'images'}, {config.image_size}, {config.image_size})"
    wrong_count = channels % CHANNELS_PER_IMAGE or not channels or (images and channels != CHANNELS_PER_IMAGE * images)
    if wrong_count or size != [config.image_size, config.image_size]:
        raise ValueError(
            f"pixel_values have shape {tuple(pixels.shape)}; this policy takes {expected}, with "
            f"{CHANNELS_PER_IMAGE} channels for each camera"
        )


def _check_proprio(inputs: PolicyInputs, config: OpenVLAConfig) -> None:
    if not config.use_proprio:
        if inputs.proprio is not None:
            raise ValueError("proprio was given, but this policy has no proprio projector: pass proprio=None")
        return
    if inputs.proprio is None:
        raise ValueError(
            f"proprio is missing: this policy needs the raw robot state, (batch, {config.proprio_dim}); "
            "load it with use_proprio=False to run without"
        )
    if tuple(inputs.proprio.shape[1:]) != (config.proprio_dim,):
        raise ValueError(
            f"proprio has shape {tuple(inputs.proprio.shape)}; this policy takes (batch, {config.proprio_dim})"
        )
