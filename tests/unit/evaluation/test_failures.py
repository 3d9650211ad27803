"""Failures that could have been saved are counted by how they came about, and by who saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mist_interp.evaluation import failures
from mist_interp.evaluation.failures import by_failure, way_of_failing
from mist_interp.evaluation.folder import ResultsFolder
from tests.unit.evaluation.tables import twin


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResultsFolder:
    """Units below 4 drop their object, the others never reach it."""
    monkeypatch.setattr(failures, "objects_to_move", lambda suite, task: ("bowl",))
    monkeypatch.setattr(failures, "failure_type", lambda record, wanted: "dropped" if record < 4 else "not reached")
    monkeypatch.setattr(ResultsFolder, "record", lambda self, row: row["init_state"])
    return ResultsFolder(tmp_path)


def rows() -> list[Any]:
    """none fails in units 0 to 6; 5 without a trigger; steer saves 0, 1 and 4, and spoils 8."""
    shadows = [twin("none", k, k < 7, tau=None if k == 5 else 40, collision_1n=k % 2 == 0) for k in range(9)]
    return shadows + [twin("steer", k, k not in (0, 1, 4, 7)) for k in range(9)]


def test_saved_units_are_counted_by_the_way_none_fails(folder: ResultsFolder) -> None:
    found = by_failure(folder, rows())
    assert list(found.index) == ["dropped", "not reached"]
    assert found.loc["dropped"].to_dict() == {"units": 4, "with a contact": 2, "steer": 2}
    assert found.loc["not reached"].to_dict() == {"units": 2, "with a contact": 2, "steer": 1}


def test_crashed_episodes_and_foreign_scenes_have_no_way_of_failing(tmp_path: Path) -> None:
    crashed = twin("none", 0, True, status="error")
    assert way_of_failing(ResultsFolder(tmp_path), crashed) is None
    foreign = [row | {"suite": "kitchen_of_my_own"} for row in rows()]
    assert by_failure(ResultsFolder(tmp_path), foreign).empty


def test_a_success_has_none(folder: ResultsFolder) -> None:
    assert way_of_failing(folder, twin("none", 0, False)) is None
    assert way_of_failing(folder, twin("none", 0, True)) == "dropped"
