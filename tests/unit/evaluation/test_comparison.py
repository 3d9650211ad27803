"""Arms of one or several folders, on the units that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mist_interp.cli.compare import twin_lines
from mist_interp.core.errors import UnknownName
from mist_interp.evaluation import Detector, NoEdit, Protocol
from mist_interp.evaluation.comparison import compare
from tests.unit.evaluation.fakes import FakeVLA, position_score
from tests.unit.evaluation.test_twins import Scale, run


def test_one_folder_says_what_its_summary_says(tmp_path: Path) -> None:
    result = run(tmp_path / "one")
    summary = compare([tmp_path / "one"])
    assert summary == result.summary()
    lines = "\n".join(twin_lines(summary))
    assert "event: back: causal RR" in lines and "failure: slow against none, net benefit" in lines
    few = compare([tmp_path / "one"], arms=["back"])
    assert list(few["arms"]) == ["none", "back"] and len(few["comparisons"]) == 2


def test_a_published_checkpoint_is_held_to_its_rate_in_a_comparison_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("runner", "comparison"):
        monkeypatch.setattr(f"mist_interp.evaluation.{place}.published_rate", lambda settings: 0.976)
    parity = run(tmp_path / "one").summary()["parity"]
    assert parity is not None and compare([tmp_path / "one"])["parity"] == parity


def test_arms_of_several_folders_meet_on_shared_units(tmp_path: Path) -> None:
    """A slower policy in the other folder: its `none` is another arm, and has fewer units."""
    run(tmp_path / "base", arms=(NoEdit(), Scale(0.25, "slow")), perturbations=("none",))
    run(
        tmp_path / "late",
        FakeVLA(speed=0.75),
        arms=(NoEdit(), Scale(-1.0, "back")),
        inits=(1, 2),
        perturbations=("none",),
    )
    summary = compare([tmp_path / "base", tmp_path / "late"])
    assert list(summary["arms"]) == ["none@base", "slow", "none@late", "back"]
    assert summary["units"] == {"compared": 2, "dropped_for_errors": 0, "not_finished_in_all_arms": 1}
    assert {entry["reference"] for entry in summary["comparisons"]} == {"none@base"}
    # What is forked from another world's none is no twin of this one.
    assert summary["twins"]["arms"]["back"]["pairs"]["lost"] == 2
    assert summary["twins"]["arms"]["slow"]["pairs"]["forked"] == 2
    turned = compare([tmp_path / "base", tmp_path / "late"], reference="none@late", arms=["back"])
    assert turned["twins"]["arms"]["back"]["pairs"]["forked"] == 2


def test_what_runs_differ_in_is_said(tmp_path: Path) -> None:
    run(tmp_path / "a" / "run", inits=(0,))
    other: dict[str, Any] = {"protocol": Protocol(max_steps=8), "detector": Detector(position_score, 0.5, "position")}
    run(tmp_path / "b" / "run", inits=(0,), limit=None, **other)
    summary = compare([tmp_path / "a" / "run", tmp_path / "b" / "run"])
    warnings = "\n".join(summary["warnings"])
    assert "differ in max_steps: 20 (a/run), 8 (b/run)" in warnings and "differ in detector.threshold" in warnings
    assert "differ in suite" not in warnings
    assert summary["partial_reasons"] == ["b/run: step limit 8 instead of the suite's 20"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "one", inits=(0,))
    with pytest.raises(UnknownName, match=r"slo.*'slow'"):
        compare([tmp_path / "one"], arms=["slo"])
    with pytest.raises(UnknownName, match="nome"):
        compare([tmp_path / "one"], reference="nome")
    with pytest.raises(ValueError, match="each once"):
        compare([tmp_path / "one", tmp_path / "one"])
    with pytest.raises(ValueError, match="name a results folder"):
        compare([])
    with pytest.raises(FileNotFoundError, match="holds no evaluation run"):
        compare([tmp_path / "two"])


def test_without_triggers_it_says_so(tmp_path: Path) -> None:
    run(tmp_path / "one", inits=(0,), detector=None)
    assert twin_lines(compare([tmp_path / "one"])) == ["no trigger was logged, so there are no twins to compare"]
