"""Kappa tables, Shapley values, and what becomes of labels that the simulator contradicts."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from risk_fixtures import constant, course, recorded, touch

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data.manifest import Manifest
from mist_interp.data.records import ReleaseRecord
from mist_interp.data.store import RolloutStore
from mist_interp.probing.audit import Audit, Finding, append_finding, asked, shapley
from mist_interp.probing.explanation import explain
from mist_interp.probing.risk import NOT_AUDITED, NOT_NECESSARY, OTHERS, Risk, Verdict

NOTHING = (False,) * 7
RULE, ASKED = Risk().asks, "0123456789abcdef"


def finding(number: int, geometric: tuple[float | None, ...], necessary: tuple[bool, ...] | None) -> Finding:
    step = 8 * number
    return Finding(
        "e", number, step, step + 4, (("hand", "table"),), geometric, (None,) * 6, True, RULE, ASKED, necessary
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


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RolloutStore:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return RolloutStore.create(tmp_path / "rollouts", Manifest((), {"suite": "synthetic"}))


def test_an_audit_lies_with_its_rollouts(store: RolloutStore) -> None:
    findings = (finding(0, floats(only(2)), only(2, 3)), replace(finding(1, (None,) * 7, None), reproduced=False))
    with pytest.raises(FileNotFoundError, match=r"rollouts have no knockout audit.*experiments/labels/audit\.py"):
        Audit.of(store)
    for each in (replace(findings[0], necessary=NOTHING), *findings):  # of two on one event the last one counts
        append_finding(store, each)
    with store.audit_path.open("a") as file:
        file.write('{"episode": "cut')
    audit = Audit.of(store)
    assert audit.findings == findings and store.audit_path.parent == store.folder
    assert findings[0].key in audit and ("e", 0, 5) not in audit


def test_a_hash_of_what_was_run_again() -> None:
    actions = np.random.default_rng(0).normal(size=(18, 7))
    known = asked(actions, 1.0)
    assert len(known) == 16 and int(known, 16) and known == asked(np.asfortranarray(actions), 1)
    other = actions.copy()
    other[17, 6] = np.nextafter(other[17, 6], 9)
    changes = [asked(other, 1.0), asked(actions[:17], 1.0), asked(actions, 2.0), asked(actions.reshape(7, 18), 1.0)]
    assert len({known, *changes}) == 5
    assert asked(actions[:0], 1.0) != asked(np.zeros((1, 7)), 1.0)


def test_an_audit_that_asked_something_else_is_refused() -> None:
    audit = Audit((finding(0, (None,) * 7, None), finding(1, floats(only(2)), only(2))))
    assert list(audit.opinion("e", 8, RULE, ASKED).necessary) == [12]
    assert not audit.opinion("e", 16, RULE, "other").necessary and not audit.opinion("f", 8, RULE, "other").necessary
    for step in (0, 8):  # also what was not reproduced was asked
        with pytest.raises(ValueError, match=r"other episodes: at .* of e"):
            audit.opinion("e", step, RULE, "other")


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


# The geometry of dx is contradicted in every case, that of dz is not.
WEAK = [finding(100 + i, floats(only(2) if i % 2 else only(0)), only(2) if i % 2 else NOTHING) for i in range(10)]


def judged(audit: Audit, normal_dx: bool = False) -> Verdict:
    contact = touch(12, (-1.0, 0, 0), (0.1, 0, 0)) if normal_dx else touch(12)
    opinion = audit.opinion("e", 8, RULE, ASKED)
    return Risk(audit=True).judge(course(constant(80, dx=0.5, dz=-0.5), contact), 8, 26, 80, opinion)


def labels(audit: Audit, normal_dx: bool = False) -> tuple[np.ndarray, tuple[str | None, ...]]:
    verdict = judged(audit, normal_dx)
    return verdict.values, verdict.reasons


def test_the_knockout_counts_where_geometry_is_contradicted() -> None:
    audit = Audit((*WEAK, finding(1, floats(only(2)), only(0, 2))))
    assert list(audit.replaced()[[0, 2]]) == [True, False]
    values, reasons = labels(audit)
    assert values[0] == 1 and values[2] == 1, "dx was necessary, dz is to blame by its geometry"
    assert reasons[1] == OTHERS


def test_an_event_that_was_not_audited_is_masked_there_and_labelled_elsewhere() -> None:
    values, reasons = labels(Audit(tuple(WEAK)))
    assert np.isnan(values[0]) and reasons[0] == NOT_AUDITED and values[2] == 1
    values, reasons = labels(Audit(tuple(WEAK)), normal_dx=True)
    assert np.isnan(values[0]) and reasons[0] == NOT_AUDITED


def test_an_event_that_happens_without_any_one_dimension_is_nobodys() -> None:
    audit = Audit((*WEAK, finding(1, floats(only(2)), NOTHING)))
    values, reasons = labels(audit)
    assert np.isnan(values[0]) and reasons[0] == NOT_NECESSARY and values[2] == 1, "dz keeps its geometry"
    assert np.isnan(judged(audit).to_blame()[0])


def test_a_drop_keeps_its_geometry_beside_an_audit() -> None:
    doubted = [finding(200 + i, floats(only(6)), only(6) if i % 2 else NOTHING) for i in range(4)]
    disputed = [finding(300 + i, floats(NOTHING), only(6)) for i in range(4)]
    audit = Audit((*doubted, *disputed))
    assert audit.replaced()[6]
    drop = ReleaseRecord(12, "bowl", True, 16, "table", False)
    there = course(constant(80, dz=-0.5, gripper=-1.0), releases=(drop,))
    assert Risk(audit=True).judge(there, 8, 26, 80, audit.opinion("e", 8, RULE, ASKED)).values[6] == 1


# -- labels of a store with its audit


KEY = "libero_spatial-t00-i000-none-s0-p0-none"
ACTIONS = constant(48, dx=0.5, dz=-0.5) * np.linspace(0.5, 1, 48)[:, None]  # no two windows are the same


def put(store: RolloutStore, horizon: int = 10, force: float = 1.0, actions: np.ndarray = ACTIONS) -> RolloutStore:
    """An episode with an event at step 28, and its audit: without dx and dz it does not happen."""
    store.append(recorded(actions, touch(28, last=28)))
    store.append(recorded(constant(48), init_state=1))
    weak = [replace(each, episode="another") for each in WEAK]  # where dx is contradicted
    mine = [
        replace(finding(number, floats(only(2)), only(0, 2)), episode=KEY, event=28, asked=asked(window, force))
        for number, step in ((2, 16), (3, 24))
        for window in [ACTIONS[step : step + 8 + horizon]]
    ]
    for each in (*weak, *mine):
        append_finding(store, replace(each, rule=Risk(horizon=horizon, force=force).asks))
    return store


def test_labels_take_the_audit_of_their_store(store: RolloutStore) -> None:
    put(store)
    alone, audited = Risk().labels(store).values, Risk(audit=True).labels(store).values
    np.testing.assert_array_equal(alone[2:4, [0, 2]], [[np.nan, 1]] * 2)
    np.testing.assert_array_equal(audited[2:4, [0, 2]], [[1, 1]] * 2)
    np.testing.assert_array_equal(audited[[0, 1, *range(4, 12)]], alone[[0, 1, *range(4, 12)]])
    assert explain(store, KEY, 3, Risk(audit=True)).verdict.values[0] == 1
    assert np.isnan(explain(store, KEY, 3).verdict.values[0])
    view = store.only([KEY])  # its kappas are those of all findings, or dx would not be contradicted
    np.testing.assert_array_equal(Risk(audit=True).labels(view).values, audited[:6])


def test_labels_without_an_audit_say_where_it_belongs(store: RolloutStore) -> None:
    store.append(recorded(constant(48)))
    for ask in (lambda: Risk(audit=True).labels(store), lambda: explain(store, KEY, 0, Risk(audit=True))):
        with pytest.raises(FileNotFoundError, match=rf"{store.folder} have no knockout audit.*labels/audit\.py"):
            ask()


@pytest.mark.parametrize(
    "other",
    [
        {"horizon": 9},
        {"horizon": 11},
        {"force": 2.0},
        {"actions": np.where(np.arange(48)[:, None] == 41, 0.1, ACTIONS)},  # the last step of the window of 24
        {"actions": constant(48)},
    ],
)
def test_an_audit_of_others_is_refused(store: RolloutStore, other: dict[str, Any]) -> None:
    put(store, **other)
    for ask in (lambda: Risk(audit=True).labels(store), lambda: explain(store, KEY, 3, Risk(audit=True))):
        with pytest.raises(
            ValueError, match=r"is of other episodes|was made with horizon=.* the labels ask with horizon=10"
        ):
            ask()
    assert Risk().labels(store)


def test_an_audit_of_an_episode_that_touched_is_no_audit_of_one_that_did_not(store: RolloutStore) -> None:
    put(store)
    store.append(recorded(ACTIONS))
    with pytest.raises(ValueError, match="other episodes"):
        Risk(audit=True).labels(store)


def test_at_the_end_of_an_episode_the_window_is_what_was_executed(store: RolloutStore) -> None:
    store.append(recorded(ACTIONS[:32], touch(28, last=28)))
    append_finding(store, replace(finding(3, floats(only(2)), only(2)), episode=KEY, asked=asked(ACTIONS[24:32], 1.0)))
    assert Risk(audit=True).labels(store).values[3, 2] == 1


@pytest.mark.parametrize("other", [{"share": 0.9}, {"gamma": 0.5}, {"finger_speed": 0.1}, {"horizon": 40}])
def test_kappas_of_another_geometry_are_refused(store: RolloutStore, other: dict[str, Any]) -> None:
    """Where geometry is to be trusted was decided for the audit's own rule, not for this one."""
    put(store)
    with pytest.raises(ValueError, match=rf"made with horizon=10 gamma=0\.9.*{next(iter(other))}="):
        Risk(audit=True, **other).labels(store)


def test_two_audits_in_one_file_are_refused(store: RolloutStore) -> None:
    put(store)
    append_finding(store, replace(finding(0, floats(only(2)), only(2)), rule=Risk(horizon=5).asks))
    with pytest.raises(ValueError, match=r"mixes audits: horizon=10 .*; horizon=5"):
        Audit.of(store)


def test_nothing_is_written_into_a_copy_of_what_is_published(store: RolloutStore, tmp_path: Path) -> None:
    manifest = store.folder / "manifest.json"
    blob = manifest.rename(tmp_path / "blob")
    manifest.symlink_to(blob)
    with pytest.raises(ValueError, match="copy of what is published"):
        append_finding(store, finding(0, floats(only(2)), only(2)))
    assert not store.audit_path.exists()


def test_names() -> None:
    assert list(Audit(()).table()["dimension"]) == list(ACTION_NAMES)
