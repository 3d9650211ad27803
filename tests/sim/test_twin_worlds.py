"""Can the evaluation tell good from bad? In real LIBERO: forks are exact, an oracle recovers, a saboteur harms."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("libero")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments" / "recovery"))

from sanity import CHUNK, Scripted, World, chunk_of, known_arms

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.evaluation import Detector, NoEdit, Protocol, evaluate
from mist_interp.evaluation.plan import PlannedEpisode
from mist_interp.models.random import random_policy
from mist_interp.tracing.hooked import HookedVLA

pytestmark = pytest.mark.sim


@dataclass
class Clock:
    """Fires from one query on; remembers how many it has seen."""

    fires_at: int
    seen: int = 0

    def begin(self) -> None:
        self.seen = 0

    def memory(self) -> int:
        return self.seen

    def recall(self, memory: int) -> None:
        self.seen = memory

    def __call__(self, vla: Any, inputs: Any) -> float:
        self.seen += 1
        return float(self.seen - 1 >= self.fires_at)


@dataclass
class Still:
    """A policy that does not move: it never succeeds and touches nothing."""

    model_id: str = "still"

    def prepare(self, observation: Any, instruction: str) -> PolicyInputs:
        one = torch.ones(1, 2, dtype=torch.long)
        return PolicyInputs(one, one, torch.zeros(1, 6, 2, 2))

    def __call__(self, inputs: PolicyInputs) -> ActionChunk:
        return chunk_of(np.zeros((CHUNK, 6)), gripper=-1.0)


def test_an_arm_that_does_nothing_is_none_forked_or_not(tmp_path: Path) -> None:
    """Disturbed, with a real network: the fork at the trigger meets every state that none met, to the last."""
    settings: dict[str, Any] = {
        "vla": HookedVLA(random_policy(0).requires_grad_(False)),
        "suite": "libero_spatial",
        "tasks": (0,),
        "inits": (1,),
        "perturbations": ("noise0.5",),
        "protocol": Protocol(max_steps=32, resolution=64),
        "detector": Detector(Clock(2), 0.5, "clock"),
    }
    arms = (NoEdit(), Scripted(name="idle"), Scripted(name="whole", gated=False))
    folder = evaluate(arms=arms, out=tmp_path, **settings).folder
    rows = {row["arm"]: row for row in folder.rows()}
    assert [rows[arm]["start"] for arm in ("none", "idle", "whole")] == ["reset", "fork", "reset"]
    assert rows["idle"]["queries_run"] == 2
    queries = {arm: folder.queries(PlannedEpisode.from_row(row)) for arm, row in rows.items()}
    for arm in ("idle", "whole"):
        assert queries[arm]["state_hash"].tolist() == queries["none"]["state_hash"].tolist()
        assert np.array_equal(np.stack(queries[arm]["chunk"][3]), np.stack(queries["none"]["chunk"][3]))
        assert np.array_equal(np.stack(queries[arm]["executed"][3]), np.stack(queries["none"]["executed"][3]))
        for name in ("events", "releases", "prefix_hash", "trigger_step", "peak_force"):
            assert rows[arm][name] == rows["none"][name]


def test_an_oracle_recovers_and_a_saboteur_harms_a_robot_that_stands_still(tmp_path: Path) -> None:
    world = World()
    result = evaluate(
        Still(),
        "libero_spatial",
        known_arms(world),
        out=tmp_path,
        tasks=(0,),
        inits=(0, 1),
        protocol=Protocol(max_steps=136, resolution=64),
        detector=Detector(Clock(2), 0.5, "clock"),
        make_env=world.make,
    )
    twins = result.summary()["twins"]
    assert twins["triggered"] == 2 and twins["spontaneous_recovery_rate"]["value"] == 0
    oracle, saboteur = twins["arms"]["oracle"], twins["arms"]["saboteur"]
    assert oracle["pairs"] == saboteur["pairs"] == {"forked": 2, "matched": 0, "untriggered": 0, "lost": 0}
    assert oracle["failure"]["causal_recovery"]["value"] == 1.0
    assert oracle["event"]["harm_rate"]["value"] == 0.0
    assert saboteur["failure"]["causal_recovery"]["value"] == 0.0
    assert saboteur["event"]["harm_rate"]["value"] == 1.0
    assert saboteur["event"]["net_benefit"]["value"] == -1.0


def test_an_oracle_recovers_and_a_saboteur_harms_the_policy_that_is_shipped(tmp_path: Path) -> None:
    """Start states at which `mini` succeeds and at which it fails: both halves of the table of twins are told apart."""
    world = World()
    result = evaluate(
        "mini",
        "libero_spatial",
        known_arms(world),
        out=tmp_path,
        tasks=(3,),
        inits=(30, 31),
        protocol=Protocol(max_steps=120),
        detector=Detector(Clock(2), 0.5, "clock"),
        make_env=world.make,
        videos="none",
    )
    summary = result.summary()
    failed = 2 - summary["arms"]["none"]["successes"]
    assert failed == 1, "other start states are needed for this test to say anything"
    oracle, saboteur = (summary["twins"]["arms"][name]["failure"] for name in ("oracle", "saboteur"))
    assert oracle["causal_recovery"]["n"] == oracle["harm_rate"]["n"] == 1
    assert oracle["causal_recovery"]["value"] == 1.0 and oracle["harm_rate"]["value"] == 0.0
    assert saboteur["causal_recovery"]["value"] == 0.0 and saboteur["harm_rate"]["value"] == 1.0
    assert oracle["net_benefit"]["value"] > 0 > saboteur["net_benefit"]["value"]
