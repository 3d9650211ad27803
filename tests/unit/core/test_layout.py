"""Is every token of the sequence named once, and is the read-out one to the left of the placeholders?"""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mist_interp.core.errors import UnknownName
from mist_interp.core.layout import TokenLayout

layouts = st.builds(
    TokenLayout.build,
    prompt_lengths=st.lists(st.integers(2, 12), min_size=1, max_size=4),
    n_images=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    use_proprio=st.booleans(),
    diffusion=st.booleans(),
    chunk=st.integers(1, 4),
    action_dim=st.sampled_from([1, 3, 7]),
    autoregressive=st.booleans(),
)
PROMPT = ["▁pick", "▁up", "▁the", "▁black", "▁bo", "wl", "▁on", "▁the", "▁plate", "▁"]


def small(**changes):
    given = {"prompt_lengths": [11], "n_images": 2, "grid": (2, 3), "use_proprio": True, "words": [PROMPT], **changes}
    return TokenLayout.build(**given)


@given(layouts)
def test_the_segments_partition_every_sample(layout):
    parts = [*layout.cameras, "bos", "proprio", "timestep", "text", "action_slot", "stop"]
    masks = [layout.mask(part).long() for part in parts if part in layout.segments]
    covered = torch.stack(masks).sum(0)
    assert torch.equal(covered.bool(), layout.attention_mask)
    assert int(covered.max()) == 1
    assert layout.attention_mask.sum(1).tolist() == list(layout.lengths)
    assert layout.length == max(layout.lengths)


@given(layouts)
def test_the_head_reads_one_to_the_left_of_the_placeholders(layout):
    text = layout.select("text")
    last = [int(row[valid][-1]) for row, valid in zip(text.index, text.valid, strict=True)]
    read = layout.select("action_read").index
    assert read[:, 0].tolist() == last
    if not layout.autoregressive:
        slot = layout.select("action_slot").index
        assert torch.equal(slot, read + 1)
        assert torch.equal(layout.select("stop").index[:, 0], slot[:, -1] + 1)
        assert layout.action_grid("action_read").shape == (layout.batch_size, layout.chunk, layout.action_dim)


@given(layouts, st.data())
def test_a_sample_alone_has_the_same_positions(layout, data):
    sample = data.draw(st.integers(0, layout.batch_size - 1))
    alone = layout[sample]
    for segment in layout.segments:
        together = layout.select(segment)
        expected = together.index[sample][together.valid[sample]]
        assert torch.equal(alone.select(segment).index[0], expected)
    assert alone.length == layout.lengths[sample]


@given(layouts)
def test_it_survives_json(layout):
    assert TokenLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


@given(layouts)
def test_labels_are_one_per_token_and_unique(layout):
    for sample in range(layout.batch_size):
        labels = layout.labels(sample=sample)
        assert len(labels) == len(set(labels)) == layout.lengths[sample]


def test_published_sizes():
    """The position table of the published LIBERO checkpoints: 513 tokens between BOS and the prompt."""
    layout = TokenLayout.build([20], 2, (16, 16), True)
    assert (layout.n_extra, layout.length) == (513, 590)
    assert layout.select("proprio").index.tolist() == [[513]]
    assert layout.select("action_read").index[0, 0] == 532
    assert layout.select("action_slot").index[0, [0, -1]].tolist() == [533, 588]
    assert layout.select("stop").index.tolist() == [[589]]
    assert layout.select("agentview[3, 5]").index.tolist() == [[1 + 3 * 16 + 5]]
    assert layout.select("wrist[15, -1]").index.tolist() == [[512]]


def test_base_openvla_has_no_placeholders():
    layout = TokenLayout.build([19], 1, (16, 16), False, autoregressive=True, chunk=1)
    assert layout.length == 275
    assert layout.select("action_read").index.tolist() == [[274]]
    assert "action_slot" not in layout.segments
    with pytest.raises(UnknownName, match="action_slot"):
        layout.select("action_slot")
    with pytest.raises(ValueError, match="one by one"):
        layout.action_grid("action_read")


def test_words_are_found_by_whole_words():
    layout = small()
    first = 1 + layout.n_extra
    assert layout.find("bowl").index.tolist() == [[first + 4, first + 5]]
    assert layout.find("Black Bowl").index.tolist() == [[first + 3, first + 4, first + 5]]
    assert layout.select("text:the").index.tolist() == [[first + 2, first + 7]]
    assert layout.labels("text:bowl") == ["'bo'", "'wl'"]
    for absent in ("bow", "wl", "cup"):
        with pytest.raises(UnknownName, match="possible: 'pick', 'up'"):
            layout.find(absent)
    with pytest.raises(ValueError, match="without the text"):
        small(words=None).find("bowl")


def test_words_may_stand_at_different_places_in_a_batch():
    layout = small(prompt_lengths=[4, 3], words=[["▁a", "▁bowl", "▁"], ["▁bowl", "▁"]])
    first = 1 + layout.n_extra
    assert layout.find("bowl").index.tolist() == [[first + 1], [first]]
    text = layout.select("text")
    assert text.ragged and text.valid.tolist() == [[True] * 3, [True, True, False]]


def test_action_tokens_by_step_and_dimension():
    layout = small()
    read = layout.action_grid("action_read")[0]
    assert layout.select("action_read.t3.dz").index.tolist() == [[int(read[3, 2])]]
    assert layout.select("action_read.dz").index[0].tolist() == read[:, 2].tolist()
    assert layout.select("action_slot.t1").index[0].tolist() == (read[1] + 1).tolist()
    assert layout.labels("action_read.t3.dz") == ["read t3.dz"]
    assert layout.labels("action_slot.t3.dz") == ["slot t3.dz"]


def test_patches_and_lists():
    layout = small()
    assert layout.labels("wrist[0:2, 1]") == ["wrist r0c1", "wrist r1c1"]
    assert layout.labels(["proprio", "agentview[1, 2]"]) == ["proprio", "agentview r1c2"]
    assert layout.select("vision").index.shape == (1, 12)


@pytest.mark.parametrize(
    "selector, error, text",
    [
        ("acton_read", UnknownName, "action_read"),
        ("timestep", UnknownName, "possible"),
        ("vision[0, 0]", UnknownName, "camera"),
        ("agentview[2, 0]", IndexError, "row 2 is outside 0..1"),
        ("agentview[0, 3:3]", IndexError, "empty"),
        ("agentview[0]", ValueError, "grammar|selector is"),
        ("action_read.t8", IndexError, "chunk step 8"),
        ("action_read.dq", UnknownName, "'dz'"),
        ("action_read.t1.t2", ValueError, "no action token"),
        ("proprio.dz", UnknownName, "chunk, dim"),
        ("vision:bowl", UnknownName, "words"),
        ("text:", ValueError, "names no word"),
        ([], ValueError, "selects nothing"),
        (["vision", "wrist"], ValueError, "overlap"),
        (3, ValueError, "no token selector"),
    ],
)
def test_what_cannot_be_selected_says_so(selector, error, text):
    with pytest.raises(error, match=text):
        small().select(selector)


@pytest.mark.parametrize(
    "changes",
    [{"prompt_lengths": []}, {"prompt_lengths": [1]}, {"n_images": 0}, {"grid": (0, 3)}, {"words": [["▁too", "▁few"]]}],
)
def test_layouts_that_cannot_be(changes):
    with pytest.raises(ValueError):
        small(**changes)


def test_a_patch_is_a_selector():
    layout = small()
    assert layout.patch("wrist", 1, -1) == "wrist[1, 2]"
    assert layout.labels(layout.patch("agentview", 0, 1)) == ["agentview r0c1"]
    with pytest.raises(UnknownName, match="'wrist'"):
        layout.patch("wirst", 0, 0)
    with pytest.raises(IndexError, match="wrist column 3"):
        layout.patch("wrist", 0, 3)


def test_a_region_is_the_patches_that_it_covers():
    layout = small()
    assert layout.region("wrist", (0, 0, 1, 1)) == tuple(f"wrist[{r}, {c}]" for r in range(2) for c in range(3))
    assert layout.region("agentview", (0, 1 / 3, 0.5, 2 / 3)) == ("agentview[0, 1]",)
    assert layout.region("agentview", (0, 0, 0.2, 0.3), cover=0.3) == ("agentview[0, 0]",)
    assert len(layout.select(layout.region("wrist", (0, 0, 1, 1))).index[0]) == 6
    mask = torch.zeros(8, 12)
    mask[4:, 4:10] = 7
    assert layout.region("wrist", mask) == ("wrist[1, 1]", "wrist[1, 2]")
    assert layout.region("wrist", mask.numpy(), cover=0.9) == ("wrist[1, 1]",)


@pytest.mark.parametrize(
    "where, text",
    [
        (torch.zeros(8, 12), "no patch of wrist is covered by at least 0.5; the best has 0.00"),
        ((0, 0, 0.2, 0.3), "the best has 0.36"),
        (torch.ones(7, 12), "multiples of the 2 x 3"),
        ((0.5, 0, 0.5, 1), "expected fractions"),
        ((0, 0, 56, 28), "expected fractions"),
    ],
)
def test_a_region_that_cannot_be(where, text):
    with pytest.raises(ValueError, match=text):
        small().region("wrist", where)


@given(layouts, st.data())
def test_regions_of_a_grid_of_boxes_partition_the_picture(layout, data):
    camera = data.draw(st.sampled_from(layout.cameras))
    rows, cols = layout.grid
    row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    inner = (row / rows, col / cols, (row + 1) / rows, (col + 1) / cols)
    assert layout.region(camera, inner, cover=0.99) == (layout.patch(camera, row, col),)


def test_labels_of_a_list_are_those_of_its_parts():
    layout = TokenLayout.build([5, 7], 2, (2, 3), True)
    wanted = [*layout.labels("proprio"), *layout.labels("action_read.t0"), *layout.labels("stop")]
    assert wanted[1] == "read t0.dx"
    assert layout.labels(["proprio", "action_read.t0", "stop"]) == wanted
    assert layout.labels(["action_read.t0"]) == layout.labels("action_read.t0")
    text = [len(layout.labels(["text", "bos"], sample=b)) for b in (0, 1)]
    assert text == [5, 7]
    with pytest.raises(ValueError, match="overlap"):
        layout.labels(["action_read", "action_slot"])


@pytest.mark.parametrize("selector", [3, slice(0, 2), [3], ["text", ["bos"]], None])
def test_positions_are_no_selectors(selector):
    layout = TokenLayout.build([5, 7], 2, (2, 3), True)
    with pytest.raises(ValueError, match="is no token selector, because tokens have names here"):
        layout.select(selector)
