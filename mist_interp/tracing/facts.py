"""Which sizes and settings of a policy does an analysis need?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Facts:
    """Sizes and settings of one policy, read off its configuration.

    Attributes:
        model_id: where the weights came from.
        variant: how actions are decoded: "l1", "diffusion", "discrete" or "base".
        attention: the attention implementation, "eager" or "sdpa".
        unnorm_key: the dataset whose statistics turn actions into robot units.
        n_layers: blocks of the language model.
        d_model: width of its residual stream.
        n_heads: attention heads.
        n_kv_heads: key and value heads.
        d_head: width of one head.
        d_mlp: neurons per MLP.
        n_images: cameras that the policy expects, or None if it takes any number.
        patch_grid: (rows, cols) of patches per camera.
        chunk: action steps per query.
        action_names: meaning of the numbers of one action.
        use_proprio: whether the robot state enters as one token.
        norm_stats: by dataset, the statistics that map actions and robot state to the network's units.
    """

    model_id: str
    variant: str
    attention: str
    unnorm_key: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    n_images: int | None
    patch_grid: tuple[int, int]
    chunk: int
    action_names: tuple[str, ...]
    use_proprio: bool
    norm_stats: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def action_dim(self) -> int:
        """Numbers of one action."""
        return len(self.action_names)

    @staticmethod
    def of(policy: Any) -> Facts:
        """Facts of a policy as it is configured now."""
        config, llm = policy.config, policy.config.llm
        side = config.image_size // config.towers[0].patch
        return Facts(
            model_id=policy.model_id,
            variant=policy.variant,
            attention=llm._attn_implementation,
            unnorm_key=policy.unnorm_key,
            n_layers=llm.num_hidden_layers,
            d_model=llm.hidden_size,
            n_heads=llm.num_attention_heads,
            n_kv_heads=llm.num_key_value_heads,
            d_head=llm.head_dim,
            d_mlp=llm.intermediate_size,
            n_images=config.num_images,
            patch_grid=(side, side),
            chunk=config.chunk_size,
            action_names=tuple(config.action_names),
            use_proprio=config.use_proprio,
            norm_stats=config.norm_stats or {},
        )
