import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mist_interp.core.inputs import PolicyInputs


def make(length, batch=1, proprio=True, images=2):
    return PolicyInputs(
        torch.arange(1, length + 1).repeat(batch, 1),
        torch.ones(batch, length, dtype=torch.long),
        torch.rand(batch, 6 * images, 4, 4),
        torch.rand(batch, 8) if proprio else None,
    )


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=4))
def test_cat_then_index_gives_the_parts_back(sizes):
    parts = [make(length, batch) for length, batch in sizes]
    joined = PolicyInputs.cat(parts)
    assert joined.batch_size == sum(batch for _, batch in sizes)
    start = 0
    for part in parts:
        rows = joined[start : start + part.batch_size]
        length = part.input_ids.shape[1]
        assert torch.equal(rows.input_ids[:, :length], part.input_ids)
        assert rows.attention_mask.sum() == part.attention_mask.sum() and (rows.attention_mask[:, length:] == 0).all()
        assert torch.equal(rows.pixel_values, part.pixel_values) and torch.equal(rows.proprio, part.proprio)
        start += part.batch_size


def test_integer_index_keeps_the_batch_axis():
    inputs = make(5, batch=3)
    assert torch.equal(inputs[-1].proprio, inputs.proprio[2:])
    assert inputs[1].batch_size == 1
    with pytest.raises(IndexError):
        inputs[3]


def test_pad_id_is_written_under_attention_zero():
    joined = PolicyInputs.cat([make(2), make(4)], pad_id=32000)
    assert joined.input_ids[0].tolist() == [1, 2, 32000, 32000]
    assert joined.attention_mask[0].tolist() == [1, 1, 0, 0]


def test_device_move_keeps_types():
    moved = make(3).to("meta")
    assert moved.pixel_values.device.type == "meta" and moved.input_ids.dtype == torch.long


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.ones(3, dtype=torch.long)}, "input_ids has shape"),
        ({"attention_mask": torch.ones(1, 9, dtype=torch.long)}, "attention_mask has shape"),
        ({"pixel_values": torch.ones(2, 12, 4, 4)}, "pixel_values has 2 rows"),
        ({"proprio": torch.ones(8)}, "proprio has shape"),
    ],
)
def test_wrong_shapes_are_refused(change, message):
    good = make(3)
    given = {"input_ids": good.input_ids, "attention_mask": good.attention_mask, "pixel_values": good.pixel_values}
    with pytest.raises(ValueError, match=message):
        PolicyInputs(**{**given, **change})
    with pytest.raises(TypeError, match="not list"):
        PolicyInputs(**{**given, "proprio": [0.0] * 8})


def test_cat_refuses_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="some parts have proprio"):
        PolicyInputs.cat([make(3), make(3, proprio=False)])
    with pytest.raises(ValueError, match="different shapes"):
        PolicyInputs.cat([make(3), make(3, images=1)])
    with pytest.raises(ValueError, match="empty"):
        PolicyInputs.cat([])
