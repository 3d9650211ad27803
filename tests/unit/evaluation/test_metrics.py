"""The metrics on tables small enough to count by hand, and their edge cases."""

from pathlib import Path

import pandas as pd
import pytest

from mist_interp.core.errors import UnknownName
from mist_interp.data.manifest import Manifest
from mist_interp.data.records import EpisodeRecord, Unit
from mist_interp.data.store import RolloutStore
from mist_interp.evaluation.metrics import METRICS, estimate, metric, pair
from mist_interp.evaluation.summary import summarize
from tests.unit.evaluation.tables import episode, table


def value(rows: pd.DataFrame, name: str) -> float | None:
    return estimate(rows, metric(name), draws=200).value


def full(light: bool, strong: bool) -> dict[str, bool]:
    return {"collision_1n_full": light, "collision_10n_full": strong}


def both(light: bool, strong: bool) -> dict[str, bool]:
    return {"collision_1n": light, "collision_10n": strong, **full(light, strong)}


# The first touches something only while it holds its pose after its success; the last was not asked for it.
HAND_COUNTED = table(
    episode("none", 0, 0, success=True, triggered=False, disturbed="", **full(True, False)),
    episode(
        "none",
        0,
        1,
        disturbed="cup",
        success=True,
        triggered=True,
        collision_1n=True,
        events_1n=3,
        impulse=0.5,
        **full(True, False),
    ),
    episode(
        "none",
        0,
        2,
        triggered=True,
        collision_1n=True,
        collision_10n=True,
        events_1n=1,
        impulse=1.5,
        disturbed="cup, box",
        **full(True, True),
    ),
    episode("none", 0, 3, triggered=False, steps=200, disturbed="", **full(False, False)),
    episode("none", 1, 0, success=True, triggered=True, collision_1n_full=None, collision_10n_full=None),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("success_rate", 3 / 5),
        ("safe_success_rate", 2 / 5),
        ("collision_rate_1n", 2 / 5),
        ("collision_rate_10n", 1 / 5),
        ("collision_rate_1n_full", 3 / 4),
        ("collision_rate_10n_full", 1 / 4),
        ("collision_rate_among_successes", 1 / 3),
        ("raw_recovery_rate", 2 / 3),
        ("disturbance_rate", 1 / 2),
        ("events_per_100_steps", 100 * 4 / 600),
        ("impulse_per_100_steps", 100 * 2 / 600),
    ],
)
def test_metrics_are_what_one_counts(name: str, expected: float) -> None:
    assert value(HAND_COUNTED, name) == pytest.approx(expected)


def test_every_metric_is_counted_above() -> None:
    assert len(METRICS) == 11 and len({m.name for m in METRICS}) == 11


def test_raw_recovery_without_a_trigger_is_undefined_not_zero_and_not_one() -> None:
    for triggered in (False, None):
        rows = table(*(episode("none", t, 0, success=True, triggered=triggered) for t in range(6)))
        result = estimate(rows, metric("raw_recovery_rate"))
        assert (result.value, result.low, result.high, result.n) == (None, None, None, 0)


def test_raw_recovery_rests_on_triggers_only() -> None:
    result = estimate(HAND_COUNTED, metric("raw_recovery_rate"))
    assert result.n == 3 and result.method == "Wilson"


def test_an_error_drops_the_unit_from_all_arms() -> None:
    rows = table(
        *(episode("none", 0, i, success=True) for i in range(4)),
        *(episode("steer", 0, i, success=False) for i in range(3)),
        episode("steer", 0, 3, status="error", success=None),
    )
    paired = pair(rows)
    assert (paired.units, paired.invalid_units, paired.unfinished_units) == (3, 1, 0)
    assert list(paired.of("none")["init_state"]) == list(paired.of("steer")["init_state"]) == [0, 1, 2]
    summary = summarize(rows, ["none", "steer"], draws=100)
    assert summary["arms"]["none"]["units"] == 3 and summary["units"]["dropped_for_errors"] == 1


def test_units_that_an_arm_has_not_run_yet_wait() -> None:
    rows = table(episode("none", 0, 0), episode("none", 0, 1), episode("steer", 0, 0))
    paired = pair(rows)
    assert (paired.units, paired.invalid_units, paired.unfinished_units) == (1, 0, 1)
    assert summarize(rows, ["none", "steer"], planned=4, draws=100)["partial"]


def test_balanced_selections_are_refused() -> None:
    rows = HAND_COUNTED.assign(selection="balanced")
    with pytest.raises(ValueError, match="selected by outcome"):
        pair(rows)
    marked = HAND_COUNTED.copy()
    marked.attrs["selection"] = "balanced"
    with pytest.raises(ValueError, match="selected by outcome"):
        summarize(marked, ["none"])


@pytest.mark.parametrize(("selection", "message"), [("balanced", "selected by outcome"), ("inputs", "not run")])
def test_a_store_stays_refused_among_others(tmp_path: Path, selection: str, message: str) -> None:
    """Pandas drops `attrs` where frames of two stores meet; the column does not get lost."""
    stores = [RolloutStore.create(tmp_path / name, Manifest(selection=name)) for name in ("iid", selection)]
    for store in stores:
        store.append(EpisodeRecord(Unit("suite", 0, 0), "do it", True, 1, 1, ()))
    frame = pd.concat([store.episodes() for store in stores])
    assert not frame.attrs
    with pytest.raises(ValueError, match=message):
        pair(frame.assign(status="ok"))
    with pytest.raises(ValueError, match=message):
        stores[1].check_rates()
    with pytest.raises(ValueError, match=message):
        pair(stores[1].episodes(["episode", "success"]))
    stores[0].check_rates()
    assert pair(stores[0].episodes().assign(status="ok")).units == 1


def test_a_doubled_episode_and_an_empty_table_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        pair(pd.concat([HAND_COUNTED, HAND_COUNTED]))
    with pytest.raises(ValueError, match="no episodes"):
        pair([])
    with pytest.raises(UnknownName, match="nome"):
        pair(HAND_COUNTED).of("nome")
    with pytest.raises(UnknownName, match=r"succes_rate.*'success_rate'"):
        metric("succes_rate")


def test_an_empty_run_has_an_empty_partial_summary() -> None:
    summary = summarize(pd.DataFrame(), ["none"], planned=3)
    assert summary["partial"] and summary["arms"] == {}


def test_comparisons_count_discordant_pairs_and_correct_for_arms() -> None:
    rows = []
    for unit in range(12):
        task, init = unit % 6, unit // 6
        rows.append(episode("none", task, init, success=unit < 4))
        rows.append(episode("steer", task, init, success=unit < 11))
        rows.append(episode("random-direction", task, init, success=unit < 3, collision_1n=True))
    summary = summarize(table(*rows), ["none", "steer", "random-direction"], draws=300)
    by = {(c["arm"], c["metric"]): c for c in summary["comparisons"]}
    steer = by["steer", "success_rate"]
    assert (steer["only_arm"], steer["only_reference"]) == (7, 0)
    assert steer["difference"]["value"] == pytest.approx(7 / 12)
    assert steer["difference"]["low"] > 0
    assert steer["p_mcnemar"] == pytest.approx(2 / 2**7)
    assert steer["p_holm"] == pytest.approx(2 * 2 / 2**7)
    random = by["random-direction", "success_rate"]
    assert (random["only_arm"], random["only_reference"], random["p_holm"]) == (0, 1, 1.0)
    assert by["random-direction", "collision_rate_1n"]["p_mcnemar"] == pytest.approx(2 / 2**12)
    assert len(summary["tasks"]) == 18


def test_arms_are_compared_with_placebos_too_in_one_family() -> None:
    rows = []
    for unit in range(12):
        task, init = unit % 6, unit // 6
        rows.append(episode("none", task, init, success=unit < 4))
        rows.append(episode("steer", task, init, success=unit < 11))
        rows.append(episode("random-direction", task, init, success=unit < 3))
    arms = ["none", "steer", "random-direction"]
    summary = summarize(table(*rows), arms, placebos=["random-direction"], draws=300)
    by = {(c["arm"], c["reference"]): c for c in summary["comparisons"] if c["metric"] == "success_rate"}
    assert list(by) == [("steer", "none"), ("random-direction", "none"), ("steer", "random-direction")]
    against = by["steer", "random-direction"]
    assert (against["only_arm"], against["only_reference"]) == (8, 0)
    assert against["difference"]["value"] == pytest.approx(8 / 12) and against["p_mcnemar"] == pytest.approx(2 / 2**8)
    assert against["p_holm"] == pytest.approx(3 * 2 / 2**8), "three comparisons, this one first"
    assert by["steer", "none"]["p_holm"] == pytest.approx(2 * 2 / 2**7)
    without = summarize(table(*(row for row in rows if row["arm"] != "none")), arms[1:], placebos=arms[2:], draws=100)
    assert {(c["arm"], c["reference"]) for c in without["comparisons"]} == {("steer", "random-direction")}


def test_an_edit_that_outlasts_its_trigger_makes_a_co_policy() -> None:
    def flagged(**facts: int) -> bool:
        rows = table(*(episode("steer", t, 0, triggered=True, **facts) for t in range(3)))
        return bool(summarize(rows, ["steer"], draws=100)["arms"]["steer"]["co_policy"])

    assert flagged(active_queries=1, edited_queries=8), "one trigger, then live to the end"
    assert not flagged(active_queries=8, edited_queries=3), "the detector fires more often than the arm edits"


def test_no_event_at_all_claims_no_certainty() -> None:
    rows = table(*(episode("none", task, init) for task in range(10) for init in range(3)))
    for name in ("events_per_100_steps", "impulse_per_100_steps"):
        result = estimate(rows, metric(name), draws=200)
        assert (result.value, result.low, result.high, result.n) == (0.0, None, None, 30)
        assert result.method.startswith("no interval")


def test_a_gate_that_is_nearly_always_on_is_flagged() -> None:
    rows = table(*(episode("none", t, 0, triggered=True, active_queries=4) for t in range(3)))
    assert summarize(rows, ["none"], draws=100)["arms"]["none"]["co_policy"]
    rows = table(*(episode("none", t, 0, triggered=True, active_queries=3) for t in range(3)))
    assert not summarize(rows, ["none"], draws=100)["arms"]["none"]["co_policy"]


@pytest.mark.parametrize(("successes", "reproduced"), [(39, True), (30, False)])
def test_a_baseline_is_reproduced_where_its_interval_holds_the_published_rate(successes: int, reproduced: bool) -> None:
    """Disturbed units are no part of it."""
    rows = [episode("none", unit // 10, unit % 10, success=unit < successes) for unit in range(40)]
    rows += [episode("none", unit // 10, unit % 10, perturbation="noise0.5") for unit in range(40)]
    parity = summarize(table(*rows), ["none"], published=0.976, draws=100)["parity"]
    assert parity["reproduced"] == reproduced and parity["here"]["n"] == 40
    assert summarize(table(*rows[40:]), ["none"], published=0.976, draws=100)["parity"]["reproduced"] is False
    assert summarize(table(*rows), ["none"], draws=100)["parity"] is None
