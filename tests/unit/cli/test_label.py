"""`mist label` counts, explains and refuses; the picture shows what the record says."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from mist_interp.cli import main
from mist_interp.data.manifest import Manifest
from mist_interp.data.records import ReleaseRecord
from mist_interp.data.store import RolloutStore
from mist_interp.probing import Explanation, Risk, explain
from mist_interp.probing.audit import Finding, append_finding, asked
from mist_interp.report.label_figure import label_figure
from tests.unit.probing.risk_fixtures import constant, recorded, touch

KEY = "libero_spatial-t00-i000-none-s0-p0-none"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RolloutStore:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    made = RolloutStore.create(tmp_path / "rollouts", Manifest((), {"suite": "synthetic"}))
    contacts = touch(30, last=30), touch(30, (-1.0, 0, 0), (0.1, 0, 0), kind="finger-box", force=15, finger_speed=0.02)
    made.append(recorded(constant(80, dx=0.1, dz=-0.5), *contacts))
    made.append(recorded(constant(80), releases=(ReleaseRecord(20, "bowl", True, 24, "table", False),), init_state=1))
    made.append(recorded(constant(64, gripper=-1), init_state=10))
    return made


def counts(said: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in said.splitlines() if len(line.split()) == 6}


def test_it_counts_labels_and_masks(store: RolloutStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", str(store.folder)]) == 0
    said = capsys.readouterr().out
    assert "28 queries of 3 episodes" in said and "the episode ends inside the window" in said
    rows = counts(said)
    assert rows["dz"][0] == rows["gripper"][0] == "2" and rows["dy"][0] == "0"


def test_it_takes_the_audit_of_the_rollouts(store: RolloutStore, capsys: pytest.CaptureFixture[str]) -> None:
    """dy, which closed nothing of the gap, was necessary; what geometry says of it is wrong elsewhere, too."""
    arguments = ["label", str(store.folder), "--audit"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"{store.folder} have no knockout audit" in error and "experiments/labels/audit.py" in error
    dy, dz = (tuple(place == only for place in range(7)) for only in (1, 2))
    window, pairs = constant(18, dx=0.1, dz=-0.5), (("hand", "table"), ("finger", "box"))
    for step in (16, 24):
        own = (0.0,) * 2 + (1.0,) + (0.0,) * 4
        finding = Finding(KEY, step // 8, step, 30, pairs, own, (None,) * 6, True, Risk().asks, asked(window, 1.0), dy)
        append_finding(store, finding)
        append_finding(store, replace(finding, episode="another", geometric=own[::-1], necessary=dz))
    assert main(arguments) == 0
    assert counts(capsys.readouterr().out)["dy"][0] == "2"
    assert main(arguments[:-1]) == 0
    assert counts(capsys.readouterr().out)["dy"][0] == "0"
    assert main([*arguments, "--horizon", "9"]) == 1
    assert "the labels ask with horizon=9" in capsys.readouterr().err


def test_it_explains(store: RolloutStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", str(store.folder), "--explain", KEY, "3", "--no-draw"]) == 0
    said = capsys.readouterr().out
    assert "step 30: finger touches box (finger-box), 15.0 N at most" in said
    assert "the finger's own joint closed the gap at 20.0 mm/s" in said
    row = next(line for line in said.splitlines() if line.split()[:1] == ["dz"])
    # 5 N down at 0.5 against 15 N ahead at 0.1: shares 2.5 to 1.5.
    assert row.split()[-1] == "0.62" and row.split()[1] == "1.00"


def test_what_it_cannot_explain_is_one_line(store: RolloutStore, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["libero_spatial-t00-i00", "3"], "2 episodes begin with"),
        (["libero_spatial-t07", "3"], "libero_spatial-t00"),
        ([KEY, "11"], "query"),
    ):
        assert main(["label", str(store.folder), "--explain", *arguments, "--no-draw"]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert main(["label", str(store.folder / "nothing")]) == 1


def test_the_table_adds_up(store: RolloutStore) -> None:
    table = explain(store, KEY, 3).table().set_index("dimension")
    pose = table.iloc[:6]
    assert pose["share@30"].sum() == pytest.approx(1)
    assert table.loc["dz", "action@30"] == pytest.approx(-0.5) and table.loc["dx", "action@30"] == pytest.approx(0.1)
    # -0.05 m per unit, a quarter of the force: 12.5 mm; seven actions from step 24 on.
    weight = sum(0.9**n for n in range(7))
    assert table.loc["dz", "gain@30"] == pytest.approx(-12.5)
    assert table.loc["dz", "commanded@30"] == pytest.approx(12.5 * 0.5 * weight)


def drawn(explained: Explanation) -> Figure:
    frame = np.zeros((100, 100, 3), dtype=np.uint8)
    figure = label_figure(explained, frame, lambda points: 50 + 100 * points[:, :2], 31)
    figure.canvas.draw()
    return figure


def test_the_picture_has_the_point_the_normal_and_a_bar_per_dimension(store: RolloutStore) -> None:
    whole, close, bars = drawn(explain(store, KEY, 3)).axes
    points = [tuple(line.get_xydata()[0]) for line in whole.lines if line.get_marker() == "X"]
    assert points == [(50.0, 50.0), (60.0, 50.0)] and len(whole.texts) == 2
    widths = [bar.get_width() for bar in bars.patches]
    assert widths[2] == pytest.approx(0.625) and widths[0] == pytest.approx(0.375) and len(widths) == 7
    assert "y = 1" in bars.get_yticklabels()[2].get_text() and "masked" in bars.get_yticklabels()[1].get_text()
    low, high = close.get_xlim()
    assert low < 55 < high and high - low == pytest.approx(30)


def test_a_quiet_window_and_a_drop_can_be_drawn_too(store: RolloutStore) -> None:
    assert "nothing begins" in drawn(explain(store, KEY, 0)).axes[1].get_title(loc="left")
    other = RolloutStore.open(store.folder)
    dropped = explain(other, KEY.replace("i000", "i001"), 2, Risk())
    assert dropped.first is None, "the command was to close: it slipped"
