"""Which sizes and which variant does a policy have?

Published OpenVLA folders carry a `config.json` that names the vision towers (timm ids) and leaves nearly everything
else to defaults. Small models of the same graph write the sizes of their towers into `vision_overrides`. What the
published file does not say at all (the action decoding, how many cameras, the chunk length) stands in the fields of
the second half; they are read off the folder when it is loaded, see `mist_interp.models.variants`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transformers import LlamaConfig, PretrainedConfig
from transformers.configuration_utils import SubConfigSpec

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.errors import UnknownName

Variant = Literal["l1", "diffusion", "discrete", "base"]
VARIANTS: dict[str, str] = {
    "l1": "all actions at once from hidden states, regression head",
    "diffusion": "all actions at once, denoised in several passes",
    "discrete": "all actions at once, as tokens",
    "base": "one token after the other, causal attention",
}


@dataclass(frozen=True)
class TowerSize:
    """The shape of one vision transformer.

    Attributes:
        width: size of a token.
        depth: number of blocks, the unused last one included.
        heads: attention heads.
        mlp_ratio: hidden size of the MLP is ``int(width * mlp_ratio)``.
        patch: side of a patch in pixels.
        registers: register tokens; a tower with registers also has a class token.
        layer_scale: whether each branch ends in a learnt scale per channel.
        attention_pool: whether the (never used) pooling head of SigLIP is part of the checkpoint.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    patch: int = 14
    registers: int = 0
    layer_scale: bool = False
    attention_pool: bool = False


TOWERS: dict[str, TowerSize] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": TowerSize(1024, 24, 16, registers=4, layer_scale=True),
    "vit_so400m_patch14_siglip_224": TowerSize(1152, 27, 16, mlp_ratio=3.7362, attention_pool=True),
}
OVERRIDES = {"embed_dim": "width", "depth": "depth", "num_heads": "heads", "mlp_ratio": "mlp_ratio", "patch": "patch"}


class OpenVLAConfig(PretrainedConfig):
    """The published configuration, plus what it leaves unsaid.

    The first half are the published fields. In the second half:

    Attributes:
        variant: how actions are decoded, one of `VARIANTS`.
        film: whether the language modulates every block of both towers.
        use_proprio: whether the robot state enters as one token.
        num_images: cameras per query; None accepts any number.
        chunk_size: actions per query (1 for the base variant).
        action_dim: numbers per action.
        proprio_dim: numbers of the robot state.
        bounds: which statistics map actions to [-1, 1]: the quantiles q01/q99, or min/max.
        lone_space_token_id: the token that every prompt must end in.
        placeholder_token_id: written where actions are read in parallel; its embedding is zeroed.
        stop_token_id: closes the sequence.
        diffusion_train_steps: length of the noise schedule.
        diffusion_steps: passes of one query.
    """

    model_type = "openvla"
    sub_configs_defaults = {"text_config": SubConfigSpec(LlamaConfig)}  # noqa: RUF012

    text_config: LlamaConfig | dict[str, Any] | None = None
    vision_backbone_id: str = "dinosiglip-vit-so-224px"
    llm_backbone_id: str = "llama2-7b-pure"
    arch_specifier: str = "no-align+fused-gelu-mlp"
    use_fused_vision_backbone: bool | None = True
    image_resize_strategy: str = "resize-naive"
    image_sizes: list[int] | tuple[int, ...] = (224, 224)
    timm_model_ids: list[str] | tuple[str, ...] = tuple(TOWERS)
    vision_overrides: dict[str, Any] | None = None
    pad_to_multiple_of: int = 64
    pad_token_id: int | None = 32000
    n_action_bins: int = 256
    norm_stats: dict[str, Any] | None = None

    variant: str = "l1"
    film: bool = False
    use_proprio: bool = True
    num_images: int | None = None
    chunk_size: int = 8
    action_dim: int = 7
    proprio_dim: int = 8
    bounds: str = "q99"
    lone_space_token_id: int = 29871
    placeholder_token_id: int = 1
    stop_token_id: int = 2
    diffusion_train_steps: int = 50
    diffusion_steps: int = 50

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            self.text_config = {"vocab_size": 32064, "pad_token_id": self.pad_token_id, **self.text_config}
        elif self.text_config is None:
            self.text_config = {"vocab_size": 32064, "pad_token_id": self.pad_token_id}
        super().__post_init__(**kwargs)
        if self.variant not in VARIANTS:
            raise UnknownName("variant", self.variant, VARIANTS)
        if self.bounds not in ("q99", "minmax"):
            raise UnknownName("kind of action bounds", self.bounds, ("q99", "minmax"))
        if self.film and self.variant == "base":
            raise ValueError("film is True, but the base variant has no language modulation of its vision towers")
        if not self.use_fused_vision_backbone:
            raise ValueError(
                f"use_fused_vision_backbone is {self.use_fused_vision_backbone}: only models with two vision towers "
                "(DINOv2 and SigLIP) are supported"
            )
        if len(self.image_sizes) != 2 or len(set(self.image_sizes)) != 1:
            raise ValueError(f"image_sizes is {list(self.image_sizes)}: both towers must see the same square image")
        # The attention regime is part of the variant; Llama itself would silently stay causal.
        self.llm.is_causal = self.variant == "base"

    @property
    def llm(self) -> LlamaConfig:
        """The language model's own configuration."""
        assert isinstance(self.text_config, LlamaConfig)
        return self.text_config

    @property
    def towers(self) -> tuple[TowerSize, TowerSize]:
        """Sizes of the DINOv2 and the SigLIP tower, in this order."""
        if not isinstance(self.vision_overrides, dict | None):
            raise ValueError(f"vision_overrides must be a JSON object, not a {type(self.vision_overrides).__name__}")
        overrides = (self.vision_overrides or {}).get("overrides", [{}, {}])
        if len(overrides) != 2 or len(self.timm_model_ids) != 2:
            raise ValueError(
                f"expected two vision towers, got {len(self.timm_model_ids)} timm_model_ids and "
                f"{len(overrides)} vision_overrides"
            )
        first, second = (tower_size(name, change) for name, change in zip(self.timm_model_ids, overrides, strict=True))
        return first, second

    @property
    def image_size(self) -> int:
        """Side of the square model image in pixels."""
        return self.image_sizes[0]

    @property
    def patches_per_image(self) -> int:
        """Patch tokens of one camera."""
        return (self.image_size // self.towers[0].patch) ** 2

    @property
    def action_slots(self) -> int:
        """Action tokens of one query: chunk times dimension."""
        return self.chunk_size * self.action_dim

    @property
    def action_names(self) -> tuple[str, ...]:
        """Meaning of the numbers of an action; d0, d1, ... for robots that do not have seven."""
        return ACTION_NAMES if self.action_dim == len(ACTION_NAMES) else tuple(f"d{i}" for i in range(self.action_dim))

    @property
    def bin_vocab_size(self) -> int:
        """Action bins are the last ids below this one; what follows is padding of the embedding table."""
        return self.llm.vocab_size - self.pad_to_multiple_of


def tower_size(timm_id: str, overrides: dict[str, Any] | None = None) -> TowerSize:
    """Look up a vision tower by its timm id and change some of its sizes.

    Args:
        timm_id: one of `TOWERS`; a tag after the last dot may differ.
        overrides: embed_dim, depth, num_heads, mlp_ratio, patch.

    Raises:
        UnknownName: for another tower, or another override.
    """
    stems = {name.split(".")[0]: size for name, size in TOWERS.items()}
    if (stem := timm_id.split(".")[0]) not in stems:
        raise UnknownName("vision tower", timm_id, TOWERS)
    size = dict(vars(stems[stem]))
    for name, value in (overrides or {}).items():
        if name not in OVERRIDES:
            raise UnknownName("size of a vision tower", name, OVERRIDES)
        size[OVERRIDES[name]] = value
    return TowerSize(**size)
