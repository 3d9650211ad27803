"""Small inputs for random policies."""

import numpy as np
import torch

from mist_interp.core.inputs import PolicyInputs

SHORT, LONG = (
    "open the top drawer",
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
)


def make_inputs(policy, instructions=(SHORT,), seed=0):
    config = policy.config
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for instruction in instructions:
        ids = torch.tensor([policy.processor.token_ids(instruction)])
        size = config.image_size
        parts.append(
            PolicyInputs(
                ids,
                torch.ones_like(ids),
                torch.randn(1, 6 * config.num_images, size, size, generator=generator),
                torch.randn(1, config.proprio_dim, generator=generator) if config.use_proprio else None,
                torch.randn(1, config.chunk_size, config.action_dim, generator=generator)
                if config.variant == "diffusion"
                else None,
            )
        )
    return PolicyInputs.cat(parts, pad_id=config.pad_token_id)


def observation(seed=0, size=64):
    pixels = np.random.default_rng(seed)
    return {
        "agentview_image": pixels.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "robot0_eye_in_hand_image": pixels.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "robot0_eef_pos": np.array([-0.2, 0.1, 1.1]),
        "robot0_eef_quat": np.array([0.6, 0.0, 0.0, 0.8]),
        "robot0_gripper_qpos": np.array([0.04, -0.04]),
    }
