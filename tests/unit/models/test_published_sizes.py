"""The real 7B graph, on the meta device."""

import re

import torch

from mist_interp.models.checkpoint import build_without_memory
from mist_interp.models.config import OpenVLAConfig

# Shapes of the published checkpoints; N stands for the block or layer number.
SHAPES = {
    "vision_backbone.featurizer.cls_token": (1, 1, 1024),
    "vision_backbone.featurizer.reg_token": (1, 4, 1024),
    "vision_backbone.featurizer.pos_embed": (1, 256, 1024),
    "vision_backbone.featurizer.patch_embed.proj.weight": (1024, 3, 14, 14),
    "vision_backbone.featurizer.blocks.N.attn.qkv.weight": (3072, 1024),
    "vision_backbone.featurizer.blocks.N.ls2.scale_factor": (1024,),
    "vision_backbone.featurizer.blocks.N.mlp.fc1.bias": (4096,),
    "vision_backbone.featurizer.norm.weight": (1024,),
    "vision_backbone.fused_featurizer.pos_embed": (1, 256, 1152),
    "vision_backbone.fused_featurizer.blocks.N.mlp.fc1.weight": (4304, 1152),
    "vision_backbone.fused_featurizer.attn_pool.latent": (1, 1, 1152),
    "vision_backbone.fused_featurizer.attn_pool.kv.weight": (2304, 1152),
    "vision_backbone.fused_featurizer.attn_pool.mlp.fc2.weight": (1152, 4304),
    "projector.fc1.weight": (8704, 2176),
    "projector.fc2.weight": (4096, 8704),
    "projector.fc3.bias": (4096,),
    "language_model.model.embed_tokens.weight": (32064, 4096),
    "language_model.model.layers.N.self_attn.q_proj.weight": (4096, 4096),
    "language_model.model.layers.N.mlp.down_proj.weight": (4096, 11008),
    "language_model.model.layers.N.post_attention_layernorm.weight": (4096,),
    "language_model.model.norm.weight": (4096,),
    "language_model.lm_head.weight": (32064, 4096),
}


def shapes(policy):
    return {name: tuple(value.shape) for name, value in policy.state_dict().items()}


def test_main_model():
    found = shapes(build_without_memory(OpenVLAConfig(variant="discrete", use_proprio=False)))
    assert len(found) == 982
    assert sum(torch.Size(shape).numel() for shape in found.values()) == 7_541_237_184
    by_pattern = {re.sub(r"\.\d+\.", ".N.", name): shape for name, shape in found.items()}
    assert {name: by_pattern[name] for name in SHAPES} == SHAPES
    towers = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
    assert [sum(name.startswith(tower) for name in found) for tower in towers] == [343, 342]


def test_head_and_projectors():
    policy = build_without_memory(OpenVLAConfig())
    extra = {name: shape for name, shape in shapes(policy).items() if name.startswith(("action_head", "proprio_"))}
    assert sum(torch.Size(extra[name]).numel() for name in extra if "action_head" in name) == 151_117_831
    assert extra["action_head.model.layer_norm1.weight"] == (28672,)
    assert extra["action_head.model.mlp_resnet_blocks.1.ffn.1.weight"] == (4096, 4096)
    assert extra["proprio_projector.fc1.weight"] == (4096, 8)
    assert len(shapes(policy)) == 982 + len(extra)


def test_diffusion_head_has_the_same_tree():
    policy = build_without_memory(OpenVLAConfig(variant="diffusion"))
    names = {name for name in shapes(policy) if name.startswith("action_head.")}
    assert "action_head.noise_predictor.mlp_resnet.mlp_resnet_blocks.0.ffn.0.weight" in names and len(names) == 16
    assert shapes(policy)["noisy_action_projector.fc1.weight"] == (4096, 1)


def test_unused_weights_are_named():
    unused = build_without_memory(OpenVLAConfig()).unused_weights
    assert "vision_backbone.featurizer.blocks.23.attn.qkv.weight" in unused
    assert "vision_backbone.fused_featurizer.blocks.26.norm1.bias" in unused
    assert "vision_backbone.fused_featurizer.attn_pool.latent" in unused and "language_model.lm_head.weight" in unused
    assert not any(".blocks.22." in name and "fused" not in name for name in unused)
