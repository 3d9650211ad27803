"""The figures of the cross-talk script, on a random policy and noise instead of the simulator's pictures."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("libero")

from mist_interp.analysis.cross_talk import cross_talk_matrix, dose_response
from mist_interp.models.random import random_policy
from mist_interp.tracing.checks import noise_inputs
from mist_interp.tracing.hooked import HookedVLA

SCRIPT = Path(__file__).resolve().parents[3] / "experiments" / "steering" / "crosstalk.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crosstalk", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["crosstalk"] = module
    spec.loader.exec_module(module)
    return module


def test_it_draws_a_panel_per_layer_and_three_lines_of_doses(script: ModuleType) -> None:
    vla = HookedVLA(random_policy(0).requires_grad_(False))
    inputs = noise_inputs(vla)[0]
    figure = script.matrices(cross_talk_matrix(vla, inputs, [1, 2]))
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["edit behind block 1", "edit behind block 2"]
    panels = script.lines(dose_response(vla, inputs, "dz", (-0.1, 0.1), [1, 2]), "dz").axes
    assert [len(axes.lines) for axes in panels] == [3, 2, 2]
