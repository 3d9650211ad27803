"""The study of recovery: every arm of its lists can be made, and its tables say what the twins say."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from mist_interp.core.names import Site
from mist_interp.data.records import Unit
from mist_interp.evaluation.arm_texts import parse_arm
from mist_interp.evaluation.folder import rows_of_table
from mist_interp.evaluation.gate_files import make_gate, read_gate
from mist_interp.evaluation.summary import summarize
from mist_interp.probing import Deviation
from mist_interp.probing.benefit import Benefit, TwinGain
from tests.unit.evaluation.tables import table, twin

SCRIPTS = Path(__file__).resolve().parents[3] / "experiments" / "recovery"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(SCRIPTS))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    return load


def stored_deviation(folder: Path) -> None:
    width = len(Deviation("resid_post").tokens) * 4
    stored = Deviation(("resid_post", 2))
    stored.site_, stored.source_, stored.trained_on_ = Site("blocks.2.hook_resid_post"), {}, frozenset()
    stored.mean_, stored.scale_ = np.zeros(width), np.ones(width)
    stored.weights_, stored.intercept_ = np.zeros((14, width)), np.zeros(14)
    stored.save(folder)


def test_every_arm_of_the_lists_can_be_made_and_has_a_name_of_its_own(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = script("arms")
    monkeypatch.setattr(arms, "raising", lambda: [[1, 5], [2, 7]])  # asks the simulator
    stored_deviation(tmp_path / "deviation" / "deviation")
    settings, folder = arms.Settings(out=tmp_path), tmp_path / "arms"
    lists = [arms.rivals(settings, folder), arms.ablations(settings, folder), arms.learned(settings)]
    lists += [arms.free(settings), arms.disturbed(settings), arms.confirmed(settings), arms.gated(settings)]
    lists += [arms.adapting(settings), arms.contrasted(settings)]
    for listed, count in zip(lists, (27, 25, 8, 17, 8, 9, 4, 7, 6), strict=True):
        made = [
            parse_arm(one) for one in listed if not {"direction", "probe", "safe"} & set(one)
        ]  # these need fitted files
        names = [arm.name for arm in made] + [one.get("name", one["kind"]) for one in listed if "direction" in one]
        names += [one["name"] for one in listed if {"probe", "safe"} & set(one)]
        assert len(set(names)) == len(names) == count and names[0] == "none"
    strong = {arm.name: arm.like if arm.name.startswith("action") else arm for arm in map(parse_arm, lists[0][4:14])}
    sizes = {name: arm.size for name, arm in strong.items() if hasattr(arm, "size")}
    assert {name for name, size in sizes.items() if size == 1.0} == {n for n in sizes if n.endswith("strong")}
    assert parse_arm(lists[2][2]).target.segments == 2


def test_the_choice_is_among_all_edits_and_its_placebos_choose_alike(script: Any, tmp_path: Path) -> None:
    arms = script("arms")
    settings = arms.Settings(out=tmp_path)
    twins = [TwinGain(Unit("libero_spatial", 0, n), np.eye(4)[n % 4], n % 2) for n in range(8)]
    head = Benefit(("resid_post", 2)).fit(twins, Site("blocks.2.hook_resid_post")).act_above(0.0)
    names = [one["name"] for one in arms.candidates(settings)]
    for name in names:
        head.save(tmp_path / "choice" / name)
    made = {arm.name: arm for arm in map(parse_arm, arms.chosen(settings))}
    yoked = [f"{kind}-chosen-yoked" for kind in ("random-direction", "wrong-dimension")]
    asked = script("confirm").BEATEN["mist-chosen"]
    assert list(made) == ["none", "mist-chosen", "action-correction-chosen", "sham-triggers-chosen", *yoked]
    assert set(asked) == {*yoked, "sham-triggers-chosen"}
    for name, arm in made.items():
        if name.endswith(("chosen", "yoked")):
            choice = getattr(arm, "arm", arm)
            assert [one.name for one, _ in choice.among] == names and len(set(names)) == 10
            assert bool(arm.config().get("placebo")) == (name != "mist-chosen")
    real = [arm for arm, _ in made["mist-chosen"].among]
    for place, kind in enumerate(("random-direction", "wrong-dimension")):
        stand_ins = [arm for arm, _ in made[yoked[place]].arm.among]
        assert [replace(arm, placebo="") for arm in stand_ins] == real and {a.placebo for a in stand_ins} == {kind}


def test_what_was_fitted_is_shipped_and_has_seen_no_unit_that_it_is_judged_on(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, out = SCRIPTS / "fitted", tmp_path / "results" / "recovery"
    shutil.copytree(shipped, out)
    monkeypatch.chdir(tmp_path)  # paths in the files are those of the project's root
    arms = script("arms")
    listed = yaml.safe_load((out / "arms" / "chosen.yaml").read_text())
    assert listed == arms.chosen(arms.Settings())
    fresh = [Unit("libero_spatial", task, init) for task in range(10) for init in (4000, 4029)]
    taught = Unit("libero_spatial", 4, 3000)
    gate, choice = read_gate(out / "contact" / "gate.yaml"), parse_arm(listed[1])
    gate.check_units([*fresh, taught])
    choice.check_units(fresh)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="init 3000"):
        choice.check_units([taught])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="init 0"):
        gate.check_units([Unit("libero_spatial", 4, 0)])


def test_every_rule_of_a_gate_can_be_read_and_every_gate_is_asked(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SCRIPTS / "fitted", tmp_path / "results" / "recovery")
    monkeypatch.chdir(tmp_path)
    plain = yaml.safe_load(Path("results/recovery/contact/gate.yaml").read_text())
    rules, runs = script("arms").RULES, (SCRIPTS / "run.sh").read_text()
    for name, given in rules.items():
        config = make_gate({**plain, **given}).config()
        assert {key: float(config[key]) for key in given} == given
        assert f"gates/{name}" in runs or f"{name.removeprefix('retry-')}" in runs


def test_the_table_of_what_was_foreseen_counts_episodes(script: Any) -> None:
    from mist_interp.probing.conformal import ConformalAlarm

    contact = [{"start_step": 20, "peak_force": 2.0}, {"start_step": 3, "peak_force": 0.5}]
    late = [{"start_step": 6, "peak_force": 2.0}]
    episodes = pd.DataFrame({"episode": list("abcd"), "contacts": [contact, late, [], []]})
    episodes["perturbation"] = ["none", "none", "none", "push1"]
    queries = pd.DataFrame({"episode": list("aabbcd"), "step": [0, 8, 0, 8, 0, 0]})
    store = SimpleNamespace(queries=lambda columns: queries[columns], episodes=lambda columns: episodes[[*columns]])
    alarm = ConformalAlarm(0.1, 20, ("dz",), "max", (0.5,), np.zeros((1, 1)), np.ones((1, 1)))
    risk = np.array([[0.1], [0.9], [0.1], [0.9], [0.9], [0.2]])
    table = script("risk").foreseen(store, risk, alarm)
    assert table.loc["none"].tolist() == [3, 2, 1, 1] and table.loc["push1"].tolist() == [1, 0, 0, 0]


def test_the_main_table_has_counts_beside_the_rates_and_a_dash_where_nothing_can_be_said(script: Any) -> None:
    tables = script("tables")
    rate = {"value": 0.5, "low": 0.25, "high": 1.0}
    nothing = {"value": None, "low": None, "high": None}
    facts = {"recovered": 2, "bad_under_reference": 4, "harmed": 0, "good_under_reference": 0}
    facts |= {"causal_recovery": rate, "harm_rate": nothing}
    arm = {"metrics": dict.fromkeys(tables.SHOWN, rate), "edited_query_share": 0.25}
    summary = {"labels": {"success_rate": "SR"}, "arms": {"none": arm, "mist": arm}}
    twins = dict.fromkeys(tables.OUTCOMES, facts) | {"pairs": {"lost": 3}}
    summary["twins"] = {"arms": {"mist": twins}, "triggered": 8}
    controls = {"step counter": 0.625, "task id": 0.5}
    known, unknown = (each | {"positive_episodes": 7, "controls": controls} for each in (rate, nothing))
    summary["risk_auc"] = {"arms": {"none": {"dz": {"detection": known, "attribution": unknown}}, "mist": {}}}
    table = tables.main_table(summary)
    assert table.loc["none", "AUC dz, detection"] == "0.50 (0.25–1.00); step counter 0.62"
    assert table.loc["mist", "AUC dz, detection"] == "–"
    assert table.loc["none", "AUC dz, attribution"] == "– (7 episodes)"
    assert table.loc["mist", "lost pairs"] == "3 of 8"
    assert table.loc["mist", "SR"] == "50 (25–100)" and table.loc["none", "failure: causal RR"] == "–"
    assert (
        table.loc["mist", "failure: causal RR"] == "2/4 50 (25–100)" and table.loc["mist", "failure: harm"] == "0/0 –"
    )
    assert tables.draw(summary["twins"]).axes[0].get_yticklabels()[0].get_text() == "mist"


def test_what_is_fitted_on_calibrated_on_chosen_on_and_judged_on_are_different_start_states(script: Any) -> None:
    risk, runs = script("risk").Settings(), (SCRIPTS / "run.sh").read_text()
    spans = [set(range(*risk.train)), set(range(*risk.calibrate))]
    for pattern in (
        r"evaluated ablations \S+ \S+ (\d+)-(\d+)",
        r"evaluated twins .*? (\d+)-(\d+)",
        r"evaluated confirm .*? (\d+)-(\d+)",
        r"evaluated chosen .*? (\d+)-(\d+)",
        r"INITS:-(\d+)-(\d+)",
    ):
        first, last = (int(number) for number in re.search(pattern, runs).groups())  # type: ignore[union-attr]
        spans.append(set(range(first, last + 1)))
    assert len(set.union(*spans)) == sum(map(len, spans)) and len(spans[-1]) >= 20
    fit = script("deviation").Settings()
    assert (fit.train, fit.calibrate) == (risk.train, risk.calibrate)
    assert script("tutor").Settings().inits == script("arms").Settings().train == risk.train
    assert re.findall(r"evaluated \S*horizon\S* \S+ \S+ (\S+)", runs) == ["20-24"]


def outcomes(counts: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """60 units per arm, so many with a contact and so many that succeed; all arms but `none` edit 2 of 10 queries."""
    return [
        twin(
            name,
            unit,
            unit >= well,
            touches=(60,) if unit < touched else (),
            collision_1n=unit < touched,
            edited_queries=2 * (name != "none"),
        )
        for name, (touched, well) in counts.items()
        for unit in range(60)
    ]


FREE, STRONG = "mist-free", "mist-strong"
PLACEBOS = ("random-direction-free-yoked", "wrong-dimension-free-yoked", "sham-triggers-free")
CARD = Path("mist_interp") / "models" / "mini" / "README.md"
CHOSEN = "mist-chosen"
CHOICE_PLACEBOS = ("random-direction-chosen-yoked", "wrong-dimension-chosen-yoked", "sham-triggers-chosen")
STRONG_PLACEBOS = ("random-direction-strong-yoked", "wrong-dimension-strong-yoked")


@pytest.mark.parametrize(
    ("arm", "contacts", "successes", "broken"),
    [
        ("none", 40, 50, []),
        (FREE, 30, 50, [0]),  # a quarter fewer
        (FREE, 8, 9, [1, 2]),
        (STRONG, 13, 50, [3]),  # 27 of 40
        *((placebo, 8, 50, [place]) for place, placebo in enumerate(PLACEBOS + STRONG_PLACEBOS, start=4)),
    ],
)
def test_a_claim_falls_with_what_it_says_and_no_other_does(
    script: Any, arm: str, contacts: int, successes: int, broken: list[int]
) -> None:
    """60 units: `none` and the placebos have a contact in 40 and succeed in 50, the edits have one in 8."""
    names = ("none", FREE, STRONG, *PLACEBOS, *STRONG_PLACEBOS)
    counts = {name: (8 if name in (FREE, STRONG) else 40, 50) for name in names} | {arm: (contacts, successes)}
    rows = outcomes(counts)
    summary = summarize(table(*rows), names, placebos=names[3:], draws=200)
    held = list(script("confirm").of_edits(summary)["held"])
    assert [place for place, one in enumerate(held) if not one] == broken


@pytest.mark.parametrize(
    ("arm", "contacts", "successes", "broken"),
    [
        ("none", 40, 50, []),
        (CHOSEN, 30, 54, [0, 3]),  # a quarter fewer, 10 of 40 prevented
        (CHOSEN, 13, 54, [3]),  # 27 of 40
        (CHOSEN, 8, 49, [1]),
        (CHOSEN, 8, 9, [1, 2]),
        *((placebo, 8, 50, [place]) for place, placebo in enumerate(CHOICE_PLACEBOS, start=4)),
    ],
)
def test_a_claim_about_the_choice_falls_likewise(
    script: Any, arm: str, contacts: int, successes: int, broken: list[int]
) -> None:
    names = ("none", CHOSEN, *CHOICE_PLACEBOS)
    counts = {name: (8, 54) if name == CHOSEN else (40, 50) for name in names} | {arm: (contacts, successes)}
    rows = outcomes(counts)
    summary = summarize(table(*rows), names, placebos=names[2:], draws=200)
    held = list(script("confirm").of_the_choice(summary)["held"])
    assert [place for place, one in enumerate(held) if not one] == broken


def test_a_placebo_that_did_nothing_is_not_beaten(script: Any) -> None:
    names = ("none", CHOSEN, *CHOICE_PLACEBOS)
    rows = outcomes({name: (8, 54) if name == CHOSEN else (40, 50) for name in names})
    for row in rows:
        if row["arm"] == CHOICE_PLACEBOS[1]:
            row["edited_queries"] = 0
    summary = summarize(table(*rows), names, placebos=names[2:], draws=200)
    held = list(script("confirm").of_the_choice(summary)["held"])
    assert held == [True, True, True, True, True, False, True]


@pytest.mark.parametrize(("value", "low", "held"), [(0, -0.04, True), (0.02, -0.06, False), (-0.001, -0.04, False)])
def test_successes_may_not_be_fewer_nor_a_loss_of_5_points_be_possible(
    script: Any, value: float, low: float, held: bool
) -> None:
    difference = {"value": value, "low": low, "high": 0.1}
    row = {"arm": CHOSEN, "reference": "none", "metric": "success_rate", "difference": difference}
    summary = {"comparisons": [row | {"only_arm": 3, "only_reference": 2}]}
    assert script("confirm").not_worse(summary, CHOSEN)[2] is held


@pytest.mark.parametrize(("value", "high", "held"), [(-0.3, -0.1, True), (-0.2, -0.1, False), (-0.3, 0.01, False)])
def test_contacts_have_to_fall_by_the_share_and_not_by_chance(
    script: Any, value: float, high: float, held: bool
) -> None:
    difference = {"value": value, "low": -0.5, "high": high}
    row = {"arm": FREE, "reference": "none", "metric": "collision_rate_1n", "difference": difference}
    summary = {"comparisons": [row], "arms": {"none": {"metrics": {"collision_rate_1n": {"value": 0.8}}}}}
    assert script("confirm").fewer_contacts(summary, FREE)[2] is held


def test_a_choice_is_judged_by_what_happened(script: Any) -> None:
    """Two edits; the first number read says which of them helps, and `up` spoils where the other one helps."""
    choice = script("choice")
    draw, names = np.random.default_rng(0), ("none", "up", "left")
    ended: dict[Unit, dict[str, Any]] = {}
    twins = []
    for place in range(120):
        unit, row = Unit("libero_spatial", place % 4, place // 4), draw.normal(size=4)
        helps = "up" if row[0] > 0 else "left"
        ends = {name: {"success": name != "up" or helps == "up", "collision_1n": name != helps} for name in names}
        ended[unit] = ends
        twins.append(choice.Twins(unit, row, ends))
    calm = Unit("libero_spatial", 9, 0)
    ended[calm] = {name: {"success": False, "collision_1n": True} for name in names}
    ways = choice.choices(choice.Settings(), twins, names[1:], Site("blocks.2.hook_resid_post"))
    table = choice.judged(ended, ways, 0.9)
    best = len(ended) - 1
    assert table.loc["none"].tolist() == [0, best, 0, 0, best + 1, 0, 0, 0, pytest.approx(1 + 0.9 * (best + 1))]
    assert table.loc["best in hindsight", ["successes", "safe successes", "contacts"]].tolist() == [best, best, 1]
    assert table.loc["chosen", "safe successes"] >= 0.8 * best and table.loc["chosen", "spoilt"] <= 0.2 * best
    assert table.loc["chosen by the task", "safe successes"] <= 0.7 * best
    assert table["loss"].idxmin() == "best in hindsight"
    assert table.loc["up", "spoilt"] == sum(one.row[0] <= 0 for one in twins) and table.loc["up", "made"] == 0


def test_of_the_edits_that_saved_a_unit_the_contrast_takes_the_one_that_saves_most(script: Any) -> None:
    good, touched = {"success": True, "collision_1n": False}, {"success": True, "collision_1n": True}

    def unit(none: dict[str, Any], up: dict[str, Any], left: dict[str, Any], triggered: bool = True) -> dict[str, Any]:
        return {"none": {**none, "triggered": triggered, "arm": "none"}, "up": {**up, "arm": "up"}, "left": left}

    ended = {
        "both": unit(touched, good, good),
        "left alone": unit(touched, touched, good),
        "left again": unit({"success": False, "collision_1n": False}, touched, good),
        "up alone": unit(touched, good, touched),
        "nobody": unit(touched, touched, touched),
        "well": unit(good, good, good),
        "not triggered": unit(touched, good, good, triggered=False),
    }
    found = {name: row.get("arm", "left") for name, (_, row) in script("contrast").savers(ended).items()}
    assert found == {"both": "left", "left alone": "left", "left again": "left", "up alone": "up"}


def test_whom_a_head_judges_it_was_not_fitted_on(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    choice, judged = script("choice"), []
    ends = {name: {"success": True, "collision_1n": False} for name in ("none", "up")}
    twins = [
        choice.Twins(Unit("libero_spatial", n % 2, n // 2), np.array([float(n // 2)]), ends) for n in range(40)
    ]  # what is read is the number of the start state

    def fitted(settings: Any, some: Any, arm: str, site: Any) -> Any:
        def predict(rows: np.ndarray) -> np.ndarray:
            assert not {one.unit.init_state for one in some} & set(rows[:, 0])
            judged.extend(rows[:, 0])
            return np.zeros(len(rows))

        return SimpleNamespace(predict=predict)

    monkeypatch.setattr(choice, "fitted", fitted)
    choice.choices(choice.Settings(), twins, ("up",), Site("blocks.2.hook_resid_post"))
    assert sorted(judged) == sorted(one.unit.init_state for one in twins)


def test_nothing_is_chosen_where_less_is_expected_than_the_limit(script: Any) -> None:
    choice = script("choice")
    ends = {"none": {"success": True, "collision_1n": True}, "up": {"success": True, "collision_1n": False}}
    twins = [
        choice.Twins(Unit("libero_spatial", 0, n), np.eye(4)[n % 4], {**ends, "up": ends["none" if n % 2 else "up"]})
        for n in range(24)
    ]
    site = Site("blocks.2.hook_resid_post")
    for limit, acted in ((0.0, 12), (1.0, 0)):
        way = choice.choices(choice.Settings(limit=limit), twins, ("up",), site)["best in hindsight"]
        assert sum(arm == "up" for arm in way.values()) == acted


def test_what_the_card_says_of_the_choice_follows_from_the_rows_that_are_shipped(script: Any) -> None:
    rows = pd.DataFrame(rows_of_table(pd.read_parquet(SCRIPTS / "fitted" / "chosen.parquet")))
    names = list(dict.fromkeys(rows["arm"]))
    summary = summarize(rows, names, placebos=names[2:], draws=500)
    table = script("confirm").of_the_choice(summary).set_index("claim")
    assert list(table["held"]) == [True, True, True, False, True, True, True]
    beaten = table["found"][table.index.str.contains("yoked|sham")]
    assert [found.partition(",")[0] for found in beaten] == ["16:0", "14:0", "11:2"]
    shown = [" ".join(cell.split()) for cell in (SCRIPTS.parents[1] / CARD).read_text().split("|")]
    for counts in ("8 saved, 3 spoilt", "17 of 49", "16 units to 0", "14 to 0", "11 to 2"):
        assert any(counts in cell for cell in shown)
    sums = rows.groupby("arm")[["success", "collision_1n"]].sum()
    assert sums.loc["none"].tolist() == [172, 54] and sums.loc["mist-chosen"].tolist() == [177, 37]
