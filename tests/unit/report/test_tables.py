"""Every number of a comparison lands in the cell of its arm and its reference, and none is lost."""

import re
from typing import NamedTuple

import pytest

from mist_interp.evaluation.summary import summarize
from mist_interp.report.tables import comparison_tables, task_table
from mist_interp.report.twin_tables import twin_comparison_tables
from tests.unit.evaluation.tables import episode, table, twin


class Cell(NamedTuple):
    attributes: str
    lines: list[str]


def read(text: str) -> dict[str, dict[str, Cell]]:
    """The first table of a text, by first cell and head."""
    text = text[text.index("<table") : text.index("</table>")]
    heads = [_lines(head)[0] for head in re.findall(r"<th[^>]*>(.*?)</th>", text)]
    rows = [re.findall(r"<td([^>]*)>(.*?)</td>", row) for row in text.split("<tr>")[2:]]
    assert all(len(row) == len(heads) for row in rows)
    return {
        _lines(row[0][1])[0]: {head: Cell(a, _lines(b)) for head, (a, b) in zip(heads, row, strict=True)}
        for row in rows
    }


def _lines(content: str) -> list[str]:
    return [part for part in re.split(r"<[^>]*>", content) if part]


def matrices(text: str) -> dict[str, dict[str, dict[str, Cell]]]:
    """Every matrix of a text, by its headline."""
    return {part[: part.index("<")]: read(part) for part in text.split("<h3>")[1:]}


ARMS, UNITS = ("none", "steer", "r"), 40
SUCCESSES = {"none": 0, "steer": 40, "r": 10}
SUMMARY = summarize(
    table(
        *(
            episode(arm, u // 10, u % 10, success=u < SUCCESSES[arm], collision_1n=arm == "steer" and u < 20)
            for arm in ARMS
            for u in range(UNITS)
        )
    ),
    ARMS,
    placebos=["r"],
    draws=100,
)


def test_a_comparison_stands_in_the_row_of_its_arm_and_the_column_of_its_reference() -> None:
    success = matrices(comparison_tables(SUMMARY))["Success"]
    assert list(success) == ["steer", "r"] and list(success["steer"]) == ["arm", "against none", "against r"]
    against_none, against_placebo = (success["steer"][f"against {name}"].lines for name in ("none", "r"))
    assert (against_none[0], against_none[-1]) == ("+100.0", "40 : 0, p &lt; 0.001")
    assert (against_placebo[0], against_placebo[-1]) == ("+75.0", "30 : 0, p &lt; 0.001")
    assert success["r"]["against none"].lines[-1] == "10 : 0, p = 0.002"
    assert success["r"]["against r"].lines == [] and "not tested" in success["r"]["against r"].attributes


def test_more_collisions_are_worse_though_their_change_is_positive() -> None:
    cells = matrices(comparison_tables(SUMMARY))["Collision, 1 N"]
    assert cells["steer"]["against none"].lines[0] == "+50.0"
    assert cells["steer"]["against none"].lines[-1] == "0 : 20, p &lt; 0.001"
    assert 'class="worse"' in cells["steer"]["against none"].attributes
    assert 'class=""' in cells["r"]["against none"].attributes  # no collision in either
    assert 'class="better"' in matrices(comparison_tables(SUMMARY))["Success"]["r"]["against none"].attributes


def test_nothing_is_bold_that_holm_does_not_leave_significant() -> None:
    """Six of 40 units alone have p = 0.031, and 0.094 after three comparisons."""
    rows = [
        episode(arm, u // 10, u % 10, success=arm == "steer" and u < 6)
        for arm in ("none", "steer", "r")
        for u in range(40)
    ]
    cell = matrices(comparison_tables(summarize(table(*rows), ARMS, placebos=["r"], draws=100)))["Success"]["steer"]
    assert cell["against none"].lines[-1] == "6 : 0, p = 0.094"
    assert 'class=""' in cell["against none"].attributes and "p 0.031 (McNemar), 0.094 (Holm)" in str(cell)


@pytest.mark.parametrize("place", ["tooltip", "long table"])
def test_all_facts_of_a_comparison_are_kept(place: str) -> None:
    text, entry = comparison_tables(SUMMARY), SUMMARY["comparisons"][1]
    low, high = (f"{100 * entry['difference'][end]:+.1f}" for end in ("low", "high"))
    detectable = f"{100 * entry['smallest_detectable']:.1f}"
    assert (entry["arm"], entry["reference"]) == ("r", "none") and float(low) < 25 < float(high)
    if place == "tooltip":
        assert (
            f"r against none, SR: +25.0 points, interval {low} to {high} ({entry['difference']['method']}); 40 units, "
            f"10 better here, 0 better there; p 0.002 (McNemar), 0.002 (Holm); smallest detectable {detectable} points"
        ) in text
        return
    folded = text[text.index("<details") :]
    assert "All 6 comparisons" in folded and folded.count("<tr><td>") == 6
    row = [_lines(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", folded.split("<tr>")[3])]
    numbers = [["40"], ["+25.0", f"{low} – {high}"], ["10 : 0"], ["0.002"], ["0.002"], [detectable]]
    assert row == [["r"], ["none"], ["success"], ["SR"], *numbers]


def test_twins_are_compared_in_a_matrix_per_bad_outcome() -> None:
    arms = ["none", "steer", "sham"]
    rows = [twin(a, u, a == "none", touches=(50,) if a == "steer" else ()) for a in arms for u in range(4)]
    found = matrices(twin_comparison_tables(summarize(table(*rows), arms, placebos=["sham"], draws=100)))
    assert list(found) == ["Failure", "Contact after the trigger"]
    failure, contact = found.values()
    assert failure["steer"]["against none"].lines[::2] == ["+100.0", "4 : 0, p = 0.375"]
    assert failure["steer"]["against sham"].lines[::2] == ["0.0", "0 : 0, p = 1.000"]
    assert contact["steer"]["against none"].lines[::2] == ["−100.0", "0 : 4, p = 0.375"]
    assert contact["steer"]["against sham"].lines[:2] == ["–", "n = 0"]  # none touches nothing: no unit to save


def test_tasks_stand_side_by_side_ten_at_a_time() -> None:
    rows = [episode(arm, t, i, success=i < t % 3) for arm in ("none", "steer") for t in range(12) for i in range(2)]
    rows += [episode("odd", t, i, success=t == 7, collision_1n=t == 11) for t in range(12) for i in range(2)]
    text = task_table(summarize(table(*rows), ["none", "steer", "odd"], draws=20))
    first, second = (read(part) for part in text.split('<div class="scroll">')[1:])
    assert list(first) == ["none", "steer", "odd"]
    assert list(first["none"]) == ["arm", *(f"task {t}" for t in range(10))]
    assert list(second["none"]) == ["arm", "task 10", "task 11"]
    assert [first["none"][f"task {t}"].lines[0] for t in (0, 1, 2)] == ["0 / 2", "1 / 2", "2 / 2"]
    assert first["odd"]["task 7"].lines == ["2 / 2", "0 collided"]
    assert second["odd"]["task 11"].lines == ["0 / 2", "2 collided"]
    assert text.count("<dd>task 11</dd>") == 1
