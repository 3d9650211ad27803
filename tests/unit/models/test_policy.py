import pytest
import torch
from policy_builders import LONG, SHORT, make_inputs

from mist_interp.core.inputs import PolicyInputs
from mist_interp.models import random_policy

VARIANTS = [
    {"variant": "l1"},
    {"variant": "l1", "num_images": 1, "use_proprio": False},
    {"variant": "l1", "film": True},
    {"variant": "diffusion", "diffusion_steps": 5},
    {"variant": "discrete"},
    {"variant": "base"},
]
IDS = ["l1", "l1-one-image", "l1-film", "diffusion", "discrete", "base"]
EXACT = {"discrete", "base"}


def act(policy, inputs):
    with torch.no_grad():
        return policy(inputs)


@pytest.fixture(scope="module", params=VARIANTS, ids=IDS)
def policy(request):
    return random_policy(1, **request.param)


def test_shapes_types_and_units(policy):
    out = act(policy, make_inputs(policy, [SHORT, LONG]))
    chunk = 1 if policy.variant == "base" else 8
    assert out.normalized.shape == out.values.shape == (2, chunk, 7)
    assert out.values.dtype == torch.float64
    assert (out.token_ids is not None) == (policy.variant in EXACT)
    torch.testing.assert_close(out.values[..., 6], out.normalized[..., 6].double())
    assert not torch.allclose(out.values[..., :6], out.normalized[..., :6].double())


def test_a_batch_equals_its_rows(policy):
    inputs = make_inputs(policy, [LONG, SHORT, "turn on the stove"])
    together = act(policy, inputs)
    for row in range(3):
        length = int(inputs.attention_mask[row].sum())
        one = inputs[row]
        alone = PolicyInputs(
            one.input_ids[:, :length], one.attention_mask[:, :length], one.pixel_values, one.proprio, one.noise
        )
        torch.testing.assert_close(act(policy, alone).normalized, together.normalized[row : row + 1], atol=2e-5, rtol=0)


def test_what_stands_under_the_padding_does_not_matter(policy):
    inputs = make_inputs(policy, [LONG, SHORT])
    ids = torch.where(inputs.attention_mask == 1, inputs.input_ids, 7)
    other = PolicyInputs(ids, inputs.attention_mask, inputs.pixel_values, inputs.proprio, inputs.noise)
    assert torch.equal(act(policy, inputs).values, act(policy, other).values)


def test_eager_equals_sdpa(policy):
    inputs = make_inputs(policy, [SHORT, LONG])
    expected = act(policy, inputs).normalized
    policy.set_attn_implementation("eager")
    assert policy.language_model.config._attn_implementation == "eager"
    assert policy.vision_backbone.featurizer.blocks[0].attn.config._attn_implementation == "eager"
    found = act(policy, inputs).normalized
    policy.set_attn_implementation("sdpa")
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_every_module_runs_once_per_query(policy):
    calls = dict.fromkeys((name for name, _ in policy.named_modules()), 0)
    handles = []
    for name, module in policy.named_modules():

        def count(*_, name=name):
            calls[name] += 1

        handles.append(module.register_forward_hook(count))
    act(policy, make_inputs(policy))
    for handle in handles:
        handle.remove()
    passes = {"diffusion": policy.config.diffusion_steps, "base": 7}.get(policy.variant, 1)
    towers = [name for name in calls if name.startswith(("vision_backbone.featurizer.blocks.0", "projector"))]
    assert {calls[name] for name in towers} == {1}
    assert calls["vision_backbone"] == calls["vision_backbone.fused_featurizer"] == 1
    assert calls["vision_backbone.featurizer.blocks.3"] == 0
    layers = [name for name in calls if name.startswith("language_model.model.layers.1")]
    assert len(layers) > 5 and {calls[name] for name in layers} == {passes}
    if policy.variant in ("l1", "diffusion"):
        assert calls["action_head"] == passes and calls["language_model.lm_head"] == 0
        assert calls["language_model.model.embed_tokens"] == 1


def test_every_input_matters(policy):
    inputs = make_inputs(policy)
    base = logits_or_actions(policy, inputs)
    changed = [
        PolicyInputs(inputs.input_ids.flip(1), inputs.attention_mask, inputs.pixel_values, inputs.proprio, inputs.noise)
    ]
    for channel in range(inputs.pixel_values.shape[1]):
        pixels = inputs.pixel_values.clone()
        pixels[:, channel] += 1
        changed.append(PolicyInputs(inputs.input_ids, inputs.attention_mask, pixels, inputs.proprio, inputs.noise))
    if inputs.proprio is not None:
        changed.append(
            PolicyInputs(
                inputs.input_ids, inputs.attention_mask, inputs.pixel_values, inputs.proprio * 0.5, inputs.noise
            )
        )
    for other in changed:
        assert (logits_or_actions(policy, other) - base).abs().max() > 1e-4


def logits_or_actions(policy, inputs):
    if policy.variant not in EXACT:
        return act(policy, inputs).normalized
    seen = []
    handle = policy.language_model.lm_head.register_forward_hook(lambda *args: seen.append(args[-1]))
    act(policy, inputs)
    handle.remove()
    return seen[0]


def test_gradients_reach_every_used_weight():
    policy = random_policy(2, variant="l1", film=True)
    policy(make_inputs(policy, [SHORT, LONG])).normalized.abs().sum().backward()
    without = {name for name, parameter in policy.named_parameters() if parameter.grad is None}
    assert without == set(policy.unused_weights)
    dead = [name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() == 0]
    assert dead == []


def test_gradients_flow_after_inference_mode():
    policy = random_policy(3)
    inputs = make_inputs(policy)
    with torch.inference_mode():
        policy(inputs)
    policy(inputs).values.sum().backward()
    assert policy.action_head.model.fc2.weight.grad.abs().max() > 0


@pytest.mark.parametrize("variant", ["l1", "discrete"])
def test_the_placeholder_id_does_not_matter(variant):
    policy = random_policy(4, variant=variant)
    inputs = make_inputs(policy)
    base = logits_or_actions(policy, inputs)
    policy.config.placeholder_token_id = 9
    assert torch.equal(logits_or_actions(policy, inputs), base)
    policy.config.stop_token_id = 9
    assert not torch.equal(logits_or_actions(policy, inputs), base)


def test_a_closed_prompt_is_not_closed_twice():
    policy = random_policy(5)
    inputs = make_inputs(policy)
    ids = torch.cat([inputs.input_ids, torch.tensor([[policy.config.lone_space_token_id]])], dim=1)
    closed = PolicyInputs(ids, torch.ones_like(ids), inputs.pixel_values, inputs.proprio)
    assert torch.equal(act(policy, inputs).values, act(policy, closed).values)


def test_film_uses_the_language():
    policy = random_policy(6, film=True)
    features = {}
    for instruction in (SHORT, LONG):
        with torch.no_grad():
            handle = policy.vision_backbone.register_forward_hook(
                lambda *args, key=instruction: features.__setitem__(key, args[-1])
            )
            policy(make_inputs(policy, [instruction]))
            handle.remove()
    assert not torch.allclose(features[SHORT], features[LONG])


def test_diffusion_noise_comes_from_the_inputs_or_the_global_generator():
    policy = random_policy(7, variant="diffusion", diffusion_steps=5)
    given = make_inputs(policy)
    state = torch.get_rng_state()
    first = act(policy, given).values
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(act(policy, given).values, first)
    free = PolicyInputs(given.input_ids, given.attention_mask, given.pixel_values, given.proprio)
    torch.manual_seed(3)
    drawn = act(policy, free).values
    torch.manual_seed(3)
    noise = torch.randn(1, 8, 7)
    same = PolicyInputs(given.input_ids, given.attention_mask, given.pixel_values, given.proprio, noise)
    assert torch.equal(act(policy, same).values, drawn) and not torch.equal(drawn, first)


def test_layout_length_is_the_sequence_length(policy):
    inputs = make_inputs(policy, [SHORT, LONG])
    seen = []
    handle = policy.language_model.model.layers[0].register_forward_hook(lambda *args: seen.append(args[-1]))
    act(policy, inputs)
    handle.remove()
    assert policy.layout(inputs).length == seen[0].shape[1]


def test_other_sizes_of_actions_and_chunks():
    policy = random_policy(8, action_dim=14, proprio_dim=14, chunk_size=5, num_images=3)
    out = act(policy, make_inputs(policy))
    assert out.values.shape == (1, 5, 14) and out.names[0] == "d0"


def test_wrong_inputs_are_refused_in_words():
    policy = random_policy(9)
    good = make_inputs(policy)
    ids, mask, pixels, proprio = good.input_ids, good.attention_mask, good.pixel_values, good.proprio
    cases = [
        (PolicyInputs(ids, mask, pixels[:, :6], proprio), r"shape \(1, 6, 56, 56\).*6 \* 2, 56, 56"),
        (PolicyInputs(ids, mask, pixels[:, :7], proprio), "6 channels for each camera"),
        (PolicyInputs(ids, mask, pixels[..., :50], proprio), r"\(1, 12, 56, 50\)"),
        (PolicyInputs(ids, mask, pixels.byte(), proprio), "torch.uint8; they must be floating point"),
        (PolicyInputs(ids, mask, pixels, None), "proprio is missing"),
        (PolicyInputs(ids, mask, pixels, proprio[:, :7]), r"shape \(1, 7\).*\(batch, 8\)"),
        (PolicyInputs(ids, mask, pixels, proprio, torch.zeros(1, 8, 7)), "does not start from noise"),
        (PolicyInputs(ids + 10_000, mask, pixels, proprio), "this policy's vocabulary has the ids 0 to"),
        (PolicyInputs(ids - 10_000, mask, pixels, proprio), "this policy's vocabulary has the ids 0 to"),
        (PolicyInputs(*(x[:0] for x in (ids, mask, pixels, proprio))), "at least one sample"),
        (PolicyInputs(ids, mask, pixels * torch.nan, proprio), "pixel_values holds numbers that are not finite"),
        (PolicyInputs(ids, mask, pixels, proprio / 0), "proprio holds numbers that are not finite"),
    ]
    for inputs, message in cases:
        with pytest.raises(ValueError, match=message):
            policy(inputs)
    with pytest.raises(TypeError, match="PolicyInputs, not Tensor"):
        policy(ids)
    with pytest.raises(ValueError, match="no proprio projector"):
        random_policy(9, use_proprio=False)(good)
    with pytest.raises(ValueError, match=r"expected \(1, 8, 7\)"):
        random_policy(9, variant="diffusion")(PolicyInputs(ids, mask, pixels, proprio, torch.zeros(1, 8, 6)))


def test_the_self_check_notices_the_wrong_attention():
    parallel, base = random_policy(10), random_policy(10, variant="base")
    for attention in ("sdpa", "eager"):
        parallel.set_attn_implementation(attention)
        base.set_attn_implementation(attention)
        assert not parallel.check().causal and parallel.check().implementation == attention
        assert base.check().causal and base.check().change_at_first == 0.0
    parallel.language_model.config.is_causal = True
    with pytest.raises(RuntimeError, match="attention is causal but this variant needs it bidirectional"):
        parallel.check()
    base.language_model.config.is_causal = False
    with pytest.raises(RuntimeError, match="attention is bidirectional"):
        base.check()


def test_random_policies_repeat_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    first, second, other = random_policy(11), random_policy(11), random_policy(12)
    assert torch.equal(torch.get_rng_state(), state)
    inputs = make_inputs(first)
    assert torch.equal(act(first, inputs).values, act(second, inputs).values)
    assert not torch.equal(act(first, inputs).values, act(other, inputs).values)
