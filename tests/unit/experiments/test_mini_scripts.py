"""Do the scripts of the small policy count right, take away one input only, and write numbers where they belong?"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.core.actions import ActionChunk
from mist_interp.data.records import Unit
from mist_interp.evaluation.arms import Query
from mist_interp.evaluation.summary import summarize
from tests.unit.evaluation.tables import episode, table

SCRIPTS = Path(__file__).resolve().parents[3] / "experiments" / "mini"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def script(name: str) -> Any:
    return import_module(name)


# -- the card ------------------------------------------------------------------------------------------------------


def test_only_marked_places_change(tmp_path: Path) -> None:
    card = script("card")
    page = tmp_path / "page.md"
    page.write_text("SR <!-- measured: sr -->old<!-- /measured -->, CR <!-- measured: cr -->5<!-- /measured --> old\n")
    assert card.fill(page, {"sr": "7 of 10", "else": "x"}) == ["sr"]
    expected = "SR <!-- measured: sr -->7 of 10<!-- /measured -->, CR <!-- measured: cr -->5<!-- /measured --> old\n"
    assert page.read_text() == expected
    assert card.fill(page, {"else": "x"}) == [] and page.read_text() == expected


@settings(deadline=None, max_examples=25)
@given(st.text(alphabet="ab|\\ \n", min_size=1), st.text(alphabet="cd\\1 \n", min_size=1))
def test_filling_again_replaces_what_was_filled(first: str, second: str) -> None:
    import tempfile

    card = script("card")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.md"
        page.write_text("a <!-- measured: n -->x<!-- /measured --> b <!-- measured: m -->y<!-- /measured -->")
        card.fill(page, {"n": first})
        assert card.places(page) == {"n": first.strip(), "m": "y"}
        card.fill(page, {"n": second})
        assert card.places(page) == {"n": second.strip(), "m": "y"}


def test_numbers_are_right_aligned() -> None:
    card = script("card")
    assert card.table(["task", "x"], [[3, "a"], ["", "b"]]) == "| task | x |\n| ---: | --- |\n| 3 | a |\n|  | b |"


def test_shares_have_wilson_intervals() -> None:
    card = script("card")
    assert card.share(8, 10) == "8/10 (49–94 %)"
    assert card.share(0, 10) == "0/10 (0–28 %)"
    assert card.share(0, 0) == "–"
    assert card.where("pick up the black bowl on the stove and place it on the plate") == "on the stove"


# -- the arms ------------------------------------------------------------------------------------------------------


class Recorder:
    """A policy that keeps what it was shown and answers with zeros."""

    def prepare(self, observation: Mapping[str, Any], instruction: str) -> Any:
        return dict(observation), instruction

    def __call__(self, inputs: Any) -> ActionChunk:
        self.seen, self.told = inputs
        zeros = torch.zeros(1, 8, 7, dtype=torch.float64)
        return ActionChunk(zeros, zeros)


def query(task: int) -> Query:
    pictures = {key: np.full((4, 4, 3), 7, np.uint8) for key in ("agentview_image", "robot0_eye_in_hand_image")}
    observation = {**pictures, "robot0_eef_pos": np.arange(3.0)}
    return Query(Unit("libero_spatial", task, 0), 0, 0, observation, f"instruction {task}")


def test_another_instruction_and_nothing_else() -> None:
    arm = script("controls").OtherInstruction(tuple(f"instruction {i}" for i in range(10)))
    for task, told in ((0, "instruction 3"), (8, "instruction 1")):
        policy, asked = Recorder(), query(task)
        _, log = arm.act(policy, None, asked)
        assert policy.told == log.details["instruction"] == told
        assert policy.seen.keys() == asked.observation.keys()
        assert all(policy.seen[key] is value for key, value in asked.observation.items())
    with pytest.raises(ValueError, match="its own instruction"):
        script("controls").OtherInstruction(("a", "b", "c"))


def test_grey_pictures_and_nothing_else() -> None:
    policy, asked = Recorder(), query(2)
    script("controls").GreyCameras().act(policy, None, asked)
    assert policy.told == "instruction 2"
    assert policy.seen["robot0_eef_pos"] is asked.observation["robot0_eef_pos"]
    for key in ("agentview_image", "robot0_eye_in_hand_image"):
        assert policy.seen[key].dtype == np.uint8 and (policy.seen[key] == 128).all()
        assert (asked.observation[key] == 7).all(), "the recorded observation must stay as it was"


# -- the tables ----------------------------------------------------------------------------------------------------


def test_the_success_table_counts_the_untouched_policy() -> None:
    rows = [episode("none", task, init, success=init < task) for task in (0, 3) for init in range(4)]
    rows += [episode("grey-cameras", task, init, success=True) for task in (0, 3) for init in range(4)]
    summary = summarize(table(*rows), ["none", "grey-cameras"], draws=50)
    evaluate = script("evaluate")
    lines = evaluate.success_table({"fast": summary}).splitlines()
    assert lines[2] == "| 0 | task 0 | 0/4 (0–49 %) |"
    assert lines[3] == "| 3 | task 3 | 3/4 (30–95 %) |"
    assert lines[4].startswith("|  | **all** | 37.5 %")
    controls = evaluate.controls_table({"fast": summary}).splitlines()
    assert controls[3].startswith("| fast | grey cameras | 100.0 % ") and "+62.5 points" in controls[3]


def test_the_expert_table_leaves_crashes_out_and_says_so() -> None:
    pytest.importorskip("libero")
    rows: list[dict[str, Any]] = [
        {"status": "ok", "task": task, "instruction": f"task {task}", "success": init > 0, "steps": 100 + init,
         "collision_1n": init == 1, "collision_10n": False}
        for task in (0, 1) for init in range(3)
    ]  # fmt: skip
    measured = script("expert_table").texts([*rows, {"status": "error", "task": 1}])
    lines = measured["expert"].splitlines()
    assert lines[3].startswith("| 1 | task 1 | 2/3 (21–94 %) | 102 | 1/3")
    assert "1 episodes crashed" in lines[-1]
    assert measured["expert-success"].startswith("4/6") and measured["expert-lowest"].startswith("2/3")


def test_the_scripts_do_not_hide_installed_packages() -> None:
    """A script's folder comes first in its search path, so its files must not be named like what is imported there."""
    names = {path.stem for path in SCRIPTS.glob("*.py")}
    assert not names & (set(sys.stdlib_module_names) | {"tables", "datasets", "tokenizers", "torch", "rich"})
