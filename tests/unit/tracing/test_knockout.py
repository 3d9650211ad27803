"""Does attention knockout cut exactly the attention that it names?"""

import pytest
import torch

from mist_interp.tracing import add, knockout
from mist_interp.tracing.checks import noise_inputs

GROUPS = ["text", "wrist", "vision", "proprio", ["bos", "stop"], "agentview[1, 0:2]", "action_slot.dz"]


def pattern(vla, inputs, *edits, layer=1):
    with vla.hooks(*edits):
        _, cache = vla.run_with_cache(inputs, names=("pattern", layer))
    return cache["pattern", layer].values


@pytest.mark.parametrize("keys", GROUPS, ids=str)
def test_the_cut_mass_is_zero_and_the_rest_keeps_its_proportions(vla, inputs, keys):
    before = pattern(vla, inputs)
    after = pattern(vla, inputs, knockout("action_read", keys, layers=1, heads=[0, 3]))
    layout = vla.layout(inputs)
    queries, cut = layout.mask("action_read"), layout.mask(keys)
    for sample in range(2):
        rows = after[sample][:, queries[sample]]
        real = after[sample][:, layout.attention_mask[sample]]
        torch.testing.assert_close(real.sum(-1), torch.ones(real.shape[:-1]))
        assert not bool(rows[[0, 3]][..., cut[sample]].any()), "exactly zero"
        expected = before[sample][:, queries[sample]][[0, 3]].masked_fill(cut[sample], 0)
        torch.testing.assert_close(rows[[0, 3]], expected / expected.sum(-1, keepdim=True), atol=1e-6, rtol=1e-4)
        assert torch.equal(rows[[1, 2]], before[sample][:, queries[sample]][[1, 2]])
        others = ~queries[sample]
        assert torch.equal(after[sample][:, others], before[sample][:, others])


def test_what_is_cut_everywhere_cannot_be_read(vla, inputs):
    """If nothing looks at the robot state at any layer, changing it changes nothing else."""
    others = ["bos", "vision", "text", "action_slot", "stop"]
    cut = knockout(others, "proprio")
    moved = type(inputs)(inputs.input_ids, inputs.attention_mask, inputs.pixel_values, inputs.proprio * 0.5)
    a, b = vla.run_with_hooks(inputs, [cut]), vla.run_with_hooks(moved, [cut])
    assert torch.equal(a.values, b.values)
    assert not torch.equal(vla(inputs).values, vla(moved).values)


def test_a_group_that_looks_nowhere_else_is_a_causal_cut(vla, inputs):
    """Cutting in one layer only leaves the detour through the others."""
    moved = type(inputs)(inputs.input_ids, inputs.attention_mask, inputs.pixel_values, inputs.proprio * 0.5)
    cut = knockout("action_read", "proprio")
    a, b = vla.run_with_hooks(inputs, [cut]), vla.run_with_hooks(moved, [cut])
    assert not torch.equal(a.values, b.values), "information still flows through third tokens"


def test_a_query_without_any_key_is_refused(vla, inputs):
    plain = vla(inputs)
    for edits in ([knockout("text", "all")], [knockout("text", ["vision", "bos", "text"]), knockout("text", "all", 1)]):
        with pytest.raises(ValueError, match=r"without any key.*attention without keys is not defined") as caught:
            vla.run_with_hooks(inputs, edits)
        assert "attn_scores" in caught.value.__notes__[0]
    rest = ["bos", "vision", "proprio", "text", "action_slot"]
    only_stop = pattern(vla, inputs, knockout("proprio", rest))
    assert float(only_stop[1, :, 33, 96].min()) == 1.0, "one key is enough"
    first, second = knockout("proprio", rest[:2]), knockout("proprio", [*rest[2:], "stop"])
    with pytest.raises(ValueError, match="without any key"):
        vla.run_with_hooks(inputs, [first, second])
    assert torch.equal(vla(inputs).values, plain.values)


def test_two_knockouts_are_one(vla, inputs):
    both = pattern(vla, inputs, knockout("all", "wrist"), knockout("all", "text"))
    one = pattern(vla, inputs, knockout("all", ["wrist", "text"]))
    mask = vla.layout(inputs).attention_mask
    for sample in range(2):
        assert torch.equal(both[sample][:, mask[sample]], one[sample][:, mask[sample]])


def test_batches_of_mixed_prompts_are_as_if_alone(vla, inputs):
    edits = [knockout("all", "text"), knockout("action_read", "agentview", layers=[0, -1], heads=1)]
    together = vla.run_with_hooks(inputs, edits)
    for sample in range(2):
        alone = vla.run_with_hooks(inputs[sample], edits)
        torch.testing.assert_close(together.values[sample : sample + 1], alone.values, atol=2e-6, rtol=1e-5)
        assert bool(alone.values.isfinite().all())


@pytest.mark.parametrize("variant", ["l1", "discrete", "diffusion", "base"])
def test_every_variant(make_vla, variant):
    vla = make_vla(variant, "eager", **({"diffusion_steps": 2} if variant == "diffusion" else {}))
    inputs = noise_inputs(vla)
    edit = knockout("action_read", "agentview")
    with vla.hooks(edit):
        _, cache = vla.run_with_cache(inputs, names="pattern", step=1 if variant in ("diffusion", "base") else 0)
        change = vla.changes()[0]
    cut = vla.layout(inputs).mask("agentview")
    for layer in range(4):
        values = cache["pattern", layer].values
        rows = values if variant == "base" else cache["pattern", layer].at("action_read")
        mask = torch.nn.functional.pad(cut, (0, values.shape[-1] - cut.shape[1]))
        assert not bool(rows[mask[:, None, None].expand_as(rows)].any())
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
    runs = {"diffusion": 2 * 56, "base": 7}.get(variant, 56)
    assert change.touched.tolist() == [runs] * 2


def test_causal_attention_never_sees_the_future_again(make_vla):
    """Under the causal mask of base OpenVLA, a query whose whole past is cut has nothing left, not its future."""
    vla = make_vla("base", "eager")
    inputs = noise_inputs(vla)
    with pytest.raises(ValueError, match="without any key"):
        vla.run_with_hooks(inputs, [knockout("bos", "bos")])


def test_sdpa_is_refused_with_the_reason(make_vla):
    vla = make_vla("l1", "sdpa")
    with pytest.raises(ValueError, match="attn_implementation='eager'"), vla.hooks(knockout("action_read", "text")):
        pass
    assert vla.edits() == ()


def test_knockout_and_steering_compose(vla, inputs):
    push = add(("resid_post", 0), torch.ones(64), "text")
    cut = [
        knockout("action_read", "text", layers=slice(1, None)),
        knockout(["vision", "bos", "proprio", "stop"], "text"),
    ]
    one = vla.run_with_hooks(inputs, [push, *cut])
    other = vla.run_with_hooks(inputs, [*cut, push])
    assert torch.equal(one.values, other.values)
