"""Every number follows from episodes.parquet, and one that does not is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mist_interp.cli import main
from mist_interp.evaluation import failures
from mist_interp.evaluation.folder import episode_table, rows_of_table
from mist_interp.evaluation.summary import summarize
from mist_interp.report import write_report
from mist_interp.report.recomputation import differences, recompute
from tests.unit.evaluation.fakes import FakeVLA
from tests.unit.evaluation.tables import episode
from tests.unit.evaluation.test_twins import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an episode that crashed, so that columns have gaps; what fails drops its object."""
    out = tmp_path_factory.mktemp("recompute") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures, "objects_to_move", lambda suite, task: ("bowl",))
        patch.setattr(failures, "failure_type", lambda record, wanted: "dropped")
        run(out, FakeVLA(crash_on=(8,)), inits=(0, 1, 2, 4), full_horizon=True)
    write_report(out)
    assert "Which failures" in (out / "report.html").read_text(encoding="utf-8")
    return out


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_every_number_follows_from_the_episodes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "episodes.jsonl").unlink()  # from the table alone
    (folder / "episodes.jsonl").touch()
    shutil.rmtree(folder / "queries")
    assert recompute(folder) == []
    assert main(["recompute", str(folder)]) == 0
    assert "every number follows" in capsys.readouterr().out


def _summary(folder: Path) -> None:
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["twins"]["arms"]["slow"]["failure"]["harm_rate"]["value"] = 0.75
    path.write_text(json.dumps(summary))


def _report(folder: Path) -> None:
    path = folder / "report.html"
    page = path.read_text(encoding="utf-8")
    place = page.index("<small>", page.index("Twin worlds"))
    path.write_text(page[:place] + "9" + page[place:], encoding="utf-8")


def _tooltip(folder: Path) -> None:
    path = folder / "report.html"
    path.write_text(path.read_text(encoding="utf-8").replace("n = 2'", "n = 3'").replace('n = 2"', 'n = 3"'))


def _episode(folder: Path) -> None:
    frame = pd.read_parquet(folder / "episodes.parquet")
    row = frame.index[(frame["arm"] == "slow") & (frame["init_state"] == 2)][0]
    frame["success"] = frame["success"].astype(object)
    frame.loc[row, "success"] = not frame.loc[row, "success"]
    frame.to_parquet(folder / "episodes.parquet")


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (_summary, "summary.json, twins.arms.slow.failure.harm_rate.value: 0.75 there, 1.0 recomputed"),
        (_report, "report.html, Twin worlds, after "),
        (_tooltip, "report.html, "),
        (_episode, "summary.json, arms.slow.metrics.success_rate.value"),
    ],
)
def test_a_number_that_was_changed_is_found(
    folder: Path, tamper: Callable[[Path], None], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(folder)
    found = recompute(folder)
    assert any(line.startswith(expected) for line in found), found
    assert main(["recompute", str(folder)]) == 1
    assert "differences" in capsys.readouterr().err


def test_a_folder_without_a_table_has_nothing_to_recompute_from(folder: Path) -> None:
    (folder / "episodes.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"no episodes\.parquet"):
        recompute(folder)


def test_differences_are_named_to_the_leaf() -> None:
    stored = {"a": {"b": [1, 2.0]}, "flag": True, "gone": 1, "same": 0.1 + 0.2}
    now = {"a": {"b": [1, 2.5, 3]}, "flag": 1, "new": None, "same": 0.3}
    assert list(differences(stored, now)) == [
        "a.b[1]: 2.0 there, 2.5 recomputed",
        "a.b[2]: 'nothing' there, 3 recomputed",
        "flag: True there, 1 recomputed",
        "gone: 1 there, 'nothing' recomputed",
        "new: 'nothing' there, None recomputed",
    ]


def test_risks_and_disturbed_objects_survive_the_table(tmp_path: Path) -> None:
    rng, arms = np.random.default_rng(0), ["none", "steer"]
    rows = [
        episode(arm, k % 6, k, foreseen=risks(rng, k), disturbed=["", "cup", "cup, box", None][k % 4], releases=[])
        for arm in arms
        for k in range(60)
    ]
    path = tmp_path / "episodes.parquet"
    episode_table(rows).to_parquet(path, index=False)
    again = rows_of_table(pd.read_parquet(path))
    before, after = (summarize(pd.DataFrame(part), arms, draws=50) for part in (rows, again))
    assert before["risk_auc"]["arms"]["steer"]["dz"]["detection"]["value"] is not None
    assert before["arms"]["none"]["metrics"]["disturbance_rate"]["value"] == pytest.approx(2 / 3)
    assert list(differences(before, after)) == []


def risks(rng: np.random.Generator, k: int) -> dict[str, Any] | None:
    """What was foreseen in four queries; nothing in the last episodes."""
    labels = [[0], [None], [int(k % 2)], [0]]
    risk = {"dims": ["dz"], "risk": rng.random((4, 1)).tolist(), "detection": labels, "attribution": [[None]] * 4}
    return risk if k < 58 else None
