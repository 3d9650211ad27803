"""`mist collect` understands its options, shows where it is, and ends with what the store has."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mist_interp.cli import main
from mist_interp.cli.collect import parse_site
from mist_interp.cli.collect_display import CollectDisplay, store_table
from mist_interp.data import collect as collecting
from mist_interp.data.attempts import Progress, Quota
from mist_interp.data.policy_source import PolicySource
from mist_interp.data.store import RolloutStore
from mist_interp.models.random import random_policy
from mist_interp.tracing.hooked import HookedVLA
from tests.unit.data.test_collect import Suite, make_env


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces policy, suite and simulator by small ones; gives what the command passed."""
    vla, given, real = HookedVLA(random_policy(seed=1)), [], collecting.collect_rollouts

    def collect(policy: Any, suite: str, **settings: Any) -> RolloutStore:
        given.append((policy, suite, settings))
        return real(vla, Suite(crash_on=(1,) if "crash" in str(settings["out"]) else ()), make_env=make_env, **settings)

    monkeypatch.setattr(collecting, "collect_rollouts", collect)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return given


def test_it_collects_goes_on_and_counts(world: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["collect", "--out", str(tmp_path), "--tasks", "0,2", "--sites", "resid_post:1,-1", "hook_embed"]
    command += ["--tokens", "action_read", "wrist", "--pool", "last", "--resolution", "56"]
    assert main([*command, "--inits", "0"]) == 0 and main([*command, "--inits", "0-2"]) == 0
    said = capsys.readouterr()
    rows = [line.split() for line in said.out.splitlines()]
    assert ["0", "3", "2", "0", "7"] in rows and ["all", "6", "4", "0", "14"] in rows
    assert (
        "MB, selection iid, SR 67 % (30–90" in said.out
        and "2/6 episodes" in said.err
        and "6/6 episodes | SR 67 %" in said.err
    )
    store = RolloutStore.open(tmp_path)
    assert [(group.tokens, group.pool, len(group.sites)) for group in store.manifest.groups] == [
        ("action_read", "last", 3),
        ("wrist", "last", 3),
    ]


def test_quotas(world: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--successes", "2", "--failures", "4", "--max-attempts", "5", "--order-seed", "3"]
    assert main(["collect", "--out", str(tmp_path), "--tasks", "0", *options]) == 0
    said = capsys.readouterr().out
    assert "no success rate" in said and "task 0 has 2 of 4 failures" in said
    assert world[0][2]["quota"] == Quota(2, 4, 5, 3) and world[0][2]["inits"] is None
    row = store_table(RolloutStore.open(tmp_path)).iloc[-1]
    assert (row["episodes"], row["attempts"], row["of them successful"]) == (4, 5, 3)
    assert main(["collect", "--out", str(tmp_path), "--max-attempts", "5"]) == 1
    assert "--max-attempts belongs to" in capsys.readouterr().err


def test_a_crashed_episode_is_said(world: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "--out", str(tmp_path / "crash"), "--tasks", "0", "--inits", "0-2"]) == 1
    assert "1 episodes are missing" in capsys.readouterr().out


def test_options_reach_the_policy_and_the_plan(world: list[Any], tmp_path: Path) -> None:
    options = ["--device", "cuda", "--dtype", "bfloat16", "--attn-implementation", "eager", "--unnorm-key", "k"]
    options += ["--inits", "all", "--seeds", "1-2", "--policy-seeds", "4", "--shard", "0/30", "--suite", "libero_goal"]
    assert main(["collect", "--out", str(tmp_path), *options, "--max-steps", "8", "--profile", "faithful"]) == 0
    policy, suite, settings = world[0]
    assert (policy, suite) == (PolicySource("mini", "cuda", "bfloat16", "eager", "k"), "libero_goal")
    assert (settings["inits"], settings["simulator_seeds"], settings["policy_seeds"]) == ("all", (1, 2), (4,))
    assert (settings["protocol"].profile, settings["protocol"].max_steps) == ("faithful", 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "mimi"], "mini"),
        (["--shard", "0/2", "-j", "2"], "give one of them"),
        (["--inits", "0", "--sites", "resid_pots:1"], "resid_post"),
        (["--sites", "resid_post:x"], "list of numbers"),
    ],
)
def test_errors_are_one_line(
    world: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["collect", "--out", str(tmp_path), *options]) == 1
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_sites_are_written_as_name_and_layers() -> None:
    assert parse_site("resid_post:0-2,-1") == ("resid_post", [0, 1, 2, -1])
    assert parse_site("blocks.3.hook_resid_post") == "blocks.3.hook_resid_post"


def test_the_line_counts_attempts_and_guesses_the_rest() -> None:
    screen = io.StringIO()
    display = CollectDisplay(Console(file=screen, force_terminal=True))
    with display:
        display.show(Progress(2, 10, attempts=3, successes=1))
        assert display.line(Progress(2, 10, attempts=3, successes=1)).endswith("starting")
        said = display.line(Progress(3, 10, attempts=5, successes=2))
    assert said.startswith("3/10 episodes | 5 attempts | SR 40 % (") and said.endswith("0 s/episode, 0 s left")
    assert display.missing == 8
