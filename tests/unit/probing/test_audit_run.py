"""An episode is audited: every event of every query, in a world whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from risk_fixtures import constant, recorded, touch

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data.records import EpisodeRecord
from mist_interp.probing.audit import Audit, Finding, asked
from mist_interp.probing.audit_run import audit_episode
from mist_interp.probing.risk import Risk
from tests.unit.libero.bumps import Bump, Bumps

DX, DZ = 0, 2
RISK = Risk(horizon=10)
# The sums of dx and dz grow by one per control step; the gripper stays closed.
EPISODE_ACTIONS = constant(40, dx=1.0, dz=1.0)
# Two events of one pair: at step 10 because of dx, at step 20 because of dz, by the other finger.
FIRST, SECOND = Bump((DX,), 11, 13), Bump((DZ,), 21, 23, robot="right")


def episode(*steps: int, kind: str = "finger-table") -> EpisodeRecord:
    return recorded(EPISODE_ACTIONS, *(touch(step, last=step + 1, kind=kind) for step in steps))


def found(findings: list[Finding]) -> dict[tuple[int, int], set[str] | None]:
    """Query and event -> dimensions that are necessary."""
    return {
        (each.query, each.event): None
        if each.necessary is None
        else {name for name, needed in zip(ACTION_NAMES, each.necessary, strict=True) if needed}
        for each in findings
    }


def test_events_of_one_pair_in_one_window_have_verdicts_of_their_own() -> None:
    """Windows of the queries at 0, 8 and 16 begin the events at 10, at 10 and 20, and at 20."""
    findings = list(audit_episode(Bumps((FIRST, SECOND)), episode(10, 20), RISK))
    expected = {(0, 10): {"dx"}, (1, 10): {"dx"}, (1, 20): {"dz"}, (2, 20): {"dz"}}
    assert found(findings) == expected
    assert [(each.step, each.reproduced) for each in findings] == [(0, True), (8, True), (8, True), (16, True)]
    assert {(each.step, each.asked) for each in findings} == {
        (step, asked(EPISODE_ACTIONS[step : step + 18], 1.0)) for step in (0, 8, 16)
    }


def test_a_query_is_run_once_for_all_its_events() -> None:
    """Three queries; the actions use dx, dz and the gripper: four worlds of a window each, and the way there."""
    env = Bumps((FIRST, SECOND))
    list(audit_episode(env, episode(10, 20), RISK))
    assert env.steps == 3 * 4 * 18 + 16
    env = Bumps((FIRST, SECOND))
    list(audit_episode(env, episode(10, 20), RISK, subsets=True))
    assert env.steps == 3 * 8 * 18 + 16


def test_shapley_values_are_those_of_the_event() -> None:
    findings = list(audit_episode(Bumps((FIRST, SECOND)), episode(10, 20), RISK, subsets=True))
    for each in findings:
        place = DX if each.event == 10 else DZ
        assert each.shapley is not None and each.necessary == tuple(np.arange(7) == place)
        np.testing.assert_allclose(each.shapley, np.arange(7) == place, atol=1e-12)


def test_what_does_not_come_again_is_said_and_not_judged() -> None:
    """A record of a table touched at step 14, where nothing touches, and of a box that is not there at step 20."""
    findings = list(audit_episode(Bumps((FIRST, SECOND)), episode(10, 14), RISK))
    assert found(findings) == {(0, 10): {"dx"}, (1, 10): {"dx"}, (0, 14): None, (1, 14): None}
    assert [each.reproduced for each in findings] == [True, False] * 2
    assert found(list(audit_episode(Bumps((SECOND,)), episode(20, kind="finger-box"), RISK, subsets=True))) == {
        (1, 20): None,
        (2, 20): None,
    }


def test_an_event_is_the_run_that_it_falls_into() -> None:
    """The right finger comes down in a break of two steps: one run with the left one's."""
    right = Bump((DX,), 15, 17, robot="right")
    findings = list(audit_episode(Bumps((FIRST, right, SECOND)), episode(10, 14, 20), RISK))
    assert found(findings)[0, 10] == found(findings)[0, 14] == {"dx"}
    assert found(findings)[1, 20] == {"dz"}


def test_what_is_known_is_not_made_again() -> None:
    findings = list(audit_episode(Bumps((FIRST, SECOND)), episode(10, 20), RISK))
    env = Bumps((FIRST, SECOND))
    assert not list(audit_episode(env, episode(10, 20), RISK, skip=Audit(tuple(findings)))) and env.steps == 0
    again = list(audit_episode(env, episode(10, 20), RISK, skip=Audit((*findings[:2], findings[3]))))
    assert again == [findings[2]] and env.steps == 4 * 18 + 8


def test_findings_with_another_window_are_not_gone_on_with() -> None:
    findings = tuple(audit_episode(Bumps((FIRST, SECOND)), episode(10, 20), RISK))
    env = Bumps((FIRST, SECOND))
    for known, risk in (
        (findings, Risk(horizon=9)),
        (findings, Risk(horizon=10, force=2.0)),
        ((replace(findings[0], asked="other"),), RISK),
    ):
        with pytest.raises(ValueError, match=r"made with horizon|is of other episodes"):
            list(audit_episode(env, episode(10, 20), risk, skip=Audit(known)))
    assert env.steps == 0
