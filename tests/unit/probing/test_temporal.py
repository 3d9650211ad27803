"""What sums up over time is causal, and the same at once and query by query."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mist_interp.probing.temporal import (
    ExponentialAverage,
    OverTime,
    RunningMaximum,
    RunningSum,
    over_time_config,
    over_time_from_config,
)

WAYS: tuple[OverTime, ...] = (RunningMaximum(), ExponentialAverage(0.3), RunningSum())
values_of = arrays(
    np.float64, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3)), elements=st.floats(-9, 9)
)


@pytest.mark.parametrize("way", WAYS, ids=str)
@settings(max_examples=40, deadline=None)
@given(values=values_of, cut=st.integers(0, 8), noise=st.floats(-5, 5))
def test_it_is_causal_and_can_be_streamed(way: OverTime, values: np.ndarray, cut: int, noise: float) -> None:
    x = torch.from_numpy(values)
    whole, _ = way(x)
    assert whole.shape == x.shape
    changed = x.clone()
    changed[:, cut + 1 :] += noise
    torch.testing.assert_close(way(changed)[0][:, : cut + 1], whole[:, : cut + 1], rtol=0, atol=0)
    state, steps = None, []
    for value in x.split(1, dim=1):
        one, state = way(value, state)
        steps.append(one)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-12, atol=1e-12)


def test_values_by_hand() -> None:
    z = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)[None, :, None]
    assert RunningMaximum()(z)[0].flatten().tolist() == [1, 3, 3]
    assert ExponentialAverage(0.5)(z)[0].flatten().tolist() == [1, 2, 2]
    assert RunningSum()(torch.zeros(1, 3, 1))[0].flatten().tolist() == [0.5, 1.0, 1.5]
    sums = torch.tensor([0.5, 1.5])[None, :, None]
    assert RunningSum.loss(sums, torch.ones(1, 2, 1)).flatten().tolist() == [0.5, 0.5]
    assert RunningSum.loss(sums, torch.zeros(1, 2, 1)).flatten().tolist() == [0.5, 1.5]


def test_settings_are_kept_and_checked() -> None:
    for way in (*WAYS, None):
        assert over_time_from_config(over_time_config(way)) == way
    with pytest.raises(ValueError, match="weight=0"):
        ExponentialAverage(0)
    with pytest.raises(KeyError, match="did you mean 'RunningMaximum'"):
        over_time_from_config({"kind": "RuningMaximum"})
