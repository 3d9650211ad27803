"""What edits really do, on a (random) network: near the identity where small, and labelled as asked."""

import numpy as np
import pytest

from mist_interp.analysis.cross_talk import cross_talk_matrix, dose_response
from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.models.random import random_policy
from mist_interp.tracing.checks import noise_inputs
from mist_interp.tracing.hooked import HookedVLA


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return HookedVLA(random_policy(0).requires_grad_(False))


@pytest.fixture(scope="module")
def inputs(vla: HookedVLA) -> PolicyInputs:
    return noise_inputs(vla)[0]


def test_a_small_command_is_near_the_identity_and_holding_is_what_makes_it_so(
    vla: HookedVLA, inputs: PolicyInputs
) -> None:
    held = cross_talk_matrix(vla, inputs, [1, -1], size=0.01)
    assert held.axes == {"layer": [1, 3], "commanded": list(ACTION_NAMES), "realised": list(ACTION_NAMES)}
    assert np.abs(held.values.values - np.eye(7)).max() < 0.05
    loose = cross_talk_matrix(vla, inputs, [1, -1], size=0.01, hold=False)
    assert np.abs(loose.values.values - np.eye(7)).max() > 0.1


def test_the_dose_is_the_row_of_the_matrix_and_the_edit_grows_with_it(vla: HookedVLA, inputs: PolicyInputs) -> None:
    doses = dose_response(vla, inputs, "dz", [0.01, -0.01, 0.02], [2], steps=(0, 3))
    row = cross_talk_matrix(vla, inputs, [2], size=0.01, steps=(0, 3)).sel(layer=2, commanded="dz")
    assert doses.change.sel(layer=2, size=0.01).values.values == pytest.approx(0.01 * row.values.values, abs=1e-6)
    norms = doses.norm.sel(layer=2).values.values
    assert norms[1] == pytest.approx(norms[0]) and norms[2] == pytest.approx(2 * norms[0])
    assert np.sign(doses.change.sel(layer=2, dim="dz").values.values).tolist() == [1, -1, 1]


def test_what_there_is_not_is_refused(vla: HookedVLA, inputs: PolicyInputs) -> None:
    with pytest.raises(UnknownName, match="did you mean 'dz'"):
        dose_response(vla, inputs, "dzz", [0.1])
    with pytest.raises(ValueError, match="size 0"):
        cross_talk_matrix(vla, inputs, [1], size=0)
    with pytest.raises(IndexError):
        cross_talk_matrix(vla, inputs, [9])
