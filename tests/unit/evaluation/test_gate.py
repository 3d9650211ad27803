"""The gate as rules on numbers: trigger of the conformal alarm, hysteresis, budget, benefit, forks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.core.errors import UnknownName
from mist_interp.data.records import Unit
from mist_interp.evaluation.gate import Gate, see
from mist_interp.probing.conformal import ConformalAlarm


@dataclass
class Script:
    """A risk that is read off a list; its state is the place in it."""

    rows: Sequence[Sequence[float]]
    outputs: tuple[str, ...] = ("dx", "dz")
    sites: tuple[Any, ...] = ("risk site",)
    trained_on: frozenset[Any] = frozenset()

    def start(self) -> int:
        return 0

    def step(self, cache: Any, state: int) -> tuple[Any, int]:
        return np.array(self.rows[state], dtype=float), state + 1

    def config(self) -> dict[str, Any]:
        return {"script": True}

    def check_units(self, units: Any) -> None:
        for unit in units:
            if unit.init_state == 7:
                raise ValueError("fitted on 7")


@dataclass
class Expected:
    """A benefit that is read off a list; 0.5 is enough."""

    values: list[float]
    sites: tuple[Any, ...] = ("of the benefit",)

    def of(self, cache: Any) -> float:
        return self.values.pop(0)

    def allows(self, gain: float) -> bool:
        return gain > 0.5

    def config(self) -> dict[str, Any]:
        return {"expected": len(self.values)}

    def check_units(self, units: Any) -> None:
        raise ValueError("taught the benefit")


class Asked:
    """Remembers which sites were asked for."""

    def __init__(self) -> None:
        self.names: list[Any] = []

    def run_with_cache(self, inputs: Any, names: Any) -> tuple[str, dict[str, Any]]:
        self.names = list(names)
        return "clean", {"captured": True}


def alarm(limits: tuple[float, ...], joint: str = "split", **changes: Any) -> ConformalAlarm:
    band = {"centre": np.zeros((1, 2)), "width": np.ones((1, 2)), **changes}
    return ConformalAlarm(0.1, 20, ("dx", "dz"), joint, limits, **band)


def run(gate: Gate, n: int) -> list[Any]:
    vla: Any = Asked()
    gate.begin()
    return [gate.see(vla, None) for _ in range(n)]  # type: ignore[arg-type]


def column(rows: Sequence[float]) -> list[tuple[float, float]]:
    return [(value, 0.0) for value in rows]


def test_the_alarm_of_each_dimension_has_its_own_limit() -> None:
    gate = Gate(Script([(0.4, 0.4), (0.6, 0.4), (0.6, 0.9), (0.1, 0.9)]), alarm((0.5, 0.8)))
    seen = run(gate, 4)
    assert [look.flagged for look in seen] == [(), ("dx",), ("dx", "dz"), ("dz",)]
    assert [look.fired for look in seen] == [False, True, True, True]
    assert seen[1].score == pytest.approx(0.1) and seen[1].risk == {"dx": 0.6, "dz": 0.4} and seen[1].clean == "clean"
    assert seen[2].facts["on"] == ["dx", "dz"]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.floats(0, 1, allow_nan=False)] * 2), min_size=1, max_size=12),
    limits=st.tuples(*[st.floats(0, 1)] * 2),
    release=st.floats(0, 1),
    joint=st.sampled_from(["split", "max"]),
    band=st.integers(1, 4),
)
def test_the_first_active_query_is_the_one_that_the_conformal_alarm_promises_of(
    rows: list[tuple[float, float]], limits: tuple[float, float], release: float, joint: str, band: int
) -> None:
    draw = np.random.default_rng(band)
    centre, width = draw.random((band, 2)), 0.1 + draw.random((band, 2))
    calibrated = alarm(limits if joint == "split" else limits[:1], joint, centre=centre, width=width)
    gate = Gate(Script(rows), calibrated, release)
    fired = [look.fired for look in run(gate, len(rows))]
    assert calibrated.first(np.array(rows)) == (fired.index(True) if any(fired) else None)


def test_hysteresis_keeps_the_alarm_on_until_the_risk_is_well_below() -> None:
    rows = column([0.6, 0.45, 0.35, 0.45, 0.55])
    assert [look.fired for look in run(Gate(Script(rows), 0.5), 5)] == [True, False, False, False, True]
    assert [look.fired for look in run(Gate(Script(rows), 0.5, release=0.1), 5)] == [True, True, False, False, True]


def test_budgets_of_queries_and_of_interventions() -> None:
    rows = column([0.9, 0.9, 0.1, 0.9, 0.9, 0.9])
    queries = run(Gate(Script(rows), 0.5, max_queries=3), 6)
    assert [look.fired for look in queries] == [True, True, False, True, False, False]
    assert queries[4].facts["spent"] and queries[4].flagged == ("dx",)
    once = run(Gate(Script(rows), 0.5, max_interventions=1), 6)
    assert [look.fired for look in once] == [True, True, False, False, False, False]
    assert not any(look.fired for look in run(Gate(Script(rows), 0.5, max_queries=0), 6))


def test_it_opens_only_where_acting_is_expected_to_help() -> None:
    risks = column([0.1, 0.9, 0.9, 0.1, 0.9])
    for first, opened in ((0.7, [False, True, True, False, True]), (0.2, [False] * 5)):
        gate = Gate(Script(risks), 0.5, benefit=Expected([first, 1 - first, 1 - first]))
        seen = run(gate, 5)  # asked once: not where there is no alarm, and its first word stands
        assert [look.fired for look in seen] == opened
        assert [look.facts.get("benefit") for look in seen] == [None, first, None, None, None]
        assert [look.fired for look in run(gate, 5)] != opened  # asked anew in the next episode
    with pytest.raises(ValueError, match="NaN"):
        run(Gate(Script(column([0.9])), 0.5, benefit=Expected([float("nan")])), 1)


def test_units_that_taught_the_benefit_are_refused() -> None:
    with pytest.raises(ValueError, match="taught the benefit"):
        Gate(Script([]), 0.5, benefit=Expected([])).check_units([Unit("libero_spatial", 0, 0)])


def test_an_episode_goes_on_from_what_was_remembered_and_begins_anew() -> None:
    rows = column([0.6, 0.45, 0.9, 0.9, 0.9])
    gate, vla = Gate(Script(rows), 0.5, release=0.2, max_queries=3), Asked()
    whole = [look.fired for look in run(gate, 5)]
    gate.begin()
    for _ in range(2):
        gate.see(vla, None)  # type: ignore[arg-type]
    kept = gate.score.memory()
    for _ in range(3):
        gate.see(vla, None)  # type: ignore[arg-type]
    gate.score.recall(kept)
    assert [gate.look(vla, None)[1] for _ in range(3)] == whole[2:]  # type: ignore[arg-type]
    assert [look.fired for look in run(gate, 5)] == whole


def test_it_captures_what_the_arm_and_the_scorer_ask_for() -> None:
    gate, vla = Gate(Script(column([0.9])), 0.5, benefit=Expected([1.0])), Asked()
    look = see(gate, vla, None, ("of the arm",))  # type: ignore[arg-type]
    assert vla.names == ["risk site", "of the arm", "of the benefit"] and look.cache == {"captured": True}
    assert see(None, vla, None)[:3] == (None, False, None)  # type: ignore[arg-type]


def test_wrong_gates_are_refused() -> None:
    with pytest.raises(ValueError, match="release=-1"):
        Gate(Script([]), 0.5, release=-1)
    with pytest.raises(ValueError, match="max_queries=-1"):
        Gate(Script([]), 0.5, max_queries=-1)
    with pytest.raises(UnknownName, match="dz"):
        Gate(Script([], outputs=("dx", "dy")), alarm((0.5, 0.5)))
    with pytest.raises(ValueError, match="dx is NaN at query 0"):
        run(Gate(Script(column([float("nan")])), 0.5), 1)
    with pytest.raises(ValueError, match="fitted on 7"):
        Gate(Script([]), 0.5).check_units([Unit("s", 0, 7)])
    shared = ConformalAlarm(
        0.1, 20, ("dx",), "max", (0.5,), np.zeros((1, 1)), np.ones((1, 1)), calibrated_on=frozenset({("s", 0, 3)})
    )
    with pytest.raises(ValueError):
        Gate(Script([], outputs=("dx",)), shared).check_units([Unit("s", 0, 3)])


def test_its_settings_are_data() -> None:
    import json

    gate = Gate(Script([]), alarm((0.5, float("inf"))), 0.1, 3, 1)
    text = json.dumps(gate.config(), allow_nan=False)
    assert '"max_queries": 3' in text and '"alpha": 0.1' in text
    assert gate.config() != Gate(Script([]), alarm((0.5, 0.6)), 0.1, 3, 1).config()


def test_an_intervention_ends_after_its_longest_and_the_next_one_waits_for_the_pause() -> None:
    always = column([0.9] * 9)
    fired = [look.fired for look in run(Gate(Script(always), 0.5, longest=2, pause=3), 9)]
    assert fired == [True, True, False, False, False, True, True, False, False]
    early = column([0.9, 0.1, 0.9, 0.9, 0.9, 0.9])  # it ends by itself, and the pause counts from there
    fired = [look.fired for look in run(Gate(Script(early), 0.5, longest=2, pause=2), 6)]
    assert fired == [True, False, False, True, True, False]
    assert [look.fired for look in run(Gate(Script(always), 0.5, longest=1), 4)] == [True, False, True, False]
    assert "spent" in run(Gate(Script(always), 0.5, longest=1), 2)[1].facts
    for wrong in ({"longest": 0}, {"pause": -1}):
        with pytest.raises(ValueError, match="longest="):
            Gate(Script(always), 0.5, **wrong)


def test_an_alarm_that_was_set_for_another_risk_is_refused() -> None:
    fitted = Script([[0.1, 0.2]], trained_on=frozenset({("libero_spatial", 0, 3)}))
    with pytest.raises(ValueError, match="fitted on 0 start states, this one was fitted on 1"):
        Gate(fitted, alarm((0.5, 0.5)))
    Gate(fitted, alarm((0.5, 0.5), trained_on=fitted.trained_on))
    Gate(fitted, 0.5)


@pytest.mark.parametrize(("row", "nearest"), [([0.4, 0.3], "dx"), ([0.1, 0.7], "dz"), ([0.1, 0.3], "dz")])
def test_the_output_nearest_to_its_alarm_is_told_whether_that_is_on_or_not(row: Any, nearest: str) -> None:
    gate = Gate(Script([row]), alarm((0.5, 0.6)))
    assert gate.judge(np.array(row), gate.memory())[1] == nearest
