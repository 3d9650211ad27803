import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mist_interp.core.errors import UnknownName
from mist_interp.models import bins
from mist_interp.models.normalization import Bounds, normalize, resolve_unnorm_key, unnormalize

values = st.lists(st.floats(-1, 1), min_size=1, max_size=8)


@given(values, st.sampled_from([32000, 384]))
def test_decoding_returns_to_the_same_bin(actions, vocabulary):
    actions = torch.tensor(actions, dtype=torch.float64)
    ids = bins.encode(actions, vocabulary)
    assert ids.min() >= vocabulary - 256 and ids.max() <= vocabulary - 1
    assert (bins.decode(ids, vocabulary) - actions).abs().max() <= 1 / 255 + 1e-12


def test_the_ends_of_the_vocabulary():
    ids = torch.tensor([31999, 31745, 31744, 31743, 3, 32000, 32063])
    top, bottom = 254 / 255, -254 / 255
    expected = torch.tensor([bottom, top, top, top, top, bottom, bottom], dtype=torch.float64)
    torch.testing.assert_close(bins.decode(ids, 32000), expected, atol=1e-12, rtol=0)
    ends = torch.tensor([-5.0, -1.0, 1.0, 5.0])
    assert bins.encode(ends, 32000).tolist() == [31999, 31999, 31744, 31744]


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(0.01, 3), st.floats(-1, 1), st.booleans()), min_size=1, max_size=7)
)
def test_units_there_and_back(rows):
    low, width, normalized, mask = (list(column) for column in zip(*rows, strict=True))
    bounds = Bounds(tuple(low), tuple(a + b for a, b in zip(low, width, strict=True)), tuple(mask))
    given = torch.tensor(normalized, dtype=torch.float64)
    torch.testing.assert_close(normalize(unnormalize(given, bounds), bounds), given, atol=1e-9, rtol=0)


def test_masked_numbers_pass_but_are_clipped_on_the_way_in():
    bounds = Bounds((0.0, 0.0), (4.0, 4.0), (True, False))
    assert normalize(torch.tensor([9.0, 0.3]), bounds).tolist() == pytest.approx([1.0, 0.3])
    assert normalize(torch.tensor([2.0, 7.0]), bounds).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert unnormalize(torch.tensor([3.0, 7.0], dtype=torch.float64), bounds).tolist() == pytest.approx([8.0, 7.0])


def test_bounds_are_read_by_kind():
    part = {"q01": [0, 0], "q99": [1, 2], "min": [-1, -1], "max": [3, 3], "mask": [True, False]}
    assert Bounds.read(part, "q99") == Bounds((0.0, 0.0), (1.0, 2.0), (True, False))
    assert Bounds.read(part, "minmax").high == (3.0, 3.0)
    with pytest.raises(ValueError, match="lack 'q01'; they hold 'mean'"):
        Bounds.read({"mean": [0]}, "q99")
    with pytest.raises(ValueError, match="mask 1"):
        Bounds.read({**part, "mask": [True]}, "q99")


def test_unnorm_keys():
    stats = {"libero_spatial_no_noops": 1, "bridge_orig": 2}
    assert resolve_unnorm_key(stats, "libero_spatial") == "libero_spatial_no_noops"
    assert resolve_unnorm_key(stats, "bridge_orig") == "bridge_orig"
    assert resolve_unnorm_key({"only": 1}, None) == "only"
    with pytest.raises(UnknownName, match="unknown unnorm key 'bridge'; did you mean 'bridge_orig'"):
        resolve_unnorm_key(stats, "bridge")
    with pytest.raises(ValueError, match="say which"):
        resolve_unnorm_key(stats, None)
    with pytest.raises(ValueError, match="no action statistics"):
        resolve_unnorm_key({}, "x")
