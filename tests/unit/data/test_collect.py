"""Collection: complete, resumable, and the stored activations are those of the policy."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mist_interp.core.inputs import PolicyInputs
from mist_interp.data.attempts import Quota
from mist_interp.data.collect import collect_rollouts
from mist_interp.data.plan import Protocol, plan_units, shard_units
from mist_interp.data.store import RolloutStore
from mist_interp.libero.suite import Task
from mist_interp.models.random import random_policy
from mist_interp.tracing.hooked import HookedVLA
from mist_interp.tracing.verbs import add

MADE: list["World"] = []


@dataclass
class World:
    """A moving camera picture; succeeds after 13 steps on even start states, crashes where told."""

    task: int
    crash_on: tuple[int, ...] = ()
    steps: int = 0
    init_state: int = 0
    closed: bool = False
    events: tuple[Any, ...] = ()
    touches: tuple[Any, ...] = ()
    releases: tuple[Any, ...] = ()

    def reset(self, init_state: int) -> None:
        if init_state in self.crash_on:
            raise RuntimeError("the simulator diverged")
        self.init_state, self.steps = init_state, 0
        self.rng = np.random.default_rng((self.task, init_state))

    def observe(self) -> dict[str, np.ndarray]:
        picture = self.rng.integers(0, 255, (56, 56, 3), dtype=np.uint8)
        return {
            "agentview_image": picture,
            "robot0_eye_in_hand_image": picture[::-1].copy(),
            "robot0_eef_pos": np.array([0.1, 0.01 * self.steps, 0.9]),
            "robot0_eef_quat": np.array([1.0, 0, 0, 0]),
            "robot0_gripper_qpos": np.array([0.04, -0.04]),
        }

    def step(self, action: np.ndarray) -> SimpleNamespace:
        self.steps += 1
        return SimpleNamespace(success=self.steps >= 13 and self.init_state % 2 == 0)

    def hand_motion(self) -> np.ndarray:
        return np.zeros(13)

    def state_hash(self) -> str:
        return f"{self.task}-{self.init_state}-{self.steps}"

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class FakeTask:
    index: int
    crash_on: tuple[int, ...]
    suite: str = "libero_spatial"
    n_init_states: int = 5
    check_init_state = Task.check_init_state

    @property
    def instruction(self) -> str:
        return f"pick up the black bowl {self.index}"


@dataclass(frozen=True)
class Suite:
    name: str = "libero_spatial"
    max_steps: int = 24
    crash_on: tuple[int, ...] = ()

    @property
    def tasks(self) -> list[FakeTask]:
        return [FakeTask(i, self.crash_on) for i in range(3)]


def make_env(task: Any, protocol: Protocol, seed: int) -> World:
    world = World(task.index, task.crash_on)
    MADE.append(world)
    return world


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return HookedVLA(random_policy(seed=1))


@pytest.fixture(autouse=True)
def no_environments_left() -> Any:
    MADE.clear()
    yield
    assert all(world.closed for world in MADE)


def collect(vla: HookedVLA, out: Path, suite: Suite = Suite(), **settings: Any) -> RolloutStore:
    given = {"tasks": [0, 2], "inits": range(3), "sites": [("resid_post", [1, -1])], "make_env": make_env}
    return collect_rollouts(vla, suite, out=out, **{**given, **settings})


def test_every_unit_becomes_one_episode(vla: HookedVLA, tmp_path: Path) -> None:
    store = collect(vla, tmp_path)
    episodes = store.episodes()
    assert [(row.task, row.init_state) for row in episodes.itertuples()] == [(t, i) for t in (0, 2) for i in range(3)]
    assert list(episodes["success"]) == [True, False, True] * 2 and list(episodes["steps"]) == [13, 24, 13] * 2
    assert len(MADE) == 2, "one environment per task"
    assert store.manifest.settings["model"].startswith("random") and store.manifest.settings["max_steps"] == 24


def test_the_stored_rows_are_the_activations_of_the_policy(vla: HookedVLA, tmp_path: Path) -> None:
    """Replays the first query by hand."""
    store = collect(vla, tmp_path, tokens=["action_read", "wrist", "action_read.dz"])
    world = World(2)
    world.reset(1)
    inputs: PolicyInputs = vla.prepare(dict(world.observe()), "pick up the black bowl 2")
    chunk, cache = vla.run_with_cache(inputs, names=[("resid_post", 1)])
    row = store.queries().query("query == 0 and episode.str.contains('t02-i001')").index[0]
    for tokens in ("action_read", "wrist", "action_read.dz"):
        x, _ = store.load(("resid_post", 1), tokens)
        expected = cache["resid_post", 1].at(tokens).mean(1)[0]
        np.testing.assert_allclose(x[row], expected.numpy(), rtol=2e-3, atol=1e-3)
    stored = np.stack(list(store.queries()["chunk"][row]))
    np.testing.assert_allclose(stored, chunk.values[0].detach().numpy(), rtol=1e-5, atol=1e-6)


def test_one_group_and_several_groups_store_the_same(vla: HookedVLA, tmp_path: Path) -> None:
    one = collect(vla, tmp_path / "one", tasks=[0], inits=[0])
    several = collect(vla, tmp_path / "several", tasks=[0], inits=[0], tokens=["action_read", "proprio"])
    np.testing.assert_array_equal(one.load(("resid_post", 1))[0], several.load(("resid_post", 1))[0])


def test_recording_does_not_change_the_policy(vla: HookedVLA, tmp_path: Path) -> None:
    with_sites = collect(vla, tmp_path / "a", tasks=[0], inits=[1]).queries()
    other_sites = collect(vla, tmp_path / "b", tasks=[0], inits=[1], sites="hook_embed", tokens="proprio").queries()
    for ours, theirs in zip(with_sites["chunk"], other_sites["chunk"], strict=True):
        np.testing.assert_array_equal(np.stack(list(ours)), np.stack(list(theirs)))


def test_the_same_call_goes_on_where_it_stopped(vla: HookedVLA, tmp_path: Path) -> None:
    seen: list[int] = []

    def stop_at_three(progress: Any) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(vla, tmp_path, on_progress=stop_at_three)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    store = collect(vla, tmp_path, on_progress=lambda progress: seen.append(progress.done))
    assert seen == [3, 4, 5, 6] and len(store) == 6
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())


def test_other_settings_or_another_policy_need_another_folder(vla: HookedVLA, tmp_path: Path) -> None:
    collect(vla, tmp_path, tasks=[0], inits=[0])
    with pytest.raises(ValueError, match="resolution"):
        collect(vla, tmp_path, protocol=Protocol(resolution=128))
    with pytest.raises(ValueError, match="weights"):
        collect(HookedVLA(random_policy(seed=2)), tmp_path)
    with pytest.raises(ValueError, match="groups"):
        collect(vla, tmp_path, tokens="proprio")


def test_shards_meet_in_one_folder(vla: HookedVLA, tmp_path: Path) -> None:
    for shard in ("0/2", "1/2"):
        store = collect(vla, tmp_path, shard=shard)
    assert len(store) == 6
    units = plan_units(Suite(), "all", range(5), [0, 1])
    parts = [shard_units(units, f"{i}/4") for i in range(4)]
    assert [unit for part in parts for unit in part] == units
    with pytest.raises(ValueError, match="0/4"):
        shard_units(units, "4/4")


def test_quotas_choose_by_outcome_and_say_so(vla: HookedVLA, tmp_path: Path) -> None:
    seen: list[Any] = []
    quota = Quota(successes=2, failures=1)
    store = collect(vla, tmp_path, inits=None, quota=quota, on_progress=seen.append)
    assert store.manifest.selection == "balanced" and seen[-1].done == seen[-1].total == 6
    assert store.episodes().groupby("task")["success"].sum().to_list() == [2, 2]
    assert sum(count["attempts"] for count in store.manifest.counts.values()) == seen[-1].attempts
    assert {count["stored"] for count in RolloutStore.open(tmp_path).manifest.counts.values()} == {3}
    before = len(MADE)
    assert collect(vla, tmp_path, inits=None, quota=quota).keys == store.keys and len(MADE) == before
    for other in (
        {"quota": Quota(2, 2)},
        {"quota": Quota(2, 1, seed=1)},
        {"quota": None, "inits": [0]},
        {"inits": range(4)},
    ):
        with pytest.raises(ValueError, match="other settings"):
            collect(vla, tmp_path, **{"inits": None, "quota": quota, **other})


def test_seeds_of_the_policy_make_further_units(vla: HookedVLA, tmp_path: Path) -> None:
    store = collect(vla, tmp_path, tasks=[0], inits=[0], policy_seeds=[0, 3])
    assert store.episodes()["policy_seed"].to_list() == [0, 3] and len(MADE) == 1


def test_a_crash_is_noted_and_tried_again(vla: HookedVLA, tmp_path: Path) -> None:
    store = collect(vla, tmp_path, Suite(crash_on=(1,)))
    assert len(store) == 4 and len(MADE) == 4, "a crashed environment is replaced"
    errors = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert len(errors) == 2 and errors[0]["error"] == "RuntimeError: the simulator diverged"
    assert len(collect(vla, tmp_path, Suite())) == 6


def test_a_cause_that_hits_every_episode_ends_the_run(vla: HookedVLA, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"3 episodes failed.*diverged.*errors\.jsonl"):
        collect(vla, tmp_path, Suite(crash_on=(0, 1, 2)))


def test_steering_that_is_live_during_collection_is_recorded(vla: HookedVLA, tmp_path: Path) -> None:
    edit = add(("resid_post", 0), torch.ones(64), "action_read")
    with vla.hooks(edit):
        store = collect(vla, tmp_path / "edited", tasks=[0], inits=[1])
    for edits in store.queries()["edits"]:
        (row,) = map(json.loads, edits)
        assert row["edit"] == "add(coef=1) on blocks.0.hook_resid_post at 'action_read'"
        assert row["norm"] == pytest.approx((64 * 56) ** 0.5, rel=1e-3) and row["touched"] == 56 < row["tokens"]
    assert store.manifest.settings["edits"] == [edit.to_dict()]
    with pytest.raises(ValueError, match=r"other settings: settings\.edits"):
        collect(vla, tmp_path / "edited", tasks=[0], inits=[1])
    plain = collect(vla, tmp_path / "plain", tasks=[0], inits=[1])
    assert all(len(edits) == 0 for edits in plain.queries()["edits"])
    assert not np.allclose(store.load(("resid_post", 1))[0], plain.load(("resid_post", 1))[0])


def test_an_activation_beyond_float16_stops_the_run(vla: HookedVLA, tmp_path: Path) -> None:
    with vla.hooks((("resid_post", 1), lambda x, site: 1e6 * x)), pytest.raises(OverflowError, match=r"blocks\.1"):
        collect(vla, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": [0, 3]}, "task of libero_spatial"),
        ({"tasks": "some"}, "all"),
        ({"inits": [2, 5]}, "0 to 4"),
        ({"inits": []}, "nothing to run"),
        ({"inits": "some"}, "value of inits"),
        ({"policy_seeds": [-1]}, "policy_seeds"),
        ({"pool": "max"}, "mean"),
        ({"sites": ("resid_pots", 1)}, "resid_post"),
        ({"tokens": "action_reed"}, "action_read"),
        ({"workers": 2}, "name or a folder"),
    ],
)
def test_bad_input_is_one_clear_error(vla: HookedVLA, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, KeyError, RuntimeError), match=message):
        collect(vla, tmp_path, **settings)


def test_the_run_leaves_the_random_generator_alone(vla: HookedVLA, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    collect(vla, tmp_path, tasks=[0], inits=[0])
    assert torch.equal(before, torch.random.get_rng_state())
    assert replace(Protocol(), profile="faithful") != Protocol()
