"""Paired evaluation in real LIBERO: measured edits, equal prefixes, kill -9 and resume, films from stored actions."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("libero")

from mist_interp.core.files import read_json_lines
from mist_interp.core.names import Site
from mist_interp.evaluation import Detector, NoEdit, Protocol, Steer, evaluate, random_direction
from mist_interp.models.random import random_policy
from mist_interp.report import write_report
from mist_interp.steering.direction import SteeringDirection
from mist_interp.tracing.hooked import HookedVLA

pytestmark = pytest.mark.sim

STEPS = 12
ROOT = Path(__file__).resolve().parents[2]


def mean_score(vla: Any, inputs: Any) -> Any:
    chunk, cache = vla.run_with_cache(inputs, names=[("resid_post", 2)], tokens="action_read")
    return float(cache["resid_post", 2].float().abs().mean()), chunk


def settings() -> dict[str, Any]:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(1))
    direction = SteeringDirection(Site("blocks.2.hook_resid_post"), vector)
    return {
        "vla": HookedVLA(random_policy(0).requires_grad_(False)),
        "suite": "libero_spatial",
        "arms": (NoEdit(), Steer(direction, 2.0), random_direction(direction, 2.0)),
        "tasks": (0,),
        "inits": (0, 1),
        "protocol": Protocol(max_steps=STEPS, resolution=64),
        "detector": Detector(mean_score, 0.0, "mean"),
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return evaluate(out=tmp_path_factory.mktemp("eval") / "run", videos="sample", **settings())


def test_every_unit_runs_in_every_arm(finished: Any) -> None:
    rows = finished.folder.rows()
    assert [row["status"] for row in rows] == ["ok"] * 6
    assert {row["steps"] for row in rows} == {STEPS}
    assert finished.summary()["units"]["compared"] == 2
    facts = rows[0]["provenance"]
    assert {"mujoco", "robosuite", "libero", "torch", "weights", "attention", "dtype", "device"} <= facts.keys()
    assert facts["profile"] == "fast"


def test_the_edit_is_measured_and_the_placebo_is_as_large(finished: Any) -> None:
    queries = {e.arm: finished.folder.queries(e) for e in finished.folder.plan() if e.unit.init_state == 0}
    assert (queries["none"]["edit_norm"] == 0).all() and (queries["none"]["edit"] == "").all()
    # 2.0 x the direction at each of 56 read-outs.
    steering = settings()["arms"][1]
    expected = 2.0 * steering.direction.norm * 56**0.5
    assert queries["steer"]["edit_norm"].tolist() == pytest.approx([expected] * 2, rel=1e-4)
    assert queries["random-direction"]["edit_norm"].tolist() == pytest.approx([expected] * 2, rel=1e-4)
    assert (queries["steer"]["action_shift"] > 0.01).all()


def test_arms_are_paired(finished: Any) -> None:
    firsts = {e.arm: finished.folder.queries(e).iloc[0] for e in finished.folder.plan() if e.unit.init_state == 1}
    assert len({row["state_hash"] for row in firsts.values()}) == 1
    assert len({row["score"] for row in firsts.values()}) == 1
    assert firsts["none"]["chunk"][0].tolist() != firsts["steer"]["chunk"][0].tolist()


def test_an_arm_without_effect_is_bit_identical_to_none(finished: Any, tmp_path: Path) -> None:
    changes = settings()
    changes["arms"] = (NoEdit(), Steer(changes["arms"][1].direction, 0.0, name="zero"))
    result = evaluate(out=tmp_path, **{**changes, "inits": (0,)})
    none, zero = (result.folder.queries(e) for e in result.folder.plan())
    for column in ("state_hash", "score"):
        assert none[column].tolist() == zero[column].tolist()
    assert [[a.tolist() for a in c] for c in none["executed"]] == [[a.tolist() for a in c] for c in zero["executed"]]


def test_pairs_are_filmed_and_the_report_carries_them(finished: Any) -> None:
    films = list((finished.folder.path / "videos").rglob("*.mp4"))
    assert len(films) == 6
    page = write_report(finished.folder.path).read_text(encoding="utf-8")
    assert page.count("data:video/mp4;base64,") == 2
    assert "Partial run" in page and 'src="http' not in page


SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from tests.sim.test_evaluate import settings
from mist_interp.evaluation import evaluate
evaluate(out=Path(sys.argv[1]), **settings())
"""


def test_kill_dash_nine_and_the_same_command(finished: Any, tmp_path: Path) -> None:
    log = tmp_path / "episodes.jsonl"
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    until = time.monotonic() + 240
    while len(read_json_lines(log)) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = read_json_lines(log)
    assert 2 <= len(before) < 6
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=300)
    rows = read_json_lines(log)
    assert rows[: len(before)] == before and len(rows) == len({row["key"] for row in rows}) == 6
    # Another process, cut and continued, gives the same episodes bit for bit.
    expected = {row["key"]: row for row in finished.folder.rows()}
    for row in rows:
        assert row["peak_force"] == expected[row["key"]]["peak_force"]
    for episode in finished.folder.plan():
        continued = type(finished.folder)(tmp_path).queries(episode)
        assert continued["state_hash"].tolist() == finished.folder.queries(episode)["state_hash"].tolist()
