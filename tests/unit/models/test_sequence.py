import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mist_interp.models.sequence import append_slots, close_prompt, insert_after_bos, read_slots

LONE, PLACEHOLDER, STOP = 29871, 1, 2
prompts = st.lists(
    st.tuples(st.lists(st.integers(3, 99), min_size=1, max_size=6), st.booleans()), min_size=1, max_size=4
)


def batch(rows):
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [77] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


@given(prompts, st.integers(1, 9))
def test_every_row_is_what_it_would_be_alone(drawn, slots):
    rows = [ids + [LONE] * closed for ids, closed in drawn]
    text = append_slots(close_prompt(*batch(rows), LONE), slots, PLACEHOLDER, STOP)
    for b, (row, (_, closed)) in enumerate(zip(rows, drawn, strict=True)):
        full = row + ([] if closed else [LONE]) + [PLACEHOLDER] * slots + [STOP]
        assert text.ids[b, : len(full)].tolist() == full
        assert text.attention[b].tolist() == [True] * len(full) + [False] * (text.ids.shape[1] - len(full))
        where = text.is_slot[b].nonzero()[:, 0].tolist()
        assert where == list(range(len(full) - slots - 1, len(full) - 1)) and where[0] == text.first_slot[b]


@given(prompts, st.integers(1, 5), st.integers(1, 7))
def test_actions_are_read_one_to_the_left(drawn, slots, inserted):
    rows = [ids for ids, _ in drawn]
    text = append_slots(close_prompt(*batch(rows), LONE), slots, PLACEHOLDER, STOP)
    columns = torch.arange(text.ids.shape[1] + inserted, dtype=torch.float32)[None, :, None].repeat(len(rows), 1, 2)
    read = read_slots(columns, text, inserted)
    for b, row in enumerate(rows):
        first = inserted + len(row)
        assert read[b, :, 0].tolist() == list(range(first, first + slots))


def test_images_come_right_after_bos():
    text = torch.arange(4.0).reshape(1, 4, 1)
    assert insert_after_bos(text, torch.full((1, 2, 1), 9.0))[0, :, 0].tolist() == [0, 9, 9, 1, 2, 3]


@pytest.mark.parametrize("mask", [[0, 1, 1], [1, 0, 1], [0, 0, 0]])
def test_other_paddings_are_refused(mask):
    with pytest.raises(ValueError, match="padded on the right"):
        close_prompt(torch.tensor([[1, 5, 6]]), torch.tensor([mask]), LONE)
