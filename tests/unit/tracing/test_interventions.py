"""Is an edit that was written down the same edit after it is read again?"""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import Site
from mist_interp.tracing import (
    Intervention,
    ablate,
    add,
    clamp_projection,
    knockout,
    load_edits,
    patch_from,
    project_out,
    replace,
    save_edits,
    scale,
    skip,
)

sites = st.sampled_from(
    [
        "resid_post",
        "blocks.1.hook_mlp_out",
        "blocks.*.attn.hook_z",
        ("resid_post", 3),
        ("resid_post", -1),
        ("mlp_out", [0, 2]),
        ("attn_out", range(1, 3)),
        ("resid_mid", slice(1, None)),
        Site("blocks.0.hook_resid_pre"),
        [("attn_out", 1), "hook_embed"],
    ]
)
tokens = st.sampled_from([None, "action_read", "action_read.t3.dz", ["wrist", "text"], "agentview[0:2, 1]"])
numbers = st.floats(-1e3, 1e3, allow_nan=False)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
heads = st.sampled_from([None, 0, [1, 3], -1])
steps = st.sampled_from([None, 0, 4])


@st.composite
def vectors(draw, shape=(5,)):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.randn(shape, generator=generator).to(draw(dtypes))


edits = st.one_of(
    st.builds(add, sites, vectors(), tokens, numbers, head=heads, step=steps),
    st.builds(add, sites, vectors((2, 5)), tokens, neuron=st.just([4, 7])),
    st.builds(scale, sites, numbers, tokens, head=heads, step=steps),
    st.builds(ablate, sites, head=heads, tokens=tokens),
    st.builds(ablate, sites, st.just("mean"), stats=vectors((3, 5)), tokens=tokens),
    st.builds(ablate, sites, st.just("resample"), source=vectors((4, 2, 5)), seed=st.integers(0, 9)),
    st.builds(replace, sites, vectors(()), tokens),
    st.builds(project_out, sites, vectors((2, 5)), tokens, head=heads),
    st.builds(clamp_projection, sites, vectors(), st.floats(-9, 0), st.floats(0, 9), tokens, step=steps),
    st.builds(clamp_projection, sites, vectors(), st.none(), st.floats(0, 9)),
    st.builds(skip, st.sampled_from([1, -1, [0, 2], range(2), slice(None, 2)]), tokens),
    st.builds(knockout, st.just("action_read"), st.sampled_from(["text", ["wrist", "text"]]), st.none(), heads),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(edits, max_size=4))
def test_edits_survive_a_file(tmp_path_factory, listed):
    path = tmp_path_factory.mktemp("edits") / "edits.safetensors"
    save_edits(path, listed)
    again = load_edits(path)
    assert again == listed and [hash(e) for e in again] == [hash(e) for e in listed]
    assert [str(e) for e in again] == [str(e) for e in listed]
    for mine, theirs in zip(listed, again, strict=True):
        assert mine.tensors.keys() == theirs.tensors.keys()
        for name in mine.tensors:
            assert torch.equal(mine.tensors[name], theirs.tensors[name])
            assert mine.tensors[name].dtype == theirs.tensors[name].dtype


@settings(max_examples=60, deadline=None)
@given(edits, edits)
def test_equal_means_the_same_json(one, other):
    assert (one == other) == (json.dumps(one.to_dict()) == json.dumps(other.to_dict()))
    assert one != "an edit" and (one.fingerprint == other.fingerprint) == (one == other)
    assert Intervention.from_dict(json.loads(json.dumps(one.to_dict())), one.blobs) == one


def test_any_difference_is_a_difference():
    vector = torch.ones(4)
    edit = add(("resid_post", 1), vector, "text", 2.0, head=1, step=0)
    others = [
        add(("resid_post", 2), vector, "text", 2.0, head=1, step=0),
        add(("resid_post", 1), vector * (1 + 1e-6), "text", 2.0, head=1, step=0),
        add(("resid_post", 1), vector.double(), "text", 2.0, head=1, step=0),
        add(("resid_post", 1), vector[None], "text", 2.0, head=1, step=0),
        add(("resid_post", 1), vector, "wrist", 2.0, head=1, step=0),
        add(("resid_post", 1), vector, "text", 2.5, head=1, step=0),
        add(("resid_post", 1), vector, "text", 2.0, head=2, step=0),
        add(("resid_post", 1), vector, "text", 2.0, head=1, step=1),
        replace(("resid_post", 1), vector, "text", head=1, step=0),
    ]
    assert edit == add(("resid_post", 1), vector.clone(), "text", 2.0, head=1, step=0)
    for other in others:
        assert edit != other, other
    assert len({edit.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_tensors_of_the_same_bytes_are_not_mixed_up_in_a_file(tmp_path):
    zeros = torch.zeros(4), torch.zeros(2, 2), torch.zeros(1, 4), torch.zeros(2, dtype=torch.float64)
    listed = [add("resid_post", tensor) for tensor in (*zeros, zeros[0])]
    save_edits(tmp_path / "edits", listed)
    again = load_edits(tmp_path / "edits")
    assert again == listed
    assert [edit.tensors["vector"].shape for edit in again] == [edit.tensors["vector"].shape for edit in listed]


def test_an_edit_holds_its_own_numbers():
    vector = torch.ones(4, requires_grad=True)
    edit = add("resid_post", vector)
    with torch.no_grad():
        vector[0] = 7
    assert torch.equal(edit.tensors["vector"], torch.ones(4)) and not edit.tensors["vector"].requires_grad


def test_an_exchanged_or_missing_tensor_is_noticed():
    edit = add("resid_post", torch.ones(4))
    facts = edit.to_dict()
    with pytest.raises(UnknownName, match="vector"):
        Intervention.from_dict(facts)
    (sha,) = edit.blobs
    with pytest.raises(ValueError, match="not the tensor that was saved"):
        Intervention.from_dict(facts, {sha: torch.zeros(4)})
    with pytest.raises(UnknownName, match=r"did you mean 'tokens' or"):
        Intervention.from_dict({**facts, "token": "text"}, edit.blobs)


def test_only_data_can_be_saved(tmp_path):
    with pytest.raises(TypeError, match="only edits that are data"):
        save_edits(tmp_path / "edits", [("resid_post", lambda x, site: x)])
    assert not (tmp_path / "edits").exists()
    other = tmp_path / "cache.safetensors"
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, other)
    with pytest.raises(ValueError, match="holds no saved edits"):
        load_edits(other)
    with pytest.raises(FileNotFoundError):
        load_edits(tmp_path / "nothing")


def test_edits_from_a_cache_are_small_and_survive_a_file(vla, inputs, tmp_path):
    _, cache = vla.run_with_cache(inputs, names=["resid_post", "z"])
    listed = [
        patch_from(cache, ("resid_post", [1, 2]), "text"),
        patch_from(cache, ("z", 0), "action_read.dz", head=[2, 0]),
        ablate(("z", 1), "mean", head=1, tokens="action_read", stats=cache),
        ablate("resid_post", "resample", tokens="proprio", source=cache, seed=3),
    ]
    assert listed[1].tensors["values@blocks.0.attn.hook_z"].shape == (2, 8, 2, 16)
    assert listed[2].tensors["values@blocks.1.attn.hook_z"].shape == (1, 56, 1, 16)
    save_edits(tmp_path / "edits", listed)
    again = load_edits(tmp_path / "edits")
    assert again == listed
    assert torch.equal(vla.run_with_hooks(inputs, again).values, vla.run_with_hooks(inputs, listed).values)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: add("resid_post", [1.0, float("nan")]), ValueError, "vector holds values that are not finite"),
        (lambda: add("resid_post", torch.ones(2), coef=float("inf")), ValueError, "coef=inf"),
        (lambda: scale("resid_post", float("nan")), ValueError, "factor=nan"),
        (lambda: scale([], 2.0), ValueError, "no site was named"),
        (lambda: scale("z", 2.0, head=[]), ValueError, r"head=\[\] selects nothing"),
        (lambda: scale("z", 2.0, head=[1, 1]), ValueError, "twice"),
        (lambda: scale("z", 2.0, head=1.5), TypeError, "whole number"),
        (lambda: scale("z", 2.0, head=True), TypeError, "whole number"),
        (lambda: scale("mlp.post", 2.0, neuron=[]), ValueError, r"neuron=\[\] selects nothing"),
        (lambda: scale("z", 2.0, tokens=[]), ValueError, r"tokens=\[\] selects nothing"),
        (lambda: scale("z", 2.0, step=0.5), TypeError, "number of a run"),
        (lambda: scale(lambda name: True, 2.0), TypeError, r"give vla\.sites"),
        (lambda: scale(3, 2.0), TypeError, "int"),
        (lambda: scale([("z", 1.5)], 2.0), ValueError, "has no such layers"),
        (lambda: ablate("z", "means"), UnknownName, "did you mean 'mean'"),
        (lambda: ablate("z", "mean"), ValueError, "needs stats="),
        (lambda: ablate("z", "resample", stats=torch.ones(2)), ValueError, "takes no stats="),
        (lambda: ablate("z", "zero", source=torch.ones(2)), ValueError, "takes no source="),
        (lambda: project_out("z", torch.zeros(3)), ValueError, "without length"),
        (lambda: project_out("z", torch.ones(2, 3)), ValueError, "not independent"),
        (lambda: clamp_projection("z", torch.ones(3)), ValueError, "at least one"),
        (lambda: clamp_projection("z", torch.ones(3), 2, 1), ValueError, "low <= high"),
        (lambda: clamp_projection("z", torch.zeros(3), 0), ValueError, "with a length"),
        (lambda: clamp_projection("z", torch.ones(3), float("nan")), ValueError, "low=nan"),
        (lambda: knockout("action_read", []), ValueError, r"keys=\[\]"),
        (lambda: knockout([], "text"), ValueError, r"tokens=\[\]"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_written(make, error, message):
    with pytest.raises(error, match=message):
        make()
