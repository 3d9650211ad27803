"""Forked episodes are whole episodes: equal to those run from the start, at the cost of what follows the trigger."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mist_interp.evaluation.folder as folder_module
from mist_interp.core.files import read_json_lines
from mist_interp.evaluation import Detector, NoEdit, evaluate
from mist_interp.evaluation.arms import ArmLog, Query
from mist_interp.evaluation.folder import ResultsFolder
from mist_interp.evaluation.plan import PlannedEpisode
from mist_interp.evaluation.twins import gated_names, prefix_hash, reference_first
from tests.unit.evaluation.fakes import FakeEnv, FakeSuite, FakeVLA, make_fake_env, position_score

# One step moves by 1/16 and a query is 4 steps: query 2 sees 0.5, a little less with noise. Init 0 succeeds at 0.5.
DETECTOR = Detector(position_score, threshold=0.495, name="position")
OWN_COLUMNS = {"key", "arm", "seconds", "finished_at", "start", "queries_run", "median_query_ms", "median_observe_ms"}


@dataclass(frozen=True)
class Scale:
    """Scales the answer from the trigger on; a factor of 1 does nothing."""

    factor: float
    name: str = "scale"
    gated: bool = True
    crash: bool = False

    def config(self) -> dict[str, Any]:
        return {"kind": "scale", "factor": self.factor}

    def act(self, vla: Any, inputs: Any, query: Query) -> Any:
        chunk = vla(inputs)
        if not query.triggered:
            return chunk, ArmLog()
        if self.crash:
            raise RuntimeError("this arm crashes")
        return replace(chunk, values=chunk.values * self.factor), ArmLog(self.name, 1.0)


ARMS = (NoEdit(), Scale(1.0, "idle"), Scale(0.25, "slow"), Scale(-1.0, "back"))


def run(out: Path, vla: Any = None, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "arms": ARMS,
        "tasks": (0,),
        "inits": (0, 1, 2),
        "detector": DETECTOR,
        "make_env": make_fake_env,
        "perturbations": ("noise0.1",),
    }
    return evaluate(vla or FakeVLA(), FakeSuite(), out=out, **(settings | changes))


def outcome(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in OWN_COLUMNS}


def states(folder: ResultsFolder, row: dict[str, Any]) -> list[Any]:
    queries = folder.queries(PlannedEpisode.from_row(row))
    columns = ["query", "step", "state_hash", "score", "fired", "triggered", "edit"]
    return [*queries[columns].values.tolist(), [a.tolist() for chunk in queries["executed"] for a in chunk]]


def test_forked_episodes_equal_those_run_from_the_start(tmp_path: Path) -> None:
    """Row by row and query by query, disturbed, with contacts from before the trigger and over the full horizon."""
    forked = run(tmp_path / "fork", full_horizon=True)
    whole = run(tmp_path / "whole", fork=False, full_horizon=True)
    for mine, other in zip(forked.folder.rows(), whole.folder.rows(), strict=True):
        assert outcome(mine) == outcome(other) and mine["key"] == other["key"]
        assert states(forked.folder, mine) == states(whole.folder, other)
    starts = {row["key"][:12]: row["start"] for row in forked.folder.rows() if row["init_state"] == 1}
    assert set(starts.values()) == {"reset", "fork"}
    assert {row["start"] for row in whole.folder.rows()} == {"reset"}
    pairs = [result.summary()["twins"]["arms"]["idle"]["pairs"] for result in (forked, whole)]
    assert pairs[0] == {"forked": 2, "matched": 0, "untriggered": 1, "lost": 0}
    assert pairs[1] == {"forked": 0, "matched": 2, "untriggered": 1, "lost": 0}


class Noisy(FakeVLA):
    """Draws what it answers, as a diffusion head does."""

    def __call__(self, inputs: Any) -> Any:
        chunk = super().__call__(inputs)
        return replace(chunk, values=chunk.values - 0.2 * torch.rand(chunk.values.shape, dtype=torch.float64))


def test_a_policy_that_draws_its_answers_draws_the_same_in_a_fork(tmp_path: Path) -> None:
    """Seeded query by query: neither what lies before nor who else has drawn matters, the seed of the policy does."""
    settings: dict[str, Any] = {"policy_seeds": (0, 1), "perturbations": ("none",)}
    forked = run(tmp_path / "fork", Noisy(), **settings)
    whole = run(tmp_path / "whole", Noisy(), fork=False, **settings)
    for mine, other in zip(forked.folder.rows(), whole.folder.rows(), strict=True):
        assert states(forked.folder, mine) == states(whole.folder, other)
    assert "fork" in {row["start"] for row in forked.folder.rows()}
    rows = [row for row in forked.folder.rows() if row["arm"] == "none" and row["init_state"] == 1]
    first, second = (states(forked.folder, row)[-1] for row in rows)
    assert first[0] != second[0] and first[0] != first[4]  # two seeds, two queries


def test_only_what_follows_the_trigger_is_run(tmp_path: Path) -> None:
    vla = FakeVLA()
    rows = run(tmp_path, vla, arms=(NoEdit(), Scale(1.0, "idle")), inits=(0, 2), perturbations=("none",)).folder.rows()
    none, idle, untriggered = rows[1], rows[3], rows[2]
    by = {(row["arm"], row["init_state"]): row for row in rows}
    none, idle, untriggered = by["none", 2], by["idle", 2], by["idle", 0]
    assert (none["queries"], none["trigger_query"], none["trigger_step"]) == (4, 2, 8)
    assert (idle["queries"], idle["queries_run"], idle["start"]) == (4, 2, "fork")
    assert (untriggered["start"], untriggered["queries_run"], untriggered["seconds"]) == ("copy", 0, 0.0)
    # Four queries and two of none; the fork asks at the last two of none's four.
    assert vla.calls == [0.0, 0.25, 0.0, 0.25, 0.5, 0.75, 0.5, 0.75]


def test_a_unit_without_a_trigger_is_what_running_it_gives(tmp_path: Path) -> None:
    silent = Detector(position_score, threshold=9.0)
    copied = run(tmp_path / "copy", detector=silent).folder.rows()
    ran = run(tmp_path / "run", detector=silent, fork=False).folder.rows()
    assert [outcome(row) for row in copied] == [outcome(row) for row in ran]
    assert [row["start"] for row in copied if row["arm"] != "none"] == ["copy"] * 9


def test_arms_that_are_not_gated_run_from_the_start_and_are_lost_or_matched(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Always(Scale):
        def act(self, vla: Any, inputs: Any, query: Query) -> Any:
            return super().act(vla, inputs, replace(query, triggered=True))

    arms = (NoEdit(), Always(0.9, "always", False), Scale(0.5, "late", False))
    assert gated_names(arms) == frozenset()
    result = run(tmp_path, arms=arms)
    assert {row["start"] for row in result.folder.rows()} == {"reset"}
    pairs = {arm: facts["pairs"] for arm, facts in result.summary()["twins"]["arms"].items()}
    assert pairs["always"] == {"forked": 0, "matched": 0, "untriggered": 1, "lost": 2}
    assert pairs["late"] == {"forked": 0, "matched": 2, "untriggered": 1, "lost": 0}


def test_the_reference_runs_first_wherever_it_is_named(tmp_path: Path) -> None:
    result = run(tmp_path, arms=(Scale(0.5, "slow"), NoEdit()))
    stored = [row["arm"] for row in read_json_lines(tmp_path / "episodes.jsonl")]
    assert stored == ["none", "slow"] * 3
    assert list(result.summary()["arms"]) == ["slow", "none"]
    assert [episode.arm for episode in reference_first(result.folder.plan())] == stored


def cut(whole: Path, out: Path, keep: Callable[[dict[str, Any]], bool]) -> list[str]:
    """A copy of a run as a kill would have left it; returns the keys that are done."""
    shutil.copytree(whole, out)
    rows = [row for row in read_json_lines(whole / "episodes.jsonl") if keep(row)]
    (out / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [row["key"] for row in rows]


def test_a_run_cut_inside_a_unit_goes_on_by_replaying_none(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole").folder
    done = cut(whole.path, tmp_path / "cut", lambda row: row["init_state"] < 2 and row["arm"] in ("none", "idle"))
    vla = FakeVLA()
    result = run(tmp_path / "cut", vla)
    assert result.to_run == 12 - len(done)
    rows = read_json_lines(tmp_path / "cut" / "episodes.jsonl")
    assert [row["key"] for row in rows[: len(done)]] == done
    # The first arm of the unit replays, the others branch off from the state that this has left behind.
    assert [row["start"] for row in rows if row["arm"] in ("slow", "back")] == [
        "copy",
        "copy",
        "replay",
        "fork",
        "fork",
        "fork",
    ]
    for mine, other in zip(result.folder.rows(), whole.rows(), strict=True):
        assert outcome(mine) == outcome(other)
        assert states(result.folder, mine) == states(whole, other)


def test_kill_dash_nine_inside_a_forked_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed where two of a unit's four arms are done: they are not run again, and the rest is as without the kill."""
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.03")
    log, wanted = tmp_path / "cut" / "episodes.jsonl", 6
    child = multiprocessing.get_context("fork").Process(target=run, args=(tmp_path / "cut",))
    child.start()
    until = time.monotonic() + 120
    while len(read_json_lines(log)) < wanted and child.is_alive() and time.monotonic() < until:
        time.sleep(0.005)
    child.kill()
    child.join()
    monkeypatch.delenv("FAKE_STEP_SECONDS")
    before = read_json_lines(log)
    assert child.exitcode == -signal.SIGKILL and wanted <= len(before) < 12
    assert run(tmp_path / "cut").to_run == 12 - len(before)
    rows = read_json_lines(log)
    assert rows[: len(before)] == before and len(rows) == len({row["key"] for row in rows}) == 12
    whole, result = run(tmp_path / "whole").folder, ResultsFolder(tmp_path / "cut")
    for mine, other in zip(result.rows(), whole.rows(), strict=True):
        assert outcome(mine) == outcome(other)
        assert states(result, mine) == states(whole, other)


def test_a_replay_that_leaves_the_recorded_states_is_run_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(tmp_path / "whole").folder
    cut(whole.path, tmp_path / "cut", lambda row: row["arm"] == "none")
    original = FakeEnv.state_hash
    monkeypatch.setattr(FakeEnv, "state_hash", lambda self: original(self) + "x")
    result = run(tmp_path / "cut", inits=(0, 1, 2))
    assert "leaves the recorded states at query 0" in caplog.text and "arms are run from the start" in caplog.text
    assert {row["start"] for row in result.folder.rows() if row["init_state"]} == {"reset"}
    assert result.summary()["twins"]["arms"]["slow"]["pairs"]["lost"] == 2


@pytest.mark.parametrize("arm", [Scale(1.0, "bad", crash=True), Scale(float("nan"), "bad")])
def test_an_arm_that_crashes_costs_its_own_episodes_only(tmp_path: Path, arm: Scale) -> None:
    """Its simulator is thrown away; the next arm branches off in a new one."""
    result = run(tmp_path, arms=(NoEdit(), arm, Scale(0.25, "slow")))
    rows = {(row["arm"], row["init_state"]): row for row in result.folder.rows()}
    assert [rows["bad", init]["status"] for init in (0, 1, 2)] == ["ok", "error", "error"]
    assert [rows["slow", init]["start"] for init in (0, 1, 2)] == ["copy", "fork", "fork"]
    alone = run(tmp_path / "alone", arms=(NoEdit(), Scale(0.25, "slow"))).folder.rows()
    assert [outcome(rows["slow", init]) for init in (0, 1, 2)] == [outcome(r) for r in alone if r["arm"] == "slow"]
    assert result.summary()["units"] == {"compared": 1, "dropped_for_errors": 2, "not_finished_in_all_arms": 0}


def test_where_none_crashes_the_others_run_from_the_start(tmp_path: Path) -> None:
    result = run(tmp_path, FakeVLA(crash_on=(1,)), inits=(1,))
    assert [(row["status"], row["start"] if row["status"] == "ok" else "") for row in result.folder.rows()] == [
        ("error", ""),
        *[("ok", "reset")] * 3,
    ]


@pytest.mark.parametrize("broken", ["append_json_line", "write_atomic"])
def test_a_full_disk_inside_a_forked_unit_loses_no_finished_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    original, calls = getattr(folder_module, broken), []

    def full(path: Path, content: Any) -> None:
        calls.append(str(path))
        if sum("queries" in call or "episodes" in call for call in calls) == 6:
            raise OSError(28, "No space left on device")
        original(path, content)

    monkeypatch.setattr(folder_module, broken, full)
    with pytest.raises(OSError, match=r"No space left.*make room"):
        run(tmp_path)
    monkeypatch.undo()
    finished = read_json_lines(tmp_path / "episodes.jsonl")
    assert len(finished) == 5
    assert run(tmp_path).to_run == 7
    rows = read_json_lines(tmp_path / "episodes.jsonl")
    assert rows[:5] == finished and len({row["key"] for row in rows}) == 12
    whole = run(tmp_path / "whole").folder.rows()
    assert [outcome(row) for row in ResultsFolder(tmp_path).rows()] == [outcome(row) for row in whole]


@dataclass
class Counting:
    """A score that remembers: how many queries it has seen."""

    seen: int = 0
    given: list[int] = field(default_factory=list)

    def begin(self) -> None:
        self.seen = 0

    def memory(self) -> int:
        return self.seen

    def recall(self, memory: int) -> None:
        self.seen = memory

    def __call__(self, vla: Any, inputs: Any) -> float:
        self.seen += 1
        return float(self.seen)


def test_a_detector_that_remembers_goes_on_where_it_was(tmp_path: Path) -> None:
    detector = Detector(Counting(), threshold=1.5, name="counting")
    forked = run(tmp_path / "fork", detector=detector)
    whole = run(tmp_path / "whole", detector=detector, fork=False)
    for mine, other in zip(forked.folder.rows(), whole.folder.rows(), strict=True):
        assert outcome(mine) == outcome(other)
        assert states(forked.folder, mine) == states(whole.folder, other)
    assert "fork" in {row["start"] for row in forked.folder.rows()}
    # What it knew is not on the disk: in a run that was cut `none` lives through it again, once for all arms.
    cut(forked.folder.path, tmp_path / "cut", lambda row: row["arm"] == "none")
    counting = Counting()
    again = run(tmp_path / "cut", detector=Detector(counting, threshold=1.5, name="counting")).folder
    assert [row["start"] for row in again.rows()] == [row["start"] for row in forked.folder.rows()]
    assert "fork" in {row["start"] for row in again.rows()}
    for mine, other in zip(again.rows(), whole.folder.rows(), strict=True):
        assert outcome(mine) == outcome(other)
        assert states(again, mine) == states(whole.folder, other)


def test_what_does_not_come_out_again_is_run_from_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    detector = Detector(Counting(), threshold=1.5, name="counting")
    whole = run(tmp_path / "whole", detector=detector, fork=False)
    cut(whole.folder.path, tmp_path / "cut", lambda row: row["arm"] == "none")
    rows = read_json_lines(tmp_path / "cut" / "episodes.jsonl")
    strange = [row | {"prefix_hash": "of another machine"} for row in rows]
    (tmp_path / "cut" / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in strange))
    again = [row for row in run(tmp_path / "cut", detector=detector).folder.rows() if row["arm"] != "none"]
    assert {row["start"] for row in again if row["triggered"]} == {"reset"}
    assert caplog.text.count("does not come out as it is stored") == sum(row["triggered"] for row in strange)
    others = [row for row in whole.folder.rows() if row["arm"] != "none"]
    assert [outcome(row) for row in again] == [outcome(row) for row in others]


def test_films_of_forked_episodes_begin_at_the_beginning(tmp_path: Path) -> None:
    from mist_interp.report.video import read_frames

    folder = run(tmp_path, arms=(NoEdit(), Scale(0.25, "slow")), inits=(0, 1), videos="all").folder
    for row in folder.rows():
        frames = read_frames(folder.video_path(PlannedEpisode.from_row(row)))
        assert len(frames) == row["steps"] // 4 + 1


def test_the_hash_of_a_prefix_knows_states_to_the_trigger_and_actions_before_it() -> None:
    def rows(states: str, actions: str) -> list[dict[str, Any]]:
        return [{"state_hash": s, "executed": [[float(a)] * 7]} for s, a in zip(states, actions, strict=True)]

    base = prefix_hash(rows("abc", "123"), 1)
    assert base == prefix_hash(rows("abz", "193"), 1) != prefix_hash(rows("abc", "923"), 1)
    assert base != prefix_hash(rows("axc", "123"), 1) and base != prefix_hash(rows("abc", "123"), 2)
    assert prefix_hash(rows("abc", "123"), None) is None
