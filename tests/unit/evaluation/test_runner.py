"""The runner resumes, isolates errors, and loses nothing: bookkeeping on a stand-in environment."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mist_interp.core.errors import UnknownName
from mist_interp.core.files import read_json_lines
from mist_interp.data.policy_source import PolicySource
from mist_interp.evaluation import Detector, NoEdit, Protocol, SettingsDiffer, evaluate
from mist_interp.evaluation.arms import ArmLog, Intervene
from mist_interp.evaluation.comparison import compare
from mist_interp.evaluation.progress import Progress
from mist_interp.tracing.interventions import load_edits
from mist_interp.tracing.verbs import skip
from tests.unit.evaluation.fakes import FakeEnv, FakeSuite, FakeVLA, make_fake_env, position_score

DETECTOR = Detector(position_score, threshold=0.3, name="position")


@dataclass(frozen=True)
class Slow:
    """Halves every action: an arm that edits."""

    name: str = "slow"
    factor: float = 0.5

    def config(self) -> dict[str, Any]:
        return {"kind": "slow", "factor": self.factor}

    def act(self, vla: Any, inputs: Any, query: Any) -> Any:
        chunk = vla(inputs)
        return replace(chunk, values=chunk.values * self.factor), ArmLog("slow", 1.0, {"query": query.index})


ARMS = (NoEdit(), Slow())


def run(out: Path, vla: Any = None, **changes: Any) -> Any:
    settings: dict[str, Any] = {"arms": ARMS, "inits": (0, 1, 2), "detector": DETECTOR, "make_env": make_fake_env}
    return evaluate(vla or FakeVLA(), FakeSuite(), out=out, **(settings | changes))


def test_a_full_run_writes_everything_and_nothing_runs_twice(tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = run(tmp_path, on_progress=seen.append)
    assert (result.planned, result.to_run) == (18, 18)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "plan.jsonl", "episodes.jsonl", "queries", "episodes.parquet", "summary.json"}
    assert [progress.done for progress in seen] == list(range(19))
    assert seen[-1].seconds_left == 0
    again = FakeVLA()
    assert run(tmp_path, again).to_run == 0 and again.calls == []
    assert len(read_json_lines(tmp_path / "episodes.jsonl")) == 18


def test_edits_that_are_data_are_kept_with_the_run(tmp_path: Path) -> None:
    """The arm never acts here (nothing triggers it); its edit is on the disk all the same, before the first episode."""
    arms = (NoEdit(), Intervene((skip(3),), "triggered", "cut"))
    few: dict[str, Any] = {"inits": (0,), "tasks": (0,), "detector": None}
    run(tmp_path, arms=arms, **few)
    assert load_edits(tmp_path / "edits" / "cut.safetensors") == [skip(3)]
    stored = json.loads((tmp_path / "config.json").read_text())["settings"]["arms"]["cut"]
    assert stored == {"kind": "edits", "edits": [skip(3).to_dict()], "when": "triggered"}
    run(tmp_path, arms=arms, **few)
    with pytest.raises(SettingsDiffer, match=r"arms\.cut"):
        run(tmp_path, arms=(NoEdit(), Intervene((skip(2),), "triggered", "cut")), **few)


def test_one_environment_per_task(tmp_path: Path) -> None:
    FakeEnv.built.clear()
    run(tmp_path)
    assert FakeEnv.built == [0, 1, 2]


def test_rows_say_what_happened(tmp_path: Path) -> None:
    rows = {row["key"]: row for row in run(tmp_path).folder.rows()}
    row = rows["none/fake-t00-i001-none-s0-p0"]
    # 1/16 per step, goal at 0.75: 12 steps in 3 queries of 4; touches at the 11th step, 4 N.
    assert (row["success"], row["steps"], row["queries"]) == (True, 12, 3)
    assert (row["collision_1n"], row["collision_10n"], row["events_1n"], row["first_event_step"]) == (
        True,
        False,
        1,
        10,
    )
    assert (row["triggered"], row["trigger_query"], row["active_queries"]) == (True, 2, 1)
    assert (row["edited_queries"], row["median_edit_norm"]) == (0, None)
    assert row["provenance"]["model_id"] == "fake" and row["provenance"]["profile"] == "fast"
    slow = rows["slow/fake-t00-i001-none-s0-p0"]
    assert (slow["success"], slow["steps"], slow["queries"], slow["edited_queries"]) == (False, 20, 5, 5)


def test_queries_hold_actions_scores_and_edits(tmp_path: Path) -> None:
    folder = run(tmp_path).folder
    queries = folder.queries(next(e for e in folder.plan() if e.arm == "slow"))
    assert list(queries["step"]) == [0, 4, 8, 12]
    assert list(queries["edit"].unique()) == ["slow"]
    assert queries["executed"][0][0].tolist() == [0.5, 0, 0, 0, 0, 0, 1.0]
    assert len(queries["proprio"][0]) == 8
    assert queries["score"].iloc[1] == 0.125
    assert json.loads(queries["details"][2]) == {"query": 2}


class Interrupted(FakeVLA):
    def __call__(self, inputs: Any) -> Any:
        raise KeyboardInterrupt


def test_an_error_is_a_row_and_the_unit_leaves_the_comparison(tmp_path: Path) -> None:
    result = run(tmp_path, FakeVLA(crash_on=(1,)))
    rows = result.folder.rows()
    assert rows[0]["status"] == "error" and "the policy crashed" in rows[0]["error"]
    assert "Traceback" in rows[0]["traceback"]
    summary = result.summary()
    assert summary["units"] == {"compared": 8, "dropped_for_errors": 1, "not_finished_in_all_arms": 0}
    assert summary["episodes"]["errors"] == 1
    assert all(arm["units"] == 8 for arm in summary["arms"].values())
    assert run(tmp_path).to_run == 0 and (tmp_path / "summary.json").exists()
    with pytest.raises(KeyboardInterrupt):  # cut before it is said anew
        run(tmp_path, Interrupted(), retry_errors=True)
    assert not (tmp_path / "summary.json").exists()
    assert run(tmp_path, retry_errors=True).to_run == 1
    repaired = run(tmp_path).folder.rows()
    assert len(repaired) == 18 and all(row["status"] == "ok" for row in repaired)


def test_a_nan_edit_is_an_error_row(tmp_path: Path) -> None:
    rows = run(tmp_path, arms=(NoEdit(), Slow(factor=float("nan"))), limit=1).folder.rows()
    assert [row["status"] for row in rows] == ["ok", "error"]
    assert "not finite (slow)" in rows[1]["error"]


def test_without_a_detector_nothing_is_triggered_and_recovery_is_undefined(tmp_path: Path) -> None:
    result = run(tmp_path, detector=None)
    assert {row["triggered"] for row in result.folder.rows()} == {None}
    recovery = result.summary()["arms"]["none"]["metrics"]["raw_recovery_rate"]
    assert (recovery["value"], recovery["n"]) == (None, 0)


def test_an_environment_in_which_something_crashed_is_replaced(tmp_path: Path) -> None:
    FakeEnv.built.clear()
    run(tmp_path, FakeVLA(crash_on=(1,)))
    assert FakeEnv.built == [0, 0, 1, 2]


def test_a_run_that_only_crashes_stops(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"10 episodes failed one after .*the policy crashed.*\(--retry-errors\)"):
        run(tmp_path, FakeVLA(crash_on=tuple(range(1, 100))))
    assert len(read_json_lines(tmp_path / "episodes.jsonl")) == 10


def test_a_finished_run_without_a_valid_unit_is_no_result(tmp_path: Path) -> None:
    summary = run(tmp_path, FakeVLA(crash_on=tuple(range(1, 7))), tasks=(0,)).summary()
    assert summary["partial_reasons"] == ["no unit is valid in every arm: 6 of 6 episodes crashed"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"protocol": Protocol(max_steps=8)}, "max_steps"),
        ({"protocol": Protocol(profile="faithful")}, "profile"),
        ({"protocol": Protocol(open_loop_steps=1)}, "open_loop_steps"),
        ({"detector": Detector(position_score, 0.4, "position")}, "detector.threshold"),
        ({"vla": FakeVLA(model_id="other")}, "model.model_id"),
        ({"arms": (NoEdit(), Slow(factor=0.25))}, "arms.slow.factor"),
    ],
)
def test_other_settings_in_the_folder_are_named(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    run(tmp_path, limit=1)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(SettingsDiffer, match=field.replace(".", r"\.")):
        run(tmp_path, **change)
    assert (tmp_path / "config.json").read_text() == before


def test_a_run_of_an_older_layout_is_not_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path, limit=1)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "layout"}))
    with pytest.raises(SettingsDiffer, match="layout 1; this version reads and writes layout 3"):
        run(tmp_path)
    with pytest.raises(SettingsDiffer, match="or run it again"):
        compare([tmp_path])


def test_a_run_can_be_extended_but_not_shrunk(tmp_path: Path) -> None:
    run(tmp_path, arms=(NoEdit(),), inits=(0, 1))
    assert run(tmp_path, inits=(0, 1, 2)).to_run == 12
    with pytest.raises(SettingsDiffer, match="init_state: 2"):
        run(tmp_path, inits=(0, 1))
    with pytest.raises(SettingsDiffer, match="arm: slow"):
        run(tmp_path, arms=(NoEdit(),))


def test_a_limited_run_is_marked_partial_and_can_be_completed(tmp_path: Path) -> None:
    result = run(tmp_path, limit=2)
    assert result.to_run == 4
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["partial"] and "4 of 18" in summary["partial_reasons"][0]
    run(tmp_path)
    assert not json.loads((tmp_path / "summary.json").read_text())["partial"]


@pytest.mark.parametrize("limit", [8, 21])
def test_another_step_limit_marks_the_run_partial(tmp_path: Path, limit: int) -> None:
    summary = run(tmp_path, protocol=Protocol(max_steps=limit)).summary()
    assert summary["partial_reasons"] == [f"step limit {limit} instead of the suite's 20"]
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["max_steps"] == limit


def test_the_suites_own_step_limit_is_no_reason(tmp_path: Path) -> None:
    assert not run(tmp_path, protocol=Protocol(max_steps=20)).summary()["partial"]


def test_what_was_chosen_at_loading_belongs_to_the_run(tmp_path: Path) -> None:
    class Network(torch.nn.Linear):
        unnorm_key = "fake_no_noops"

    @dataclass
    class Wrapped(FakeVLA):
        policy: Any = None

    network = Network(1, 1)
    run(tmp_path, Wrapped(policy=network), limit=1)
    assert json.loads((tmp_path / "summary.json").read_text())["warnings"] == []
    network.unnorm_key = "other_no_noops"
    with pytest.raises(SettingsDiffer, match=r"model\.unnorm_key: 'fake_no_noops' there, 'other_no_noops' now"):
        run(tmp_path, Wrapped(policy=network), limit=1)


def test_statistics_of_another_suite_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Network(torch.nn.Linear):
        unnorm_key = "other_no_noops"

    @dataclass
    class Wrapped(FakeVLA):
        policy: Any = None

    summary = run(tmp_path, Wrapped(policy=Network(1, 1)), limit=1).summary()
    assert summary["warnings"] == ["actions are scaled with the statistics of other_no_noops, but the suite is fake"]
    assert summary["warnings"][0] in caplog.text


def test_episodes_of_other_software_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mist_interp.evaluation.execute as execute_module

    run(tmp_path, limit=2)
    facts = execute_module.provenance()
    monkeypatch.setattr(execute_module, "provenance", lambda: facts | {"torch": "9.9"})
    (warning,) = run(tmp_path).summary()["warnings"]
    assert warning == f"episodes were run with different torch: 9.9 (14), {facts['torch']} (4)"


def test_shards_complete_each_other(tmp_path: Path) -> None:
    counts, summed = [], []
    for shard in range(4):
        counts.append(run(tmp_path, shard=f"{shard}/4").to_run)
        summed.append((tmp_path / "summary.json").exists())
    assert summed == [False, False, False, True]  # only the last one knows what all of it says
    assert sum(counts) == 18 and len(set(counts)) > 1
    assert not run(tmp_path).summary()["partial"]


def test_what_was_said_of_fewer_episodes_does_not_stand_beside_more(tmp_path: Path) -> None:
    run(tmp_path, inits=(0, 1))
    (tmp_path / "report.html").touch()
    run(tmp_path, inits=(0, 1))  # nothing is missing, so nothing is taken back
    assert (tmp_path / "report.html").exists()
    run(tmp_path, shard="0/2")
    assert not (tmp_path / "summary.json").exists() and not (tmp_path / "report.html").exists()
    run(tmp_path, shard="1/2")
    assert json.loads((tmp_path / "summary.json").read_text())["episodes"]["finished"] == 18


def test_shards_of_a_limited_run_sum_it_up_as_partial(tmp_path: Path) -> None:
    for shard in range(4):  # more shards than units: some have nothing to do
        result = run(tmp_path, shard=f"{shard}/4", limit=2)
    assert json.loads((tmp_path / "summary.json").read_text())["partial"] and len(result.episodes()) == 4


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = run(tmp_path / "new", dry_run=True)
    assert (result.planned, result.to_run) == (18, 18) and not (tmp_path / "new").exists()


def test_workers_do_the_same_work(tmp_path: Path) -> None:
    seen: list[Progress] = []
    run(tmp_path / "two", workers=2, on_progress=seen.append)
    run(tmp_path / "one")
    tables = [pd.read_parquet(tmp_path / name / "episodes.parquet") for name in ("one", "two")]
    columns = ["key", "success", "steps", "collision_1n", "trigger_query"]
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns])
    assert seen[-1].done == 18


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tasks": (7,)}, "unknown task of fake"),
        ({"inits": (0, 9)}, "has 0 to 4"),
        ({"inits": (0.5,)}, r"inits: 0\.5 is not a whole number"),
        ({"tasks": (1.0,)}, r"tasks: 1\.0 is not a whole number"),
        ({"simulator_seeds": (-1,)}, "simulator_seeds: -1"),
        ({"policy_seeds": ("0",)}, "policy_seeds: '0'"),
        ({"workers": 0}, "workers: 0 is not a whole number of at least 1"),
        ({"limit": 0}, "limit=0"),
        ({"vla": "nope"}, "unknown policy.*'nope'.*'mini'"),
        ({"vla": PolicySource("no/such/folder")}, "unknown policy.*'no/such/folder'"),
        ({"videos": "some"}, "unknown value of videos.*'sample'"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(tmp_path: Path, change: dict, match: str) -> None:
    with pytest.raises((UnknownName, ValueError), match=match):
        run(tmp_path / "new", **change)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"profile": "fastt"}, "unknown render profile 'fastt'; did you mean 'fast'"),
        ({"resolution": 0}, "resolution: 0"),
        ({"resolution": None}, "resolution: None"),
        ({"max_steps": -5}, "max_steps: -5 is not a whole number of at least 1"),
        ({"max_steps": 0}, "max_steps: 0"),
        ({"max_steps": 40.0}, r"max_steps: 40\.0"),
        ({"open_loop_steps": 0}, "open_loop_steps: 0"),
    ],
)
def test_a_protocol_that_no_episode_can_follow_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Protocol(**settings)


def test_numbers_of_numpy_are_plain_numbers_in_the_folder(tmp_path: Path) -> None:
    result = run(tmp_path, tasks=np.arange(2), inits=np.arange(1), simulator_seeds=np.arange(1))
    assert [row["key"] for row in result.folder.rows()][:2] == [
        f"{a}/fake-t00-i000-none-s0-p0" for a in ("none", "slow")
    ]


def test_videos_of_telling_units_are_made_from_the_stored_actions(tmp_path: Path) -> None:
    folder = run(tmp_path, videos="sample").folder
    films = sorted(path.relative_to(tmp_path / "videos").as_posix() for path in (tmp_path / "videos").rglob("*.mp4"))
    assert len(films) == 8 and {film.split("/")[0] for film in films} == {"none", "slow"}
    assert all(folder.video_path(e).exists() for e in folder.plan() if e.unit.init_state == 1)


def test_a_replay_that_differs_gives_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    monkeypatch.setattr(FakeEnv, "state_hash", lambda self: "other")
    run(tmp_path, videos="sample")
    assert not (tmp_path / "videos").exists()


def test_all_videos_are_filmed_while_running(tmp_path: Path) -> None:
    run(tmp_path, videos="all", limit=1)
    assert len(list((tmp_path / "videos").rglob("*.mp4"))) == 2


SCRIPT = """
import sys
from tests.unit.evaluation.test_runner import run
from pathlib import Path
run(Path(sys.argv[1]))
"""


def test_kill_dash_nine_loses_at_most_the_episode_in_flight(tmp_path: Path) -> None:
    log = tmp_path / "episodes.jsonl"
    environment = os.environ | {"FAKE_STEP_SECONDS": "0.02"}
    kills = 0
    for wanted in (3, 7):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment)
        until = time.monotonic() + 60
        while len(read_json_lines(log)) < wanted and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        before = len(read_json_lines(log))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += process.returncode == -signal.SIGKILL
        assert before >= wanted and len(read_json_lines(log)) >= before
    assert kills == 2
    finished = read_json_lines(log)
    result = run(tmp_path)
    assert result.to_run == 18 - len(finished)
    rows = read_json_lines(log)
    assert rows[: len(finished)] == finished
    assert len({row["key"] for row in rows}) == len(rows) == 18


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mist_interp.evaluation.folder as folder_module

    original, stored = folder_module.append_json_line, []

    def full(path: Path, row: dict[str, Any]) -> None:
        if len(stored) == 5:
            raise OSError(28, "No space left on device")
        stored.append(row["key"])
        original(path, row)

    monkeypatch.setattr(folder_module, "append_json_line", full)
    with pytest.raises(OSError, match=r"No space left.*make room"):
        run(tmp_path)
    monkeypatch.undo()
    assert [row["key"] for row in read_json_lines(tmp_path / "episodes.jsonl")] == stored
    assert run(tmp_path).to_run == 13
