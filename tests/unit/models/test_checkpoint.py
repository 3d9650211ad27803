import json
import re
import shutil

import pytest
import torch
from policy_builders import LONG, SHORT, make_inputs, observation
from safetensors.torch import load_file, save_file

from mist_interp.core.errors import UnknownName
from mist_interp.models import load_policy, random_policy, save_policy

SIZES = {"dino": (16, 3, 2), "siglip": (24, 3, 3), "hidden": 32, "layers": 2, "ffn": 48}
VARIANTS = [
    {"variant": "l1"},
    {"variant": "l1", "num_images": 1, "use_proprio": False},
    {"variant": "l1", "film": True},
    {"variant": "diffusion", "diffusion_steps": 5},
    {"variant": "discrete"},
    {"variant": "base"},
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A regression policy and its folder, in two weight files."""
    policy = random_policy(1, **SIZES)
    folder = save_policy(policy, tmp_path_factory.mktemp("saved") / "policy", torch.float32, max_file_bytes=200_000)
    assert len(list(folder.glob("model-*.safetensors"))) >= 2
    return policy, folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[1], tmp_path / "copy")


def act(policy, inputs):
    with torch.no_grad():
        return policy(inputs).values


def edit_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def component(folder, name):
    return next(folder.glob(f"{name}--*checkpoint.pt"))


@pytest.mark.parametrize("sizes", VARIANTS, ids=str)
def test_saving_and_loading_changes_nothing(sizes, tmp_path):
    policy = random_policy(2, **SIZES, **sizes)
    loaded = load_policy(save_policy(policy, tmp_path / "p", torch.float32), dtype="float32")
    inputs = make_inputs(policy, [SHORT, LONG])
    assert torch.equal(act(policy, inputs), act(loaded, inputs))
    assert loaded.variant == policy.variant and loaded.config.num_images == policy.config.num_images
    prepared = loaded.prepare(observation(), SHORT)
    assert torch.equal(prepared.pixel_values, policy.prepare(observation(), SHORT).pixel_values)
    assert torch.equal(prepared.input_ids, policy.prepare(observation(), SHORT).input_ids)
    assert not loaded.training and loaded.model_id.endswith("p")


@pytest.mark.parametrize("sizes", VARIANTS, ids=str)
def test_the_variant_is_read_off_the_files(sizes, tmp_path):
    """Without what this package adds to config.json, as in a published folder."""
    policy = random_policy(2, **SIZES, **sizes)
    folder = save_policy(policy, tmp_path / "p", torch.float32)
    ours = ("variant", "film", "use_proprio", "num_images", "chunk_size", "action_dim", "proprio_dim", "bounds")
    edit_json(folder / "config.json", lambda content: [content.pop(name) for name in ours])
    loaded = load_policy(folder, dtype="float32")
    assert loaded.variant == policy.variant, loaded.variant_evidence
    for name in ("film", "use_proprio", "chunk_size", "action_dim", "proprio_dim"):
        assert getattr(loaded.config, name) == getattr(policy.config, name)
    edit_json(folder / "config.json", lambda content: content.__setitem__("diffusion_steps", 5))
    inputs = make_inputs(policy, [SHORT])
    assert torch.equal(act(policy, inputs), act(load_policy(folder, dtype="float32"), inputs))


def test_a_folder_without_head_speaks_in_parallel_when_it_looks_like_oft(tmp_path):
    policy = random_policy(3, **SIZES, variant="discrete", use_proprio=False, num_images=1)
    folder = save_policy(policy, tmp_path / "p", torch.float32)
    edit_json(folder / "config.json", lambda content: [content.pop(name) for name in ("variant", "chunk_size")])
    assert load_policy(folder).variant == "base"
    assert load_policy(folder, variant="discrete").variant == "discrete"
    edit_json(folder / "config.json", lambda content: content.pop("num_images"))
    assert load_policy(folder, num_images=2).variant == "discrete"
    statistics = json.loads((folder / "dataset_statistics.json").read_text())
    (folder / "dataset_statistics.json").write_text(json.dumps({"libero_goal_no_noops": statistics["random"]}))
    assert load_policy(folder).variant == "discrete" and "no_noops" in load_policy(folder).variant_evidence
    (folder / "modeling_prismatic.py").write_text("def predict_action(): ...")
    assert load_policy(folder).variant == "base"
    (folder / "modeling_prismatic.py").write_text("from x import NUM_ACTIONS_CHUNK")
    assert load_policy(folder).variant == "discrete"


def test_published_names_and_types(saved):
    _, folder = saved
    head = torch.load(component(folder, "action_head"), weights_only=True)
    assert all(name.startswith("module.model.") for name in head)
    proprio = torch.load(component(folder, "proprio_projector"), weights_only=True)
    assert {value.dtype for value in proprio.values()} == {torch.float32}
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert not any(name.startswith(("action_head", "proprio_projector")) for name in index)
    for file in set(index.values()):
        assert set(load_file(folder / file)) == {name for name, home in index.items() if home == file}


def test_default_type_is_float32_for_small_models_and_bfloat16_on_disk(tmp_path):
    folder = save_policy(random_policy(4, **SIZES), tmp_path / "p")
    stored = load_file(folder / "model-00001-of-00001.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert load_policy(folder).dtype == torch.float32
    kept = load_policy(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in kept.parameters()} == {torch.bfloat16}
    assert kept.language_model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_attention_implementation_reaches_all_parts(saved):
    loaded = load_policy(saved[1], attn_implementation="eager")
    assert loaded.check().implementation == "eager"
    assert loaded.vision_backbone.featurizer.blocks[0].attn.config._attn_implementation == "eager"


def test_layer_scale_may_carry_timms_name(saved, copy):
    policy, _ = saved
    for file in copy.glob("model-*.safetensors"):
        tensors = {name.replace("scale_factor", "gamma"): value for name, value in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    inputs = make_inputs(policy)
    assert torch.equal(act(load_policy(copy), inputs), act(policy, inputs))


def test_adapters_of_a_film_backbone_are_folded(tmp_path):
    policy = random_policy(5, **SIZES, film=True)
    folder = save_policy(policy, tmp_path / "p", torch.float32)
    file = component(folder, "vision_backbone")
    weights = torch.load(file, weights_only=True)
    assert "vision_backbone.featurizer.blocks.0.block.attn.qkv.weight" in weights
    assert "vision_backbone.featurizer.blocks.0.scale.weight" in weights
    rank, generator, adapted = 32, torch.Generator().manual_seed(0), {}
    for name, value in weights.items():
        stem, _, kind = name.rpartition(".")
        linear = re.search(r"\.(qkv|proj|fc1|fc2|q|kv)$", stem) and "patch_embed" not in stem
        if linear and kind == "weight":
            down = torch.randn(rank, value.shape[1], generator=generator)
            up = torch.randn(value.shape[0], rank, generator=generator)
            adapted[f"{stem}.base_layer.weight"] = value - 0.5 * up @ down
            adapted[f"{stem}.lora_A.default.weight"], adapted[f"{stem}.lora_B.default.weight"] = down, up
        else:
            adapted[f"{stem}.base_layer.bias" if linear else name] = value
    assert len(adapted) > len(weights)
    torch.save(adapted, file)
    inputs = make_inputs(policy, [SHORT])
    torch.testing.assert_close(act(load_policy(folder), inputs), act(policy, inputs), atol=2e-5, rtol=0)
    (folder / "lora_adapter").mkdir()
    (folder / "lora_adapter" / "adapter_config.json").write_text('{"lora_alpha": 32}')
    assert (act(load_policy(folder), inputs) - act(policy, inputs)).abs().max() > 1e-3
    (folder / "lora_adapter" / "adapter_config.json").write_text('{"lora_alpha": 16}')
    torch.testing.assert_close(act(load_policy(folder), inputs), act(policy, inputs), atol=2e-5, rtol=0)
    up_name = next(name for name in adapted if "lora_B" in name)
    torch.save({name: value for name, value in adapted.items() if name != up_name}, file)
    with pytest.raises(ValueError, match="lacks its counterpart"):
        load_policy(folder)


def test_the_suite_name_is_enough_for_the_statistics(copy):
    file = copy / "dataset_statistics.json"
    entry = json.loads(file.read_text())["random"]
    file.write_text(json.dumps({"libero_spatial_no_noops": entry, "libero_goal_no_noops": entry}))
    assert load_policy(copy, unnorm_key="libero_spatial").unnorm_key == "libero_spatial_no_noops"
    with pytest.raises(UnknownName, match=r"'libero_spatal'; did you mean 'libero_spatial_no_noops'.*libero_goal"):
        load_policy(copy, unnorm_key="libero_spatal")
    with pytest.raises(ValueError, match="statistics of 2 datasets; say which with unnorm_key"):
        load_policy(copy)


def test_missing_weight_file(copy):
    lost = sorted(copy.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks 1 of the \d+ weight files.*{lost.name}"):
        load_policy(copy)


@pytest.mark.parametrize("kept", [0, 5, 1000, -10])
def test_truncated_weight_file(copy, kept):
    file = sorted(copy.glob("model-*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{file.name} \(\d+ bytes\) is truncated or damaged"):
        load_policy(copy)


@pytest.mark.parametrize("kept", [0, 100, -50])
def test_truncated_component(copy, kept):
    file = component(copy, "action_head")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"action_head--0_checkpoint.pt \(\d+ bytes\) is truncated, damaged"):
        load_policy(copy)


@pytest.mark.parametrize("name", ["config.json", "dataset_statistics.json", "model.safetensors.index.json"])
def test_truncated_json(copy, name):
    (copy / name).write_text((copy / name).read_text()[:40])
    with pytest.raises(ValueError, match=f"{name} is truncated or damaged"):
        load_policy(copy)


def test_missing_files(copy, tmp_path):
    (copy / "config.json").rename(copy / "konfig.json")
    with pytest.raises(FileNotFoundError, match=r"lacks config.json; it holds .*konfig.json"):
        load_policy(copy)
    (copy / "konfig.json").rename(copy / "config.json")
    (copy / "dataset_statistics.json").unlink()
    with pytest.raises(ValueError, match="no action statistics"):
        load_policy(copy)


def test_no_weights_at_all(copy):
    for file in copy.glob("model*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors.index.json nor model.safetensors"):
        load_policy(copy)


def test_unknown_head(copy):
    torch.save({"module.transformer.w": torch.zeros(2)}, component(copy, "action_head"))
    with pytest.raises(ValueError, match=r"unknown action head in .*'transformer.w'.*'model.'.*'noise_predictor.'"):
        load_policy(copy)


@pytest.mark.parametrize("name", ["action_head--9_checkpoint.pt.part", "action_head--9_checkpoint.safetensors"])
def test_a_head_under_another_name_is_not_overlooked(copy, name):
    component(copy, "action_head").rename(copy / name)
    with pytest.raises(ValueError, match=f"'{name}', which looks like its action_head"):
        load_policy(copy)


@pytest.mark.parametrize("name", ["action_head_checkpoint.pt", "my_action_head--latest_checkpoint.pt"])
def test_component_names_are_as_free_as_in_the_original(saved, copy, name):
    component(copy, "action_head").rename(copy / name)
    inputs = make_inputs(saved[0], [SHORT])
    assert torch.equal(act(load_policy(copy), inputs), act(saved[0], inputs))


def test_files_of_old_torch_are_read(saved, copy):
    file = component(copy, "action_head")
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    inputs = make_inputs(saved[0], [SHORT])
    assert torch.equal(act(load_policy(copy), inputs), act(saved[0], inputs))


def test_actions_per_query(copy):
    edit_json(copy / "config.json", lambda content: content.pop("chunk_size"))
    assert load_policy(copy).config.chunk_size == 8
    assert load_policy(copy, chunk_size=3).config.chunk_size == 3
    for wrong in (0, 2.0, "4"):
        with pytest.raises(ValueError, match="chunk_size is"):
            load_policy(copy, chunk_size=wrong)
    statistics = json.loads((copy / "dataset_statistics.json").read_text())
    (copy / "dataset_statistics.json").write_text(json.dumps({"bridge_orig": statistics["random"]}))
    assert load_policy(copy).config.chunk_size == 5


def test_a_guess_from_the_name_of_the_data_set_is_said_aloud(tmp_path, caplog):
    policy = random_policy(3, **SIZES, variant="discrete", use_proprio=False, num_images=1)
    folder = save_policy(policy, tmp_path / "p", torch.float32)
    load_policy(folder)
    assert not caplog.records
    edit_json(folder / "config.json", lambda content: [content.pop(name) for name in ("variant", "chunk_size")])
    load_policy(folder)
    assert "variant='discrete'" in caplog.text and "base OpenVLA" in caplog.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("preprocessor_config.json", "{", "preprocessor_config.json is truncated"),
        ("preprocessor_config.json", '{"stds": [[1, 1, 1], [1, 1, 1]]}', "'means' as three numbers"),
        ("tokenizer.json", '{"version": "1.0", "mod', "tokenizer.json is truncated"),
        ("model.safetensors.index.json", '{"weight_map": ["a"]}', "must hold a weight_map"),
    ],
)
def test_damaged_texts_name_their_file(copy, file, content, message):
    (copy / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_policy(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry["action"].pop("q01"), "action statistics of 'random' cannot be used.*'q01'"),
        (lambda entry: entry.pop("proprio"), "'random' lack 'proprio'"),
        (lambda entry: [entry["action"][key].append(1.0) for key in ("q01", "q99")], "cannot be used.*mask 7"),
        (
            lambda entry: [values.append(1.0) for values in entry["action"].values()],
            "of 8 numbers; the network has 7",
        ),
    ],
)
def test_statistics_must_fit_the_network(copy, change, message):
    edit_json(copy / "dataset_statistics.json", lambda content: change(content["random"]))
    with pytest.raises(ValueError, match=message):
        load_policy(copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.int64}, "unknown dtype torch.int64"),
        ({"num_images": "2"}, "num_images is '2'"),
        ({"device": "foo"}, "device 'foo' cannot be used here.*'cpu'"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
    ],
)
def test_wrong_options_are_refused_in_words(copy, options, message):
    with pytest.raises(ValueError, match=message):
        load_policy(copy, **options)


def test_another_kind_of_model(copy):
    edit_json(copy / "config.json", lambda content: content.update(model_type="llava"))
    with pytest.raises(ValueError, match="describes a 'llava' model"):
        load_policy(copy)
    edit_json(copy / "config.json", lambda content: content.update(model_type="openvla", vision_overrides=[{}]))
    with pytest.raises(ValueError, match="vision_overrides must be a JSON object"):
        load_policy(copy)


def test_the_commit_of_a_repository_is_known(copy, tmp_path):
    snapshot = tmp_path / "snapshots" / "0123abc"
    shutil.copytree(copy, snapshot)
    assert load_policy(snapshot).revision == "0123abc" and load_policy(copy).revision is None
    with pytest.raises(ValueError, match=r"revision='v2' was given.*is a folder"):
        load_policy(copy, revision="v2")


def test_a_revision_is_asked_for_at_the_hub(monkeypatch, saved, tmp_path):
    asked = []

    def download(name, **options):
        asked.append((name, options["revision"]))
        return saved[1]

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    load_policy("owner/policy", revision="v2")
    load_policy("owner/policy")
    assert asked == [("owner/policy", "v2"), ("owner/policy", None)]


def test_stated_and_found_variants_must_agree(copy):
    with pytest.raises(ValueError, match="'discrete' was asked for, but the weights of the action head"):
        load_policy(copy, variant="discrete")
    component(copy, "action_head").unlink()
    with pytest.raises(ValueError, match=r"'l1' \(from config.json\) needs a file action_head"):
        load_policy(copy)
    with pytest.raises(UnknownName, match="did you mean 'discrete'"):
        load_policy(copy, variant="discreet")


def test_two_heads(copy):
    shutil.copy(component(copy, "action_head"), copy / "action_head--9_checkpoint.pt")
    with pytest.raises(ValueError, match="2 files for action_head"):
        load_policy(copy)


def test_proprio_without_projector(copy):
    assert load_policy(copy, use_proprio=False).config.use_proprio is False
    component(copy, "proprio_projector").unlink()
    with pytest.raises(ValueError, match="use_proprio=True needs a file proprio_projector"):
        load_policy(copy)
    assert load_policy(copy, use_proprio=False).config.use_proprio is False


def change_weights(folder, change):
    file = sorted(folder.glob("model-*.safetensors"))[0]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("vision_backbone.featurizer.norm.bias"), "1 weights are missing: 'vision_back.*norm.bias'"),
        (lambda w: w.__setitem__("adapter.weight", torch.zeros(2)), "1 weights have no place: 'adapter.weight'"),
        (
            lambda w: w.__setitem__("vision_backbone.featurizer.norm.bias", torch.zeros(17)),
            r"another shape: .*norm.bias \(17,\) instead of \(16,\)",
        ),
    ],
)
def test_names_and_shapes_are_compared_strictly(copy, change, message):
    change_weights(copy, change)
    with pytest.raises(ValueError, match=message):
        load_policy(copy)


def test_unknown_policies(tmp_path):
    with pytest.raises(UnknownName, match=r"unknown policy.*'minni'; did you mean 'mini'"):
        load_policy("minni")
    with pytest.raises(UnknownName, match="no such folder"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(UnknownName, match="did you mean 'bfloat16'"):
        load_policy(tmp_path, dtype="bfloat")
    with pytest.raises(UnknownName, match="did you mean 'eager'"):
        load_policy(tmp_path, attn_implementation="eagre")


def test_wrong_number_of_images(copy):
    with pytest.raises(ValueError, match="num_images is 0"):
        load_policy(copy, num_images=0)
    assert load_policy(copy, num_images=1).config.num_images == 1


def test_another_save_in_the_same_folder_is_refused(copy, saved):
    save_policy(saved[0], copy, torch.float32, max_file_bytes=200_000)
    with pytest.raises(FileExistsError, match="already holds other weights"):
        save_policy(saved[0], copy, torch.float32, step=5)
