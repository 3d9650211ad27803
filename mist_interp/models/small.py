"""Which configuration has a small policy?

The graph, the names and the special-token structure of the published models, with every size free. The defaults give
about four million parameters: 112-pixel pictures, 64 patches for each of two cameras, chunks of eight actions.
"""

from __future__ import annotations

from typing import Any

from mist_interp.models.config import OpenVLAConfig
from mist_interp.models.tokenizer import SmallVocabulary, word_tokenizer

Tower = tuple[int, int, int]


def small_config(
    *,
    dino: Tower = (128, 5, 4),
    siglip: Tower = (128, 5, 4),
    hidden: int = 192,
    layers: int = 6,
    heads: int = 6,
    ffn: int = 512,
    image_size: int = 112,
    patch: int = 14,
    mlp_ratio: float = 4.0,
    vocabulary: SmallVocabulary | None = None,
    norm_stats: dict[str, Any] | None = None,
    **fields: Any,
) -> OpenVLAConfig:
    """Configuration of a policy of any size.

    Args:
        dino: width, blocks (the last one never runs) and heads of the DINOv2 tower.
        siglip: the same of the SigLIP tower.
        hidden: width of the language model and of the action head.
        layers: decoder layers.
        heads: attention heads of the language model.
        ffn: hidden size of the language model's MLPs.
        image_size: side of the square model image in pixels.
        patch: side of a patch in pixels.
        mlp_ratio: hidden size of the towers' MLPs relative to their width.
        vocabulary: where the special ids are; default: of `word_tokenizer()`.
        norm_stats: statistics by dataset; default: one dataset "identity" whose bounds are -1 and 1.
        **fields: any other field of `OpenVLAConfig`, for example variant, num_images, use_proprio, chunk_size.
    """
    vocabulary = vocabulary or word_tokenizer()[1]
    fields = {"num_images": 1 if fields.get("variant") == "base" else 2, **fields}
    if fields.get("variant") == "base":
        fields = {"chunk_size": 1, "use_proprio": False, **fields}
    if norm_stats is None:
        norm_stats = identity_statistics(fields.get("action_dim", 7), fields.get("proprio_dim", 8))
    names = ("embed_dim", "depth", "num_heads")
    overrides = [
        {**dict(zip(names, tower, strict=True)), "mlp_ratio": mlp_ratio, "patch": patch} for tower in (dino, siglip)
    ]
    return OpenVLAConfig(
        text_config={
            "vocab_size": vocabulary.table_size,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": ffn,
            "pad_token_id": vocabulary.bin_vocab_size,
        },
        vision_overrides={"overrides": overrides},
        image_sizes=[image_size, image_size],
        pad_token_id=vocabulary.bin_vocab_size,
        pad_to_multiple_of=vocabulary.padding,
        lone_space_token_id=vocabulary.lone_space,
        norm_stats=norm_stats,
        **fields,
    )


def identity_statistics(action_dim: int = 7, proprio_dim: int = 8) -> dict[str, Any]:
    """Statistics of one made-up dataset, "identity", under which normalised and robot units are the same."""

    def part(count: int) -> dict[str, Any]:
        low, high = [-1.0] * count, [1.0] * count
        return {"q01": low, "q99": high, "min": low, "max": high, "mean": [0.0] * count, "std": [1.0] * count}

    action = {**part(action_dim), "mask": [True] * (action_dim - 1) + [False]}
    return {"identity": {"action": action, "proprio": part(proprio_dim), "num_transitions": 0, "num_trajectories": 0}}
