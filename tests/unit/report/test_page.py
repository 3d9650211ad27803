"""The page carries everything, says what it must, and survives odd runs."""

import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mist_interp.evaluation.summary import summarize
from mist_interp.report import load_run, write_report
from mist_interp.report.figures import arm_colours, rates_figure, score_figure
from mist_interp.report.page import render
from mist_interp.report.tables import main_table, p_value, percent, signed_percent
from mist_interp.report.twin_tables import twin_section
from tests.unit.evaluation.fakes import FakeVLA
from tests.unit.evaluation.tables import episode, table, twin
from tests.unit.evaluation.test_runner import run

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Balance(HTMLParser):
    """Collects tags that are not closed in order (SVG included)."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "a run <of> two"
    run(out, videos="sample")
    return out


def test_the_page_is_one_well_formed_file_without_network(folder: Path) -> None:
    page = write_report(folder).read_text(encoding="utf-8")
    checker = Balance()
    checker.feed(page)
    assert checker.wrong == [] and checker.open == []
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "a run &lt;of&gt; two" in page and "<of>" not in page
    assert page.count("<video") == 4


def test_the_page_says_the_definitions_the_controls_and_the_versions(folder: Path) -> None:
    run_, page = load_run(folder), write_report(folder).read_text(encoding="utf-8")
    for definition in run_.summary["definitions"].values():
        assert escape(definition) in page
    assert "no random direction of equal norm" in page
    assert run_.provenance["torch"] in page and "uncontrolled" in page
    assert "Partial run" not in page


def test_an_extended_run_and_a_run_of_errors_still_have_a_page(tmp_path: Path) -> None:
    run(tmp_path / "partial", limit=1)
    assert "Partial run, not a result" in write_report(tmp_path / "partial").read_text()
    with pytest.raises(RuntimeError):
        run(tmp_path / "broken", FakeVLA(crash_on=tuple(range(1, 99))))
    page = write_report(tmp_path / "broken").read_text()
    assert "10 episodes crashed" in page and "the policy crashed" in page
    assert "no unit is valid in every arm: 10 of 10 episodes crashed" in page


def test_the_page_warns_of_what_casts_doubt(folder: Path) -> None:
    run_ = load_run(folder)
    doubtful = replace(run_, summary=run_.summary | {"warnings": ["scaled with <other> statistics"]})
    assert "<b>Mind:</b> scaled with &lt;other&gt; statistics." in render(doubtful, "t")
    assert "Mind:" not in render(run_, "t")


def test_the_page_says_which_arms_act_along_with_the_policy(folder: Path) -> None:
    run_ = load_run(folder)
    assert "Edits are live at more than 30 % of the queries (co-policy): slow." in render(run_, "t")


def test_a_folder_without_a_run_names_the_runs_beside_it(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a run <of> two"):
        load_run(folder.parent / "nothing")


def test_a_damaged_video_costs_its_film_only(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    video = next((folder / "videos").rglob("*.mp4"))
    content = video.read_bytes()
    try:
        video.write_bytes(content[:100])
        assert write_report(folder).read_text().count("<video") == 3
    finally:
        video.write_bytes(content)


ARMS = ["none", "steer", "sham"]
SUMMARY = summarize(
    table(
        *(episode("none", t, 0, success=t < 3) for t in range(6)),
        *(episode("steer", t, 0, success=t < 4, collision_1n=t == 0, triggered=True) for t in range(6)),
    ),
    ["none", "steer"],
    draws=200,
)


def test_undefined_is_a_dash_never_zero() -> None:
    text = main_table(SUMMARY)
    none, steer = text.split("<tr>")[2:4]
    assert "n = 0" in none and none.count("–<small>n = 0") == 1
    assert "66.7<small>" in steer and "16.7<small>" in steer
    assert (percent(None), signed_percent(None)) == ("–", "–")


def test_a_table_of_a_baseline_that_is_not_reproduced_says_so_on_every_row() -> None:
    doubted = SUMMARY | {"parity": {"published": 0.976, "reproduced": False}}
    assert main_table(doubted).count("baseline not reproduced") == 2
    assert "baseline" not in main_table(SUMMARY | {"parity": {"published": 0.5, "reproduced": True}})


def test_the_full_horizon_is_a_column_only_where_it_was_asked_for() -> None:
    assert "full horizon" not in main_table(SUMMARY)
    rows = table(*(episode("none", t, 0, collision_1n_full=t < 2, collision_10n_full=False) for t in range(6)))
    text = main_table(summarize(rows, ["none"], draws=100))
    assert "CR 10 N, full horizon" in text and "33.3<small>" in text


def test_twins_are_told_with_counts_and_dashes() -> None:
    rows = [
        twin(arm, unit, arm == "none", touches=(50,) if arm == "steer" else ()) for arm in ARMS for unit in range(4)
    ]
    text = twin_section(summarize(table(*rows), ARMS, placebos=["sham"], draws=100))
    steer = text.split("Bad is a failure")[1].split("<tr>")[2]
    assert "100.0<small>" in steer and "4 of 4" in steer and "–<small>n = 0" in steer  # nothing to harm
    assert "of which 0.0 % succeed" in text and "4<small>100.0 %</small>" in text
    harmed = text.split("Bad is a forbidden contact")[1].split("<tr>")[2]
    assert "−100.0<small>" in harmed and text.count("causal RR</td>") == 2  # in the long table
    assert twin_section(SUMMARY | {"twins": None}) == ""


def test_numbers_are_written_plainly() -> None:
    assert percent(0.8725) == "87.2" and signed_percent(-0.05) == "−5.0" and signed_percent(0.05) == "+5.0"
    assert signed_percent(0.0) == "0.0" and signed_percent(-0.0001) == "0.0"
    assert p_value(0.0004) == "< 0.001" and p_value(0.0312) == "0.031"


def test_no_events_are_written_without_an_interval() -> None:
    none = main_table(SUMMARY).split("<tr>")[2]
    assert none.count('<td title="no interval: all resamples agree') == 2 and "0.00<small>no interval" in none


def test_placebos_do_not_stand_in_the_figure_of_changes() -> None:
    rows = table(*(episode(arm, t, 0, success=t < n) for n, arm in enumerate(("none", "steer", "r")) for t in range(6)))
    without, with_placebo = (summarize(rows, ["none", "steer", "r"], placebos=p, draws=100) for p in ([], ["r"]))
    assert rates_figure(with_placebo) == rates_figure(without)


def test_figures_are_svg_with_real_text_and_are_reproducible() -> None:
    figure = rates_figure(SUMMARY)
    assert figure.startswith("<svg") and ">steer<" in figure and figure == rates_figure(SUMMARY)
    scores = pd.DataFrame(
        [
            {"key": f"{e}", "step": 8 * q, "score": 0.1 * q + 0.01 * e, "success": e % 2 == 0, "collision_1n": False}
            for e in range(6)
            for q in range(5)
        ]
    )
    assert "threshold" in score_figure(scores, 0.3, "none")
    assert "threshold" not in score_figure(scores, float("inf"), "none")


def test_every_arm_has_a_colour_of_its_own_and_the_reference_is_grey() -> None:
    colours = arm_colours(["a", "none", "b"])
    assert len(set(colours.values())) == 3 and colours["none"] == arm_colours(["none"])["none"]


def test_a_gate_has_no_threshold_of_its_own_and_is_drawn_at_its_limit(folder: Path) -> None:
    run_ = load_run(folder)
    detector = {key: value for key, value in run_.settings["detector"].items() if key != "threshold"}
    gated = replace(run_, settings={**run_.settings, "detector": {**detector, "alarm": {"alpha": 0.1}}})
    page = render(gated, "gated")
    assert "The detector over time" in page and page.count("<video") == 4 and ">threshold<" in page
