"""Quotas: the first successes and failures of a seeded order are kept, and no kill changes which."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mist_interp.data.attempts import SURPLUS, Attempts, Progress, Quota, write_counts
from mist_interp.data.manifest import BALANCED, Manifest
from mist_interp.data.plan import plan_units
from mist_interp.data.records import EpisodeRecord, Unit, episode_key
from mist_interp.data.store import RolloutStore
from tests.unit.evaluation.fakes import FakeSuite

SUITE = FakeSuite()


def succeeds(unit: Unit) -> bool:
    return (unit.task + unit.init_state) % 3 != 0


def units(tasks: Any = "all", seeds: Any = tuple(range(8))) -> list[Unit]:
    return plan_units(SUITE, tasks, "all", seeds)  # 40 of each task


def run(attempts: Attempts, stop: int | None = None, crash: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """Runs what is to be run, up to `stop` episodes; what was run."""
    done: list[str] = []
    for unit in attempts:
        if stop is not None and len(done) == stop:
            break
        if episode_key(unit) not in crash:
            done.append(episode_key(unit))
            attempts.record(EpisodeRecord(unit, "do it", succeeds(unit), 1, 1, ()))
    return done


def begin(folder: Path, quota: Quota | None, chosen: list[Unit] | None = None, shard: str | None = None) -> Attempts:
    store = RolloutStore.create(folder, Manifest(selection="iid" if quota is None else BALANCED))
    return Attempts.plan(store, units() if chosen is None else chosen, quota, shard)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    yield


def outcomes(store: RolloutStore) -> dict[int, tuple[int, int]]:
    """Task -> successes and failures that are stored."""
    groups = store.episodes().groupby("task")["success"]
    return {int(task): (int(kept.sum()), int((~kept).sum())) for task, kept in groups}  # type: ignore[call-overload]


def test_each_task_gets_its_quota_and_nothing_more(tmp_path: Path) -> None:
    attempts = begin(tmp_path, Quota(4, 2))
    ran = run(attempts)
    assert outcomes(attempts.store) == dict.fromkeys(range(3), (4, 2))
    rows = [json.loads(line) for line in (tmp_path / SURPLUS).read_text().splitlines()]
    assert len(ran) == len(set(ran)) == 18 + len(rows) and rows, "some were run and not stored"
    assert attempts.progress() == Progress(
        18, 18, None, len(ran), sum(succeeds(u) for u in units() if u.key + "-none" in ran)
    )
    assert run(begin(tmp_path, Quota(4, 2))) == []


def test_those_kept_are_the_first_of_their_kind(tmp_path: Path) -> None:
    quota = Quota(3, 3)
    attempts = begin(tmp_path, quota)
    run(attempts)
    for task in range(3):
        order = quota.order(units([task]))
        first = {episode_key(u) for good in (True, False) for u in [u for u in order if succeeds(u) is good][:3]}
        assert {key for key in attempts.store.keys if f"-t{task:02d}-" in key} == first


@pytest.mark.parametrize("stop", range(0, 26, 5))
def test_a_call_goes_on_as_if_it_had_not_been_cut(tmp_path: Path, stop: int) -> None:
    whole = begin(tmp_path / "whole", Quota(4, 3))
    expected = run(whole)
    first = run(begin(tmp_path / "cut", Quota(4, 3)), stop)
    cut = begin(tmp_path / "cut", Quota(4, 3))
    assert first + run(cut) == expected
    assert cut.store.keys == whole.store.keys and cut.progress() == whole.progress()
    assert (tmp_path / "cut" / SURPLUS).read_text() == (tmp_path / "whole" / SURPLUS).read_text()


def test_the_order_is_seeded_and_asks_for_few_environments() -> None:
    one, two = (Quota(1, seed=seed).order(units([0])) for seed in (0, 1))
    assert one != two and sorted(one) == sorted(two) == sorted(units([0]))
    assert [unit.simulator_seed for unit in one] == sorted(unit.simulator_seed for unit in one)
    assert [unit.init_state for unit in one[:5]] != list(range(5))
    assert Quota(1, max_attempts=7).order(units([0])) == one[:7]


def test_attempts_run_out_and_may_be_raised(tmp_path: Path) -> None:
    attempts = begin(tmp_path, Quota(20, 5, max_attempts=9))
    assert len(run(attempts)) == 27
    now = attempts.progress()
    assert now.done == now.total == len(attempts.store) < 75 and now.attempts == 27
    more = begin(tmp_path, Quota(20, 5, max_attempts=40))
    assert more.progress().total == 75
    run(more)
    fresh = begin(tmp_path.parent / "fresh", Quota(20, 5, max_attempts=40))
    run(fresh)
    assert more.store.keys == fresh.store.keys


def test_an_outcome_that_is_not_wanted_is_not_stored(tmp_path: Path) -> None:
    attempts = begin(tmp_path, Quota(failures=2))
    run(attempts)
    assert outcomes(attempts.store) == dict.fromkeys(range(3), (0, 2))


def test_a_crash_waits_for_the_next_call(tmp_path: Path) -> None:
    first = Quota(4, 2).order(units([0]))[0]
    chosen = begin(tmp_path, Quota(40, 40), units([0]))
    assert len(run(chosen, crash={episode_key(first)})) == 39
    assert chosen.progress().done < chosen.progress().total, "an episode is missing"
    assert run(begin(tmp_path, Quota(40, 40), units([0]))) == [episode_key(first)]


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_shards_share_the_tasks_and_end_with_the_same_episodes(tmp_path: Path, parts: int) -> None:
    whole = begin(tmp_path / "whole", Quota(4, 3))
    run(whole)
    for part in reversed(range(parts)):
        shard = begin(tmp_path / "parts", Quota(4, 3), shard=f"{part}/{parts}")
        run(shard)
        store = write_counts(shard.store)
    assert store.keys == whole.store.keys
    assert store.manifest.counts == write_counts(whole.store).manifest.counts


def test_the_manifest_counts_every_attempt(tmp_path: Path) -> None:
    attempts = begin(tmp_path, Quota(4, 2))
    ran = run(attempts)
    write_counts(attempts.store)
    counts = RolloutStore.open(tmp_path).manifest.counts
    assert sum(count["attempts"] for count in counts.values()) == len(ran)
    for task, count in counts.items():
        mine = [unit for unit in units([int(task)]) if episode_key(unit) in ran]
        good = sum(map(succeeds, mine))
        assert count == {"attempts": len(mine), "successes": good, "failures": len(mine) - good, "stored": 6}
    begin(tmp_path, Quota(4, 2))  # the counts are no settings


def test_without_a_quota_every_unit_is_kept(tmp_path: Path) -> None:
    attempts = begin(tmp_path, None, units(seeds=[0]))
    assert len(run(attempts, stop=6)) == 6 and len(run(begin(tmp_path, None, units(seeds=[0])))) == 9
    assert not (tmp_path / SURPLUS).exists() and attempts.refreshed().progress().done == 15


KILLED = """
import sys, time
from pathlib import Path
from tests.unit.data.test_attempts import *
attempts = begin(Path(sys.argv[1]), Quota(4, 3))
for unit in attempts:
    time.sleep(0.01)
    attempts.record(EpisodeRecord(unit, "do it", succeeds(unit), 1, 1, ()))
    print(flush=True)
"""


def test_kill_9_anywhere_ends_with_the_same_episodes(tmp_path: Path) -> None:
    whole = begin(tmp_path / "whole", Quota(4, 3))
    run(whole)
    for lines in (3, 5):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "cut")], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    cut = begin(tmp_path / "cut", Quota(4, 3))
    assert 8 <= cut.progress().attempts < whole.progress().attempts
    run(cut)
    assert cut.store.keys == whole.store.keys and cut.progress() == whole.progress()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "keep no episode"),
        ({"successes": -1}, "-1"),
        ({"successes": 1, "max_attempts": 0}, "max_attempts"),
        ({"failures": 1.5}, "1.5"),
    ],
)
def test_bad_quotas(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quota(**values)
    assert replace(Quota(1), failures=2).of(False) == 2
