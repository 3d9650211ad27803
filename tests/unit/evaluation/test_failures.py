"""Failures that could have been saved are counted by how they came about, and by who saves them."""

from __future__ import annotations

from typing import Any

import pytest

from mist_interp.data.failure_types import DROPPED, NOT_REACHED
from mist_interp.evaluation import failures
from mist_interp.evaluation.failures import by_failure, way_of_failing
from tests.unit.evaluation.tables import twin


def rows() -> list[Any]:
    """none fails in units 0 to 6; 5 without a trigger; below 4 the object drops. steer saves 0, 1 and 4, spoils 8."""
    shadows = [
        twin("none", k, k < 7, tau=None if k == 5 else 40, collision_1n=k % 2 == 0, failure_type=ways()[k])
        for k in range(9)
    ]
    return shadows + [twin("steer", k, k not in (0, 1, 4, 7)) for k in range(9)]


def ways() -> list[str | None]:
    return [DROPPED] * 4 + [NOT_REACHED] * 3 + [None] * 2


def test_saved_units_are_counted_by_the_way_none_fails() -> None:
    found = by_failure(rows())
    assert list(found.index) == [DROPPED, NOT_REACHED]
    assert found.loc[DROPPED].to_dict() == {"units": 4, "with a contact": 2, "steer": 2}
    assert found.loc[NOT_REACHED].to_dict() == {"units": 2, "with a contact": 2, "steer": 1}


def test_crashed_episodes_are_not_counted() -> None:
    assert by_failure([twin("none", 0, True, status="error")]).empty


def test_a_row_says_how_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "objects_to_move", lambda suite, task: ("bowl",))
    facts = {"suite": "libero_spatial", "max_steps": 220, "releases": [], "provenance": {}}
    assert way_of_failing(facts | twin("none", 0, True), queries(0.9, 1.1)) == "carrying"
    assert way_of_failing(facts | twin("none", 0, True), queries(0.9, 1.1, 0.9)) == DROPPED
    assert way_of_failing(facts | twin("none", 0, True), queries(0.9, 0.9)) == NOT_REACHED
    assert way_of_failing(facts | twin("none", 0, False), queries(0.9, 1.1)) is None


def test_foreign_scenes_have_no_way_of_failing() -> None:
    assert way_of_failing(twin("none", 0, True) | {"suite": "kitchen_of_my_own"}, queries(0.9)) is None


def queries(*heights: float) -> list[dict[str, Any]]:
    """Query rows in which a bowl is at these heights (m) and the hand far from it."""
    still = {"chunk": [[0.0] * 7], "executed": [[0.0] * 6 + [-1.0]], "hand": [[0.0] * 13], "state_hash": ""}
    return [
        {**still, "query": k, "step": k, "objects": {"bowl": [1.0, 1.0, z, 0.0, 0.0, 0.0, 1.0]}}
        for k, z in enumerate(heights)
    ]
