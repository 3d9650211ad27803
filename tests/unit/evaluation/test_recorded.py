"""A stored episode comes back as the record that the loop made of it, and drives a simulator to the same moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mist_interp.data.records import Unit
from mist_interp.data.replay import ReplayDiffers, replay_until
from mist_interp.evaluation.arms import NoEdit
from mist_interp.evaluation.episode import run_episode
from mist_interp.evaluation.folder import ResultsFolder
from mist_interp.evaluation.plan import PlannedEpisode
from mist_interp.evaluation.recorded import recorded
from tests.unit.evaluation.fakes import FakeEnv, FakeTask, FakeVLA

PLANNED = PlannedEpisode(Unit("fake", 0, 3), "none")


def ran() -> tuple[FakeEnv, dict, list]:  # type: ignore[type-arg]
    env = FakeEnv(FakeTask(0))
    row, queries, _ = run_episode(env, FakeVLA(), NoEdit(), PLANNED, instruction="go", max_steps=40)
    return env, row, queries


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    env, row, queries = ran()
    folder = ResultsFolder(tmp_path)
    folder.store(row, queries)
    (tmp_path / "plan.jsonl").touch()
    for episode in (recorded(row, queries), folder.record(folder.rows()[0])):
        assert (episode.unit, episode.arm, episode.instruction) == (PLANNED.unit, "none", "go")
        assert (episode.success, episode.steps, episode.max_steps) == (True, row["steps"], 40)
        assert [query.step for query in episode.queries] == [0, 4, 8, 12, 16][: len(queries)] and len(queries) > 3
        executed = np.concatenate([query.executed for query in episode.queries])
        assert executed.shape == (row["steps"], 7) and (executed[:, 0] == 1).all()
        hand = np.concatenate([query.hand for query in episode.queries if query.hand is not None])
        np.testing.assert_array_equal(hand[:, 0], 0.0625 * np.arange(row["steps"]))
        (contact,) = episode.contacts
        assert contact.start_step == env.events[0].start_step and contact.point == (0, 0, 0)


def test_a_record_leads_to_every_moment_and_tells_each_step() -> None:
    _, row, queries = ran()
    env, told = FakeEnv(FakeTask(0)), []
    replay_until(env, recorded(row, queries), 10, on_step=told.append)
    assert env.steps == 10 and told == list(range(11)) and env.position == 0.0625 * 10
    told.clear()
    replay_until(env, recorded(row, queries), 13, 10, on_step=told.append)
    assert env.steps == 13 and told == [11, 12, 13]


def test_a_replay_that_leaves_the_record_says_so() -> None:
    _, row, queries = ran()
    queries[2]["state_hash"] = "another"
    with pytest.raises(ReplayDiffers, match="query 2"):
        replay_until(FakeEnv(FakeTask(0)), recorded(row, queries), 8)
    replay_until(FakeEnv(FakeTask(0)), recorded(row, queries), 7)
