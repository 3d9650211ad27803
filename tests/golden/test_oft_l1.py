"""OpenVLA-OFT with the regression head, against the original code."""

import pytest
import torch
from golden_fixtures import Recorder, golden, inputs, policy

from mist_interp.core.inputs import PolicyInputs
from mist_interp.models.normalization import normalize
from mist_interp.models.sequence import append_slots, close_prompt

NAME = "oft_l1"
TOWERS = {"dino_features": "featurizer", "siglip_features": "fused_featurizer"}
CASES = [0, 1, 2]
ATTENTION = ["sdpa", "eager"]


def assert_close(found, expected, tolerance):
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).abs().max().item()
    assert difference <= tolerance, f"max abs difference {difference:.2e} > {tolerance:.0e}"


def run(attention, index):
    net = policy(NAME, attention)
    layers = [f"language_model.model.layers.{i}" for i in range(net.config.llm.num_hidden_layers - 1)]
    outputs = [f"vision_backbone.{tower}" for tower in TOWERS.values()]
    outputs += ["projector", "proprio_projector", *layers, "language_model.model.norm"]
    with torch.no_grad(), Recorder(net, outputs, ["action_head"]) as record:
        return net(inputs(NAME, index)), record, [*layers, "language_model.model.norm"]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("index", CASES)
def test_every_stage(attention, index):
    fixture = golden(NAME)
    out, record, layers = run(attention, index)
    near, states = fixture.tolerance("features_embeddings_actions"), fixture.tolerance("hidden_states")
    for feature, tower in TOWERS.items():
        per_image = record[f"vision_backbone.{tower}"]
        for image, found in enumerate(per_image):
            assert_close(found[None], fixture[f"case{index}.{feature}.{image}"], near)
    assert_close(record["projector"], fixture[f"case{index}.projected_patches"], near)
    assert_close(record["proprio_projector"][:, 0], fixture[f"case{index}.proprio_embedding"], near)
    for number, layer in enumerate(layers, start=1):
        assert_close(record[layer], fixture[f"case{index}.hidden_states.{number}"], states)
    assert_close(record["action_head"], fixture[f"case{index}.action_hidden_states"], states)
    assert_close(out.normalized[0], fixture[f"case{index}.normalized_actions"], near)
    assert_close(out.values[0], fixture[f"case{index}.actions"], near)
    assert out.normalized.dtype == torch.float32 and out.values.dtype == torch.float64


@pytest.mark.parametrize("index", CASES)
def test_sequence_before_the_language_model(index):
    fixture = golden(NAME)
    net = policy(NAME, "sdpa")
    with torch.no_grad(), Recorder(net, [], ["language_model.model"]) as record:
        net(inputs(NAME, index))
    embeddings = record["language_model.model"]
    assert_close(embeddings, fixture[f"case{index}.multimodal_embeddings"], 2e-5)
    text = append_slots(close_prompt(*ids_and_mask(index), 29871), 56, 1, 2)
    assert torch.equal(text.ids, fixture[f"case{index}.full_input_ids"])
    assert torch.equal(text.attention.long(), fixture[f"case{index}.full_attention_mask"])
    assert (embeddings[0, fixture.case(index)["action_slot_first"] :][:56] == 0).all()


@pytest.mark.parametrize("index", CASES)
def test_layout_matches_the_recorded_positions(index):
    fixture = golden(NAME)
    layout = policy(NAME, "sdpa").layout(inputs(NAME, index))
    case = fixture.case(index)
    assert layout.prompt_lengths == (case["L"],)
    assert layout.length == case["sequence_length"]


@pytest.mark.parametrize("index", CASES)
def test_robot_state(index):
    fixture = golden(NAME)
    found = normalize(fixture[f"case{index}.proprio_raw"], policy(NAME, "sdpa").bounds("proprio"))
    assert_close(found, fixture[f"case{index}.proprio_normalized"], 1e-12)


@pytest.mark.parametrize("attention", ATTENTION)
def test_attention_is_bidirectional(attention):
    fixture = golden(NAME)
    llm = policy(NAME, attention).language_model.model
    base = fixture["case0.multimodal_embeddings"].clone()
    perturbed = base.clone()
    perturbed[:, -1] = fixture["evidence.perturbed_last_embedding"]
    for embeddings, suffix in ((base, "base"), (perturbed, "perturbed")):
        with torch.no_grad():
            output = llm(inputs_embeds=embeddings, output_hidden_states=True, use_cache=False)
        first = torch.stack([state[0, 0] for state in output.hidden_states])
        assert_close(first, fixture[f"evidence.pos0_hidden_{suffix}"], 1e-4)
    assert_close(output.last_hidden_state, fixture["evidence.last_hidden_perturbed"], 1e-4)


@pytest.mark.parametrize("attention", ATTENTION)
def test_differs_from_the_causal_counterexample(attention):
    fixture = golden(NAME)
    out, record, _ = run(attention, 0)
    wrong = fixture["causal_counterexample.normalized_actions"]
    assert (out.normalized[0] - wrong).abs().max() > 0.1
    assert (record["action_head"] - fixture["causal_counterexample.action_hidden_states"]).abs().max() > 0.1


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_batch_of_all_cases_equals_each_alone(attention):
    net = policy(NAME, attention)
    batch = PolicyInputs.cat([inputs(NAME, index) for index in CASES], pad_id=32000)
    with torch.no_grad():
        out = net(batch)
    for index in CASES:
        assert_close(out.normalized[index], golden(NAME)[f"case{index}.normalized_actions"], 2e-5)


def test_bfloat16_stays_near():
    from mist_interp.models import load_policy

    net = load_policy(golden(NAME).folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        out = net(inputs(NAME, 0))
    assert_close(out.normalized[0], golden(NAME)["case0.normalized_actions"], 5e-2)


def ids_and_mask(index):
    return golden(NAME)[f"case{index}.input_ids"], golden(NAME)[f"case{index}.attention_mask"]
