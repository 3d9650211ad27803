import pytest

from mist_interp.core.errors import UnknownName
from mist_interp.models.config import OpenVLAConfig, TowerSize, tower_size
from mist_interp.models.small import small_config


def test_sizes_come_from_the_timm_ids():
    dino, siglip = OpenVLAConfig().towers
    assert (dino.width, dino.depth, dino.heads, dino.registers, dino.layer_scale) == (1024, 24, 16, 4, True)
    assert (siglip.width, siglip.depth, siglip.heads, int(siglip.width * siglip.mlp_ratio)) == (1152, 27, 16, 4304)


def test_overrides_change_single_sizes():
    assert tower_size("vit_so400m_patch14_siglip_224", {"depth": 3}).width == 1152
    config = small_config(dino=(48, 4, 3), siglip=(54, 3, 3))
    assert config.towers[0] == TowerSize(48, 4, 3, registers=4, layer_scale=True)


def test_llama_gets_the_published_defaults():
    llm = OpenVLAConfig(text_config={"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000}).llm
    assert (llm.hidden_size, llm.num_hidden_layers, llm.rms_norm_eps, llm.max_position_embeddings) == (
        4096,
        32,
        1e-6,
        2048,
    )
    assert llm.rope_parameters["rope_theta"] == 10000.0 and not llm.tie_word_embeddings


@pytest.mark.parametrize(("variant", "causal"), [("base", True), ("l1", False), ("discrete", False)])
def test_the_variant_sets_the_attention_regime(variant, causal):
    assert OpenVLAConfig(variant=variant).llm.is_causal is causal


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"variant": "l2"}, UnknownName, "did you mean 'l1'"),
        ({"timm_model_ids": ["vit_large", "vit_so400m_patch14_siglip_224"]}, UnknownName, "unknown vision tower"),
        ({"vision_overrides": {"overrides": [{"width": 3}, {}]}}, UnknownName, "unknown size of a vision tower"),
        ({"vision_overrides": {"overrides": [{}]}}, ValueError, "expected two vision towers"),
        ({"use_fused_vision_backbone": False}, ValueError, "two vision towers"),
        ({"image_sizes": [224, 384]}, ValueError, "same square image"),
        ({"bounds": "sigma"}, UnknownName, "q99"),
        ({"variant": "base", "film": True}, ValueError, "film"),
    ],
)
def test_wrong_configurations_are_refused(fields, error, message):
    with pytest.raises(error, match=message):
        _ = OpenVLAConfig(**fields).towers
