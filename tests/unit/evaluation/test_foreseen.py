"""What the gate said is held against what came, per dimension, and masked where nothing can be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mist_interp.evaluation.foreseen import foreseen, risk_auc
from mist_interp.evaluation.metrics import pair
from mist_interp.evaluation.summary import summarize
from mist_interp.probing.risk import Risk
from mist_interp.report.tables import risk_table
from tests.unit.evaluation.tables import episode, table
from tests.unit.probing.risk_fixtures import constant, course, touch

CHUNK = 8


def queries(actions: np.ndarray, risk: dict[str, float] | None) -> list[dict[str, Any]]:
    """Query rows of an episode, as they come back from a file."""
    hand = course(actions).hand
    return [
        {
            "step": step,
            "risk": risk,
            "chunk": np.zeros((CHUNK, 7)).tolist(),
            "executed": actions[step : step + CHUNK].tolist(),
            "hand": hand[step : step + CHUNK].tolist(),
        }
        for step in range(0, len(actions), CHUNK)
    ]


def test_labels_are_those_of_the_definition_for_what_was_executed() -> None:
    actions, contact = constant(80, dz=-0.5), touch(30, last=30)
    said = foreseen(queries(actions, {"gripper": 0.5, "dz": 0.2}), [contact], (), 80)
    assert said is not None and said["dims"] == ["dz", "gripper"] and said["risk"][0] == [0.2, 0.5]
    verdicts = [Risk().judge(course(actions, contact), step, step + 18, 80) for step in range(0, 80, CHUNK)]
    for contrast, values in (
        ("detection", [v.values for v in verdicts]),
        ("attribution", [v.to_blame() for v in verdicts]),
    ):
        found = np.array(said[contrast], dtype=float)
        np.testing.assert_array_equal(found, np.stack(values)[:, [2, 6]])
    assert [row[0] for row in said["detection"]] == [0, 0, 1, 1, None, 0, 0, 0, None, None]


@pytest.mark.parametrize("risk", [None, {"failure": 0.3}])
def test_a_risk_of_no_dimension_is_not_judged(risk: Any) -> None:
    assert foreseen(queries(constant(16), risk), (), (), 16) is None


def said(risk: list[float], label: list[int | None], dims: tuple[str, ...] = ("dz",)) -> dict[str, Any]:
    return {
        "dims": list(dims),
        "risk": [[value] for value in risk],
        "detection": [[value] for value in label],
        "attribution": [[None]] * len(risk),
    }


def episodes(arm: str, bad: int, good: int, high: float = 0.9) -> list[dict[str, Any]]:
    """Per episode three queries: masked with a risk of 1, then one that is judged, then a safe one."""
    return [
        episode(arm, k % 6, k, foreseen=said([1.0, high if k < bad else 0.3, 0.1], [None, int(k < bad), 0]))
        for k in range(bad + good)
    ]


def test_an_auc_counts_pairs_of_queries_and_leaves_masked_ones_out() -> None:
    found = risk_auc(pair(table(*episodes("none", 20, 20, high=0.2))), "none", draws=200)["dz"]["detection"]
    # 20 positives at 0.2, 40 safe queries at 0.1 below them and 20 at 0.3 above.
    assert found["value"] == pytest.approx(40 / 60) and found["low"] <= found["value"] <= found["high"]
    assert (found["positive_episodes"], found["negative_episodes"], found["queries"]) == (20, 40, 80)


def test_the_controls_know_the_clock_and_the_other_episodes_of_the_task() -> None:
    """Positive at the second query of every episode, or in every episode of tasks 0 to 2."""
    late = [episode("none", k % 6, k, foreseen=said([0.5] * (3 - k % 2), [0, 1, 0][: 3 - k % 2])) for k in range(40)]
    tasks = [episode("none", k % 6, k, foreseen=said([0.5] * 2, [int(k % 6 < 3)] * 2)) for k in range(60)]
    found = [risk_auc(pair(table(*rows)), "none", draws=20)["dz"]["detection"] for rows in (late, tasks)]
    assert [one["value"] for one in found] == [0.5, 0.5]
    # Of the two kinds of queries without a contact the earlier ones, 40 of 60, lie below.
    assert found[0]["controls"]["step counter"] == pytest.approx(40 / 60)
    assert found[1]["controls"] == {"step counter": 0.5, "task id": 1.0}
    alone = [episode("none", k, k, foreseen=said([0.5] * 2, [int(k < 20)] * 2)) for k in range(40)]
    rates = risk_auc(pair(table(*alone)), "none", draws=20)["dz"]["detection"]["controls"]
    assert rates["task id"] == 0.5, "an episode does not tell of itself"


def test_too_few_episodes_give_no_number_but_their_count() -> None:
    found = risk_auc(pair(table(*episodes("none", 19, 30))), "none", draws=50)["dz"]
    assert found["detection"]["value"] is None and found["detection"]["positive_episodes"] == 19
    assert found["attribution"] == {
        "value": None,
        "low": None,
        "high": None,
        "controls": {},
        "positive_episodes": 0,
        "negative_episodes": 0,
        "queries": 0,
    }


def test_the_summary_has_it_per_arm_and_the_report_a_row_per_arm() -> None:
    rows = episodes("none", 20, 20) + episodes("steer", 20, 20, high=0.05)
    summary = summarize(table(*rows), ["none", "steer"], draws=50)
    arms = summary["risk_auc"]["arms"]
    assert arms["none"]["dz"]["detection"]["value"] == 1.0 and arms["steer"]["dz"]["detection"]["value"] == 0.0
    none, steer = risk_table(summary).split("<tr>")[2:]
    assert (
        "1.00<small>1.00 – 1.00</small>" in none and "<small>20 against 40</small>" in none and "0.00<small>" in steer
    )
    assert none.count("–<small>0 against 0") == 1


def test_without_a_risk_there_is_nothing_to_say() -> None:
    assert summarize(table(episode("none", 0, 0)), ["none"], draws=10)["risk_auc"] is None
    rows = [episode("none", 0, k, foreseen=None) for k in range(3)]
    assert summarize(table(*rows), ["none"], draws=10)["risk_auc"] is None
