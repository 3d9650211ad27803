"""Causal recovery, harm and net benefit: counted by hand, at their edges, and against simulated truth."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from mist_interp.evaluation.metrics import pair
from mist_interp.evaluation.summary import summarize
from mist_interp.evaluation.twin_metrics import (
    OUTCOMES,
    Twins,
    causal_recovery,
    harm_rate,
    net_benefit,
    net_benefit_of_all,
    pair_kinds,
    summarize_twins,
    twins_of,
)
from tests.unit.evaluation.tables import table, twin

FAILURE, EVENT = OUTCOMES


def twins(*units: tuple[bool, bool, bool]) -> Twins:
    triggered, bad_reference, bad_arm = np.array(units, dtype=bool).reshape(-1, 3).T
    return Twins(triggered, bad_reference, bad_arm, np.arange(len(units)) % 5)


# 3 saved of 4 lost, 1 spoilt of 3 good, and two units without a trigger of which one is better under the arm.
COUNTED = twins(
    (True, True, False),
    (True, True, False),
    (True, True, False),
    (True, True, True),
    (True, False, True),
    (True, False, False),
    (True, False, False),
    (False, True, False),
    (False, True, True),
)


def test_rates_are_what_one_counts() -> None:
    assert (causal_recovery(COUNTED, draws=50).value, causal_recovery(COUNTED, draws=50).n) == (3 / 4, 4)
    assert (harm_rate(COUNTED, draws=50).value, harm_rate(COUNTED, draws=50).n) == (1 / 3, 3)
    assert net_benefit(COUNTED, draws=50).value == pytest.approx((3 - 1) / 7)
    assert net_benefit_of_all(COUNTED, draws=50).value == pytest.approx((4 - 1) / 9)


@pytest.mark.parametrize(
    ("units", "defined"),
    [
        ([(False, True, False)] * 3, {"all"}),  # no trigger: nothing is known but the intention to treat
        ([(True, False, True), (True, False, False)], {"harm", "net", "all"}),  # no bad twin: harm is still known
        ([(True, True, True)], {"recovery", "net", "all"}),
        ([], set()),
    ],
)
def test_a_rate_over_nothing_is_undefined_not_zero_and_not_one(units: list[Any], defined: set[str]) -> None:
    functions = {"recovery": causal_recovery, "harm": harm_rate, "net": net_benefit, "all": net_benefit_of_all}
    estimates = {name: function(twins(*units), draws=50) for name, function in functions.items()}
    assert {name for name, estimate in estimates.items() if estimate.value is not None} == defined
    for name in functions.keys() - defined:
        assert (estimates[name].low, estimates[name].high, estimates[name].n) == (None, None, 0)


def test_an_event_counts_from_the_trigger_of_none_on_in_every_arm() -> None:
    rows = table(
        twin("none", 0, False, tau=40, touches=(39,)),  # before: not bad
        twin("arm", 0, False, tau=None, touches=(40,)),  # at the trigger of none, which is what counts: bad
        twin("none", 1, False, tau=40, touches=(10, 41)),
        twin("arm", 1, False, tau=40, touches=(10,)),
        twin("none", 2, False, tau=None, touches=(3,)),  # no trigger: anywhere
        twin("arm", 2, False, tau=None),
    )
    rows.loc[1, "events"][0]["peak_force"] = 1.0
    paired = pair(rows)
    seen = twins_of(paired.of("arm"), paired.of("none"), EVENT)
    assert seen.triggered.tolist() == [True, True, False]
    assert seen.bad_reference.tolist() == [False, True, True]
    assert seen.bad_arm.tolist() == [True, False, False]
    rows.loc[1, "events"][0]["peak_force"] = 0.99
    assert not twins_of(pair(rows).of("arm"), paired.of("none"), EVENT).bad_arm[0]
    stored = rows.assign(events=[json.dumps(events) for events in rows["events"]])
    assert twins_of(pair(stored).of("arm"), pair(stored).of("none"), EVENT).bad_reference.tolist() == [
        False,
        True,
        True,
    ]


def test_pairs_are_told_apart_by_what_came_before_the_trigger() -> None:
    rows = table(
        *(twin("none", unit, True, tau=None if unit == 4 else 8) for unit in range(6)),
        twin("arm", 0, True, tau=8),
        twin("arm", 1, True, tau=8) | {"start": "replay"},
        twin("arm", 2, True, tau=8) | {"start": "reset"},
        twin("arm", 3, True, tau=8) | {"start": "reset", "prefix_hash": "other"},
        twin("arm", 4, True, tau=None) | {"start": "copy"},
        twin("arm", 5, True, tau=8) | {"start": "fork", "prefix_hash": None},
    )
    paired = pair(rows)
    kinds = pair_kinds(paired.of("arm"), paired.of("none")).tolist()
    assert kinds == ["forked", "forked", "matched", "lost", "untriggered", "lost"]
    old = paired.rows.drop(columns=["start", "prefix_hash"])
    assert pair_kinds(old[old["arm"] == "arm"], paired.of("none")).tolist() == [*["lost"] * 4, "untriggered", "lost"]


def study() -> pd.DataFrame:
    """Of 40 triggered units 30 fail under none; the arm saves 20 of them and spoils 2, the placebo 8 and 2."""
    rows = [twin("none", unit, unit < 30) for unit in range(40)]
    rows += [twin("steer", unit, 20 <= unit < 32) for unit in range(40)]
    rows += [twin("random", unit, 8 <= unit < 32) for unit in range(40)]
    rows += [twin(arm, unit, False, tau=None) for arm in ("none", "steer", "random") for unit in range(40, 60)]
    return table(*rows)


def test_a_study_is_summarized() -> None:
    summary = summarize(study(), ["none", "steer", "random"], placebos=["random"], draws=50)["twins"]
    steer = summary["arms"]["steer"]
    assert steer["pairs"] == {"forked": 40, "matched": 0, "untriggered": 20, "lost": 0}
    failure = steer["failure"]
    assert [failure[k] for k in ("bad_under_reference", "recovered", "good_under_reference", "harmed")] == [
        30,
        20,
        10,
        2,
    ]
    assert failure["causal_recovery"]["value"] == pytest.approx(2 / 3)
    assert failure["harm_rate"]["value"] == pytest.approx(0.2)
    assert failure["net_benefit"]["value"] == pytest.approx(18 / 40)
    assert failure["net_benefit_all"]["value"] == pytest.approx(18 / 60)
    assert steer["event"]["causal_recovery"]["value"] is None and steer["event"]["harm_rate"]["value"] == 0
    # 10 of the 40 triggered units succeed under none: what raw RR would be without doing anything.
    assert summary["spontaneous_recovery_rate"]["value"] == pytest.approx(10 / 40)
    assert summary["triggered"] == 40
    # 10 of those 40 and the 20 without a trigger go well and touch nothing.
    assert summary["false_trigger_rate"]["value"] == pytest.approx(10 / 30) and summary["false_trigger_rate"]["n"] == 30


def test_tests_are_those_of_statsmodels() -> None:
    summary = summarize_twins(pair(study(), ["none", "steer", "random"]), "none", ["random"], draws=50)
    rows = [row for row in summary["comparisons"] if row["outcome"] == "failure"]
    assert [(row["arm"], row["reference"], row["better_here"], row["better_there"]) for row in rows] == [
        ("steer", "none", 20, 2),
        ("random", "none", 8, 2),
        ("steer", "random", 12, 0),
    ]
    expected = [mcnemar([[0, row["better_here"]], [row["better_there"], 0]], exact=True).pvalue for row in rows]
    assert [row["p_mcnemar"] for row in rows] == pytest.approx(expected)
    assert [row["p_holm"] for row in rows] == pytest.approx(list(multipletests(expected, method="holm")[1]))
    versus = rows[-1]
    assert (versus["of"], versus["units"]) == ("causal_recovery", 30)
    assert versus["difference"]["value"] == pytest.approx(20 / 30 - 8 / 30)


def test_without_a_detector_there_are_no_twins() -> None:
    rows = table(*(twin(arm, unit, True) | {"triggered": None} for arm in ("none", "steer") for unit in range(4)))
    assert summarize(rows, ["none", "steer"], draws=50)["twins"]["arms"] == {}
    rows = table(*(twin("steer", unit, True) for unit in range(4)))
    assert summarize(rows, ["steer"], draws=50)["twins"] is None


def test_rows_that_do_not_know_their_contacts_say_nothing_of_events() -> None:
    rows = study().drop(columns=["events"])
    summary = summarize(rows, ["none", "steer"], draws=50)["twins"]
    assert list(summary["outcomes"]) == ["failure"] and "event" not in summary["arms"]["steer"]


@pytest.mark.parametrize(("tasks", "runs", "floor"), [(4, 150, 0.9), (8, 40, 0.8)])
def test_intervals_of_recovery_and_harm_cover_the_truth(tasks: int, runs: int, floor: float) -> None:
    """With few tasks that are alike (Wilson), and with tasks that differ in how well the arm does (bootstrap)."""
    rng = np.random.default_rng(0)
    saved, spoilt, hits = 0.6, 0.15, np.zeros(2)
    for _ in range(runs):
        task = np.repeat(np.arange(tasks), 25)
        shift = rng.normal(0, 0.06 if tasks >= 5 else 0.0, tasks)[task]
        triggered, bad = rng.random(task.size) < 0.7, rng.random(task.size) < 0.5
        worse = rng.random(task.size) < np.where(bad, 1 - saved, spoilt) + shift
        seen = Twins(triggered, bad, worse, task)
        for place, (of, truth) in enumerate(((causal_recovery, saved), (harm_rate, spoilt))):
            interval = of(seen, draws=100)
            assert interval.low is not None and interval.high is not None
            hits[place] += interval.low <= truth <= interval.high
    # Nominally 0.95; the lower end of what chance leaves of it. An interval without width would cover nothing.
    assert (hits / runs >= floor).all(), hits / runs
