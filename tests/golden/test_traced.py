"""Do the named activations equal what was recorded from the original code, through the public API alone?"""

import pytest
import torch
from golden_fixtures import DATA, golden, inputs

from mist_interp import HookedVLA

SITES = ["hook_embed", "resid_post", "ln_final.hook_normalized", "projector.hook_out"]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def attention(request):
    return request.param


@pytest.fixture(scope="module")
def load(attention):
    loaded = {}

    def get(name):
        if name not in loaded:
            key = golden(name).case(0)["unnorm_key"]
            loaded[name] = HookedVLA.from_pretrained(
                DATA / name, dtype=torch.float32, attn_implementation=attention, unnorm_key=key
            )
        return loaded[name]

    return get


@pytest.mark.parametrize("name", ["oft_l1", "openvla_base"])
@pytest.mark.parametrize("case", [0, 1, 2])
def test_recorded_activations(load, name, case):
    vla, fixture = load(name), golden(name)
    out, cache = vla.run_with_cache(inputs(name, case), names=SITES)
    close, states = fixture.tolerance("features_embeddings_actions"), fixture.tolerance("hidden_states")
    layers = vla.cfg.n_layers
    wanted = {
        "hook_embed": ("multimodal_embeddings", close),
        "projector.hook_out": ("projected_patches", close),
        # The original lists the input of each block, and the final state after its norm.
        **{("resid_post", i): (f"hidden_states.{i + 1}", states) for i in range(layers - 1)},
        "ln_final.hook_normalized": (f"hidden_states.{layers}", states),
    }
    for key, (array, tolerance) in wanted.items():
        if f"case{case}.{array}" not in fixture.arrays:
            assert case > 0, f"case 0 was recorded in full, {array} included"
            continue
        recorded = fixture[f"case{case}.{array}"]
        assert cache[key].shape == recorded.shape, key
        torch.testing.assert_close(cache[key].values, recorded, atol=tolerance, rtol=0, msg=f"{key}: {array}")
    torch.testing.assert_close(
        out.normalized[0].double(), fixture[f"case{case}.normalized_actions"].double().reshape(out.normalized[0].shape),
        atol=close, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize("case", [0, 1, 2])
def test_the_layout_is_the_recorded_index_arithmetic(load, case):
    facts, layout = golden("oft_l1").case(case), load("oft_l1").layout(inputs("oft_l1", case))
    assert layout.length == facts["sequence_length"] and layout.n_extra == facts["P"]
    assert layout.select("action_read").index[0, 0] == facts["action_read_first"]
    assert layout.select("action_slot").index[0, 0] == facts["action_slot_first"]
    assert layout.select("stop").index.tolist() == [[facts["stop_position"]]]


@pytest.mark.parametrize("case", [0, 1, 2])
def test_read_out_and_state_by_name(load, case):
    fixture = golden("oft_l1")
    _, cache = load("oft_l1").run_with_cache(
        inputs("oft_l1", case), names=["ln_final.normalized", "embed", "proprio.hook_in"]
    )
    for array, values in (
        ("action_hidden_states", cache["ln_final.hook_normalized"].at("action_read")),
        ("proprio_embedding", cache["embed"].proprio),
        ("proprio_normalized", cache["proprio.in"][0, 0]),
    ):
        if f"case{case}.{array}" in fixture.arrays:
            recorded = fixture[f"case{case}.{array}"].to(values)
            torch.testing.assert_close(values, recorded, atol=1e-4, rtol=0, msg=array)


@pytest.mark.parametrize("name", ["oft_l1", "openvla_base"])
def test_vision_features_are_the_last_listed_blocks(load, name):
    """Upstream reads each tower at its second-to-last block, without class and register tokens."""
    fixture = golden(name)
    _, cache = load(name).run_with_cache(inputs(name, 0), names=[("dino.resid_post", -1), ("siglip.resid_post", -1)])
    for tower in ("dino", "siglip"):
        patches = cache[f"{tower}.resid_post", -1].vision.flatten(2, 3)  # (batch, camera, patch, d)
        for camera in range(patches.shape[1]):
            recorded = fixture[f"case0.{tower}_features.{camera}"]
            torch.testing.assert_close(patches[:, camera], recorded, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["oft_l1", "openvla_base"])
def test_checks_hold(load, name):
    assert "bit-identical" in str(load(name).check(inputs(name, 0)))


@pytest.mark.parametrize("name", ["oft_l1", "openvla_base"])
def test_the_terms_of_the_stream_sum_to_the_recorded_states(load, name):
    vla, fixture = load(name), golden(name)
    names = ["embed", "resid_post", "attn_out", "mlp_out", "result", "ln_final.*"]
    _, cache = vla.run_with_cache(inputs(name, 0), names=names)
    norm, tolerance = vla.module("ln_final"), fixture.tolerance("hidden_states")
    recorded = fixture[f"case0.hidden_states.{vla.cfg.n_layers}"]
    for stack in (cache.decompose_resid(), cache.get_full_resid_decomposition()):
        total = stack.frozen_norm(norm, cache["ln_final.scale"]).total()
        torch.testing.assert_close(total, recorded, atol=tolerance, rtol=0)
    for layer in range(1, vla.cfg.n_layers):
        recorded = fixture[f"case0.hidden_states.{layer}"]
        torch.testing.assert_close(cache.decompose_resid(layer).total(), recorded, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["oft_l1", "openvla_base"])
def test_edits_that_do_nothing_leave_the_recorded_action(load, name):
    vla = load(name)
    plain = vla(inputs(name, 0))
    assert torch.equal(plain.values, vla.run_with_hooks(inputs(name, 0), [("*", lambda x, site: x.clone())]).values)
