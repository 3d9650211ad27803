"""Kappa tables, Shapley values, and what becomes of labels that the simulator contradicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from risk_fixtures import constant, course, touch

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data.records import ReleaseRecord
from mist_interp.probing.audit import Audit, Finding, append_finding, shapley
from mist_interp.probing.risk import NOT_AUDITED, NOT_NECESSARY, OTHERS, Risk

NOTHING = (False,) * 7


def finding(number: int, geometric: tuple[float | None, ...], necessary: tuple[bool, ...] | None) -> Finding:
    return Finding(
        "e", number, 8 * number, 8 * number + 4, (("hand", "table"),), geometric, (None,) * 6, True, necessary
    )


def only(*places: int) -> tuple[bool, ...]:
    return tuple(place in places for place in range(7))


def floats(marks: tuple[bool, ...]) -> tuple[float | None, ...]:
    return tuple(float(mark) for mark in marks)


def test_kappa_by_hand() -> None:
    """dz: both 20, only geometry 5, only knockout 10, neither 15: kappa 0.4 (the textbook's example)."""
    cases = [(only(2), only(2))] * 20 + [(only(2), NOTHING)] * 5 + [(NOTHING, only(2))] * 10 + [(NOTHING, NOTHING)] * 15
    audit = Audit(tuple(finding(i, floats(g), n) for i, (g, n) in enumerate(cases)))
    row = audit.table().set_index("dimension").loc["dz"]
    assert row["kappa"] == pytest.approx(0.4) and row["agreement"] == pytest.approx(0.7)
    assert (row["rows"], row["geometric"], row["necessary"], row["both"], row["label"]) == (50, 25, 30, 20, "geometric")
    assert np.isnan(audit.kappas()[0]) and not audit.replaced()[[0, 2]].any()


def test_kappa_is_nothing_where_one_side_never_changes() -> None:
    cases = [(NOTHING, only(1))] * 3 + [(NOTHING, NOTHING)] * 30
    audit = Audit(tuple(finding(i, floats(g), n) for i, (g, n) in enumerate(cases)))
    assert audit.kappas()[1] == 0 and audit.replaced()[1] and not audit.replaced()[0]


def test_what_was_not_reproduced_or_not_attributed_is_not_counted() -> None:
    audit = Audit((finding(0, floats(only(2)), None), finding(1, (None,) * 6 + (0.0,), only(2))))
    assert list(audit.table()["rows"]) == [0] * 6 + [1]


def test_an_audit_survives_its_file(tmp_path: Path) -> None:
    findings = (finding(0, floats(only(2)), only(2, 3)), replace(finding(1, (None,) * 7, None), reproduced=False))
    for each in findings:
        append_finding(tmp_path / "audit.jsonl", each)
    with (tmp_path / "audit.jsonl").open("a") as file:
        file.write('{"episode": "cut')
    assert Audit.read(tmp_path / "audit.jsonl").findings == findings
    with pytest.raises(FileNotFoundError, match="no knockout audit"):
        Audit.read(tmp_path / "nothing")


# -- Shapley values


@given(st.lists(st.booleans(), min_size=16, max_size=16))
@settings(deadline=None)
def test_shapley_against_all_orders(happens: list[bool]) -> None:
    expected = np.zeros(4)
    for order in permutations(range(4)):
        active = 0
        for dim in order:
            expected[dim] += happens[active | 1 << dim] - happens[active]
            active |= 1 << dim
    values = shapley(happens)
    np.testing.assert_allclose(values, expected / math.factorial(4), atol=1e-12)
    assert values.sum() == pytest.approx(happens[-1] - happens[0])


def test_shapley_by_hand() -> None:
    """Two dimensions that are needed together share; one that does nothing has nothing."""
    values = shapley([(subset & 0b101) == 0b101 for subset in range(128)])
    np.testing.assert_allclose(values, [0.5, 0, 0.5, 0, 0, 0, 0], atol=1e-12)
    with pytest.raises(ValueError, match="not all subsets"):
        shapley([True] * 100)


# -- labels


@pytest.fixture
def audited(tmp_path: Path) -> Callable[..., Risk]:
    def make(*findings: Finding) -> Risk:
        path = tmp_path / "audit.jsonl"
        for each in findings:
            append_finding(path, each)
        return Risk(audit=str(path))

    return make


# The geometry of dx is contradicted in every case, that of dz is not.
WEAK = [finding(100 + i, floats(only(2) if i % 2 else only(0)), only(2) if i % 2 else NOTHING) for i in range(10)]


def labels(risk: Risk, normal_dx: bool = False) -> tuple[np.ndarray, tuple[str | None, ...]]:
    contact = touch(12, (-1.0, 0, 0), (0.1, 0, 0)) if normal_dx else touch(12)
    opinion = Audit.read(risk.audit).opinion("e", 8)
    verdict = risk.judge(course(constant(80, dx=0.5, dz=-0.5), contact), 8, 26, 80, opinion)
    return verdict.values, verdict.reasons


def test_the_knockout_counts_where_geometry_is_contradicted(audited: Callable[..., Risk]) -> None:
    risk = audited(*WEAK, finding(1, floats(only(2)), only(0, 2)))
    assert list(Audit.read(risk.audit or "").replaced()[[0, 2]]) == [True, False]
    values, reasons = labels(risk)
    assert values[0] == 1 and values[2] == 1, "dx was necessary, dz is to blame by its geometry"
    assert reasons[1] == OTHERS


def test_an_event_that_was_not_audited_is_masked_there_and_labelled_elsewhere(audited: Callable[..., Risk]) -> None:
    values, reasons = labels(audited(*WEAK))
    assert np.isnan(values[0]) and reasons[0] == NOT_AUDITED and values[2] == 1
    values, reasons = labels(audited(), normal_dx=True)
    assert np.isnan(values[0]) and reasons[0] == NOT_AUDITED


def test_an_event_that_happens_without_any_one_dimension_is_nobodys(audited: Callable[..., Risk]) -> None:
    risk = audited(*WEAK, finding(1, floats(only(2)), NOTHING))
    values, reasons = labels(risk)
    assert np.isnan(values[0]) and reasons[0] == NOT_NECESSARY and values[2] == 1, "dz keeps its geometry"
    opinion = Audit.read(risk.audit or "").opinion("e", 8)
    verdict = risk.judge(course(constant(80, dx=0.5, dz=-0.5), touch(12)), 8, 26, 80, opinion)
    assert np.isnan(verdict.to_blame()[0])


def test_a_drop_keeps_its_geometry_beside_an_audit(audited: Callable[..., Risk]) -> None:
    doubted = [finding(200 + i, floats(only(6)), only(6) if i % 2 else NOTHING) for i in range(4)]
    disputed = [finding(300 + i, floats(NOTHING), only(6)) for i in range(4)]
    risk = audited(*doubted, *disputed)
    audit = Audit.read(risk.audit or "")
    assert audit.replaced()[6]
    drop = ReleaseRecord(12, "bowl", True, 16, "table", False)
    there = course(constant(80, dz=-0.5, gripper=-1.0), releases=(drop,))
    assert risk.judge(there, 8, 26, 80, audit.opinion("e", 8)).values[6] == 1


def test_names() -> None:
    assert list(Audit(()).table()["dimension"]) == list(ACTION_NAMES)
