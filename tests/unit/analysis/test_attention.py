"""Do masses of attention sum up, sit at the right tokens, and are they there at all where they can be?"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.analysis.attention.knockout import (
    blinded,
    knockout_edits,
    knockout_shift,
    patch_keys,
    random_patches,
)
from mist_interp.analysis.attention.mass import camera_attention, parts, segment_mass, summarise
from mist_interp.analysis.attention.sinks import find_sinks, received, sink_view
from mist_interp.analysis.result import Result, labelled
from mist_interp.core.errors import UnknownName
from mist_interp.models import random_policy
from mist_interp.tracing import HookedVLA, knockout
from mist_interp.tracing.checks import noise_inputs

torch.set_num_threads(1)


@cache
def make(variant: str = "l1", attention: str = "eager") -> HookedVLA:
    policy = random_policy(variant=variant, layers=2, diffusion_steps=2).requires_grad_(False)
    policy.set_attn_implementation(attention)
    return HookedVLA(policy)


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return make()


@pytest.fixture(scope="module")
def inputs(vla):
    """Two queries whose prompts differ in length."""
    return noise_inputs(vla)


def test_masses_are_those_of_the_pattern(vla, inputs) -> None:
    result = segment_mass(vla, inputs)
    _, found = vla.run_with_cache(inputs[1:2], names=("pattern", 1))
    shorter, layout = found["pattern", 1].values, found.layout  # the sample that is padded in the batch
    for query in ("text", "action_read", "wrist"):
        for key in ("proprio", "text", "agentview"):
            rows, columns = layout.select(query).index[0], layout.select(key).index[0]
            expected = shorter[0][:, rows][:, :, columns].sum(-1).mean(-1)
            given = result.sel(sample=1, layer=1, **{"from": query, "to": key}).values
            np.testing.assert_allclose(given, expected, atol=1e-5)


@pytest.mark.parametrize("variant", ["l1", "discrete", "diffusion", "base"])
def test_rows_sum_to_one_in_every_variant(variant: str) -> None:
    vla = make(variant)
    result = segment_mass(vla, noise_inputs(vla), batch=1)
    assert result.axes["to"] == list(parts(vla.layout(noise_inputs(vla)))) and "rest" not in result.axes["to"]
    np.testing.assert_allclose(result.values.sum("to"), 1, atol=1e-5)


def test_what_the_keys_leave_over_is_the_rest(vla, inputs) -> None:
    result = segment_mass(vla, inputs, queries=["action_read.dz"], keys=["wrist"])
    assert result.axes["to"] == ["wrist", "rest"] and result.axes["from"] == ["action_read.dz"]
    np.testing.assert_allclose(result.values.sum("to"), 1, atol=1e-6)


def test_overlapping_keys_are_refused(vla, inputs) -> None:
    with pytest.raises(ValueError, match="overlap"):
        segment_mass(vla, inputs, keys=["vision", "wrist"])
    with pytest.raises(UnknownName, match="wrist"):
        segment_mass(vla, inputs, keys=["wirst"])


def test_without_eager_attention_there_is_a_way_out(inputs) -> None:
    with pytest.raises(ValueError, match=r"eager.*'sdpa'.*set_attn_implementation"):
        segment_mass(make(attention="sdpa"), inputs)
    with pytest.raises(ValueError, match="eager"):
        knockout_shift(make(attention="sdpa"), inputs, None, "wrist")


def test_batches_do_not_matter(vla, inputs) -> None:
    one, other = (segment_mass(vla, inputs, batch=size).values for size in (1, 2))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_summary_sees_edited_patterns_and_leaves_no_edit(vla, inputs) -> None:
    even = lambda pattern, site: torch.full_like(pattern, 1 / pattern.shape[-1])  # noqa: E731
    with vla.hooks((("pattern", 0), even)):
        most = summarise(vla, inputs[:1], lambda pattern, layout: pattern.amax((1, 2, 3))[:, None], layers=[0])
    assert float(most) == pytest.approx(1 / vla.layout(inputs[:1]).length)
    assert vla.edits() == ()


def test_camera_maps_sum_to_the_mass_on_vision_and_are_row_major(vla, inputs) -> None:
    maps = camera_attention(vla, inputs, ["action_read", "action_read.t3.dz"])
    mass = segment_mass(vla, inputs, ["action_read", "action_read.t3.dz"], ["vision"]).sel(to="vision")
    np.testing.assert_allclose(maps.values.sum(["camera", "row", "col"]), mass.values, atol=1e-5)
    patch = segment_mass(vla, inputs, ["action_read.t3.dz"], ["wrist[1, 2]"]).values.isel(to=0, **{"from": 0})
    given = maps.values.sel({"from": "action_read.t3.dz", "camera": "wrist", "row": 1, "col": 2})
    np.testing.assert_allclose(given, patch, atol=1e-6)


def test_a_view_without_sinks_is_renormalised_and_says_what_they_had(vla, inputs) -> None:
    plain = segment_mass(vla, inputs, ["action_read.t0.dx"])
    view = sink_view(vla, inputs, ["bos", "proprio"], ["action_read.t0.dx"])
    np.testing.assert_allclose(view.mass.values.sum("to"), 1, atol=1e-5)
    assert (view.mass.sel(to=["bos", "proprio"]).values == 0).all()
    had = plain.sel(to=["bos", "proprio"]).values.sum("to")
    np.testing.assert_allclose(view.share.values, had, atol=1e-6)
    # One query: renormalising is one division.
    np.testing.assert_allclose(view.mass.sel(to="text").values, plain.sel(to="text").values / (1 - had), atol=1e-5)
    maps = camera_attention(vla, inputs, "action_read.t0.dx", sinks=["bos", "proprio"])
    cameras = view.mass.sel(to=["agentview", "wrist"]).values.sum("to")
    np.testing.assert_allclose(maps.values.sum(["camera", "row", "col"]), cameras, atol=1e-5)


def test_a_planted_sink_is_found(vla, inputs) -> None:
    place = int(vla.layout(inputs).select("wrist[2, 3]").index[0, 0])

    def plant(pattern, site):
        heavy = pattern * 0.5
        heavy[..., place] += 0.5
        return heavy

    assert find_sinks(received(vla, inputs), factor=30) == ()
    with vla.hooks((("pattern", 1), plant)):
        found = received(vla, inputs)
    assert find_sinks(found, factor=30) == ("wrist[2, 3]",)
    lengths = torch.tensor(vla.layout(inputs).lengths)
    assert float(found.sel(token="wrist[2, 3]", layer=1).values.mean()) > 0.5 * float(lengths.min())


def test_received_attention_is_even_on_average(vla, inputs) -> None:
    result = received(vla, inputs[:1])
    tokens = torch.tensor([1.0] * len(result.axes["token"]))
    tokens[result.axes["token"].index("text")] = vla.layout(inputs[:1]).prompt_lengths[0] - 1
    total = (result.values * tokens.numpy()).sum("token")
    # Prompts of different lengths have different even shares.
    singles = [received(vla, inputs[k]).values for k in (0, 1)]
    np.testing.assert_allclose(received(vla, inputs).values, (singles[0] + singles[1]) / 2, rtol=1e-4)
    np.testing.assert_allclose(total, vla.layout(inputs[:1]).length, rtol=1e-4)


# -- knockout ---------------------------------------------------------------------------------------------------------


def test_a_knockout_is_minus_infinity_before_the_softmax() -> None:
    scores = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    queries = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]]).bool()
    keys = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]).bool()
    cut = blinded([0, 2], queries, keys)(scores, None)
    gone = (queries[:, :, None] & keys[:, None])[:, None] & torch.tensor([True, False, True])[None, :, None, None]
    assert torch.equal(cut, scores.masked_fill(gone, -torch.inf))
    assert torch.equal(cut[:, 1], scores[:, 1]) and torch.equal(cut[0, 0, 1], scores[0, 0, 1])


def test_without_a_sink_the_rest_is_looked_at(vla, inputs) -> None:
    """Of a row that lies on the cut keys up to rounding, the others get what their scores say."""
    sink = vla.layout(inputs).mask("bos")

    def plant(scores, site):
        return scores + 200.0 * sink[:, None, None, :]

    scores = torch.tensor([200.0, 0.0, 0.0, 0.0])[None, None, None]
    keys = torch.tensor([[True, False, False, False]])
    cut = blinded(None, torch.ones(1, 1).bool(), keys)(scores, None).softmax(-1)
    torch.testing.assert_close(cut.flatten(), torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]))
    edits = knockout_edits(vla, inputs, None, "bos", "all")
    with vla.hooks(*edits):
        expected = vla(inputs)
    with vla.hooks(("attn_scores", plant), *edits):
        found = vla(inputs)
    torch.testing.assert_close(found.values, expected.values)


@pytest.mark.parametrize("variant", ["l1", "base"])
def test_both_knockouts_are_one(variant) -> None:
    vla = make(variant)
    inputs = noise_inputs(vla)
    for queries in ("action_read", "all"):
        mine = vla.run_with_hooks(inputs, knockout_edits(vla, inputs, [(0, 1), (0, 3)], "agentview", queries))
        other = vla.run_with_hooks(inputs, [knockout(queries, "agentview", layers=0, heads=[1, 3])])
        assert torch.equal(mine.normalized, other.normalized)
        with vla.hooks(*knockout_edits(vla, inputs, None, "agentview", queries)):
            _, cache = vla.run_with_cache(inputs, names=("pattern", 1))
        layout = vla.layout(inputs)
        gone = layout.mask(queries)[:, :, None] & layout.mask("agentview")[:, None]
        values = cache["pattern", 1].values
        assert float(values.movedim(1, -1)[gone].abs().max()) == 0


def test_knocking_out_everything_is_refused(vla, inputs) -> None:
    with pytest.raises(ValueError, match="nothing to look at"):
        knockout_shift(vla, inputs, [(0, 0)], "all")
    with pytest.raises(ValueError, match="2 layers of 4 heads"):
        knockout_edits(vla, inputs, [(2, 0)], "wrist")
    with pytest.raises(ValueError, match="boolean"):
        knockout_edits(vla, inputs, None, torch.zeros(2, 3, dtype=torch.bool))


def test_only_the_named_heads_are_blinded_and_the_action_moves(vla, inputs) -> None:
    edits = knockout_edits(vla, inputs, [(1, 2)], "wrist", "action_read")
    with vla.hooks(*edits):
        blind = segment_mass(vla, inputs, ["action_read", "stop"], ["wrist"])
    plain = segment_mass(vla, inputs, ["action_read", "stop"], ["wrist"])
    mass = blind.sel(to="wrist", layer=1).values
    assert (mass.sel(head=2, **{"from": "action_read"}) == 0).all() and (mass.sel(head=2, **{"from": "stop"}) > 0).all()
    np.testing.assert_allclose(
        mass.sel(head=[0, 1, 3]), plain.sel(to="wrist", layer=1, head=[0, 1, 3]).values, atol=1e-6
    )
    shift = knockout_shift(vla, inputs, [(1, 2)], "wrist")
    assert list(shift.axes) == ["sample", "step", "dim"] and (abs(shift.values) > 0).any()
    nothing = knockout_shift(vla, inputs, None, torch.zeros(2, vla.layout(inputs).length, dtype=torch.bool))
    assert (nothing.values == 0).all()


def test_patches_become_tokens(vla, inputs) -> None:
    shares = np.zeros((2, 2, 4, 4))
    shares[0, 1, 1, 2], shares[1, 0, 3, 0], shares[1, 0, 0, 0] = 0.5, 0.2, 0.01
    result = Result(labelled(shares, sample=[0, 1], camera=["agentview", "wrist"], row=range(4), col=range(4)))
    keys, layout = patch_keys(vla, inputs, result), vla.layout(inputs)
    assert torch.equal(keys[0], layout.mask("wrist[1, 2]")[0])
    assert torch.equal(keys[1], layout.mask("agentview[3, 0]")[1])


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_random_patches_are_as_many_and_elsewhere(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(3, 60, generator=generator) < 0.9
    keys = allowed & (torch.rand(3, 60, generator=generator) < 0.2)
    other = random_patches(keys, allowed, seed)
    assert torch.equal(other.sum(1), keys.sum(1)) and not bool((other & (keys | ~allowed)).any())
