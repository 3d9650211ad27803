"""Do labelled numbers keep their labels through selection, tables, files and figures?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mist_interp.analysis.result import Result, labelled
from mist_interp.core.errors import UnknownName


@pytest.fixture
def result() -> Result:
    numbers = np.arange(12.0).reshape(2, 3, 2) - 6
    return Result(
        labelled(numbers, layer=[0, 1], head=["h0", "h1", "h2"], dim=["dx", "dz"]), "share", "A test.", {"policy": "x"}
    )


def test_selecting_by_label(result: Result) -> None:
    assert result.sel(layer=1, head="h2", dim="dx").values.item() == 4
    assert result.sel(dim=["dz"]).axes == {"layer": [0, 1], "head": ["h0", "h1", "h2"], "dim": ["dz"]}


@pytest.mark.parametrize(("labels", "text"), [({"dmi": "dx"}, "dim"), ({"dim": "dzz"}, "dz"), ({"layer": 7}, "0")])
def test_a_wrong_label_says_what_there_is(result: Result, labels: dict, text: str) -> None:
    with pytest.raises(UnknownName, match=text):
        result.sel(**labels)


def test_rows_and_the_largest_of_them(result: Result) -> None:
    frame = result.to_frame()
    assert list(frame.columns) == ["layer", "head", "dim", "value"] and len(frame) == 12
    assert result.top(2)["value"].tolist() == [-6, -5] or result.top(2)["value"].abs().tolist() == [6, 5]
    assert len(result.sel(layer=0, head="h0", dim="dx").to_frame()) == 1


def test_labels_must_fit() -> None:
    with pytest.raises(ValueError, match="shape"):
        labelled(np.zeros((2, 3)), layer=[0, 1], dim=["dx"])
    with pytest.raises(ValueError, match="no labels"):
        Result(labelled(np.zeros((2,)), layer=[0, 1]).drop_vars("layer"))


@given(arrays(np.float64, (2, 3), elements=st.floats(allow_infinity=False)))
def test_a_file_gives_the_same_numbers_back(tmp_path_factory: pytest.TempPathFactory, numbers: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("result") / "r.json"
    before = Result(labelled(numbers, layer=[3, 1], dim=["dz", "dx", "dy"]), "m", "What.", {"n": 1})
    before.save(path)
    after = Result.load(path)
    np.testing.assert_array_equal(after.values, before.values)
    assert after.axes == before.axes and (after.unit, after.what, after.source) == ("m", "What.", {"n": 1})


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("[1]")
    with pytest.raises(ValueError, match="no saved result"):
        Result.load(tmp_path / "r.json")


@pytest.mark.parametrize("labels", [{}, {"dim": "dz"}, {"dim": "dz", "layer": 0}])
def test_figures_of_one_to_three_axes(result: Result, labels: dict) -> None:
    figure = result.sel(**labels).plot()
    figure.canvas.draw()
    assert figure.get_suptitle() == "A test."


def test_a_figure_of_no_axes_is_refused(result: Result) -> None:
    with pytest.raises(ValueError, match="one to three"):
        result.sel(layer=0, head="h0", dim="dx").plot()
