"""Base OpenVLA (causal, one token after the other), against the original code."""

import pytest
import torch
from golden_fixtures import Recorder, golden, inputs, policy

from mist_interp.core.inputs import PolicyInputs
from mist_interp.models.sequence import close_prompt

NAME = "openvla_base"
TOWERS = {"dino_features": "featurizer", "siglip_features": "fused_featurizer"}
CASES = [0, 1, 2]
ATTENTION = ["sdpa", "eager"]


def assert_close(found, expected, tolerance):
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).abs().max().item()
    assert difference <= tolerance, f"max abs difference {difference:.2e} > {tolerance:.0e}"


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("index", CASES)
def test_every_stage(attention, index):
    fixture, net = golden(NAME), policy(NAME, attention)
    near, states = fixture.tolerance("features_embeddings_actions"), fixture.tolerance("hidden_states")
    depth = net.config.llm.num_hidden_layers
    layers = [f"language_model.model.layers.{i}" for i in range(depth - 1)] + ["language_model.model.norm"]
    outputs = [f"vision_backbone.{tower}" for tower in TOWERS.values()] + ["projector", *layers]
    outputs.append("language_model.lm_head")
    with torch.no_grad(), Recorder(net, outputs) as record:
        out = net(inputs(NAME, index))

    for feature, tower in TOWERS.items():
        assert_close(record[f"vision_backbone.{tower}"], fixture[f"case{index}.{feature}.0"], near)
    assert_close(record["projector"], fixture[f"case{index}.projected_patches"], near)
    for number, layer in enumerate(layers, start=1):
        assert len(record.calls[layer]) == 7
        assert_close(record.calls[layer][0], fixture[f"case{index}.hidden_states.{number}"], states)
    logits = torch.cat(record.calls["language_model.lm_head"], dim=1)[0]
    assert_close(logits[:, 31744:32000], fixture[f"case{index}.step_logits_bins"], fixture.tolerance("logits"))
    assert_close(logits.topk(2).values, fixture[f"case{index}.step_logits_top2"], fixture.tolerance("logits"))
    assert torch.equal(out.token_ids[0, 0], fixture[f"case{index}.generated_token_ids"])
    assert_close(out.normalized[0, 0], fixture[f"case{index}.normalized_actions"], 1e-12)
    assert_close(out.values[0, 0], fixture[f"case{index}.actions"], 1e-12)


@pytest.mark.parametrize("index", CASES)
def test_prompt_and_embeddings(index):
    fixture, net = golden(NAME), policy(NAME, "sdpa")
    prompt = close_prompt(fixture[f"case{index}.input_ids"], fixture[f"case{index}.attention_mask"], 29871)
    assert torch.equal(prompt.ids, fixture[f"case{index}.generated_full_ids"][:, :-7])
    layout = net.layout(inputs(NAME, index))
    assert layout.prompt_lengths == (fixture.case(index)["L"],)
    assert layout.length == fixture.case(index)["prefill_length"]
    with torch.no_grad(), Recorder(net, [], ["language_model.model"]) as record:
        net(inputs(NAME, index))
    assert_close(record.calls["language_model.model"][0], fixture[f"case{index}.multimodal_embeddings"], 2e-5)


@pytest.mark.parametrize("attention", ATTENTION)
def test_attention_is_causal(attention):
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
def test_a_batch_of_all_cases_equals_each_alone(attention):
    batch = PolicyInputs.cat([inputs(NAME, index) for index in CASES], pad_id=32000)
    with torch.no_grad():
        out = policy(NAME, attention)(batch)
    for index in CASES:
        assert torch.equal(out.token_ids[index, 0], golden(NAME)[f"case{index}.generated_token_ids"])
