"""Collecting activations: the rows are the policy's, memory is bounded, and a killed run goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mist_interp import collect
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.data.activation_set import ActivationSet
from mist_interp.data.activations import Progress
from mist_interp.data.records import Unit
from mist_interp.data.store import RolloutStore
from mist_interp.evaluation.metrics import pair
from mist_interp.models.random import random_policy
from mist_interp.probing.targets import ContactAhead, Failure
from mist_interp.tracing.checks import noise_inputs
from mist_interp.tracing.hooked import HookedVLA
from mist_interp.tracing.verbs import add, scale

RESID = ("resid_post", 1)


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return HookedVLA(random_policy(seed=1).requires_grad_(False))


@pytest.fixture(scope="module")
def batches(vla: HookedVLA) -> list[PolicyInputs]:
    """Five batches of two queries whose prompts differ in length."""
    return [noise_inputs(vla, seed) for seed in range(5)]


def unpooled(vla: HookedVLA, batches: list[PolicyInputs], tokens: str) -> list[torch.Tensor]:
    """Tokens of every query, from one forward each."""
    queries = [batch[row] for batch in batches for row in range(len(batch))]
    return [vla.run_with_cache(query, names=RESID)[1][RESID].at(tokens)[0] for query in queries]


@pytest.mark.parametrize(("batch_size", "shard_size"), [(1, 4), (4, 3), (16, 100)])
def test_the_rows_are_those_of_the_policy_in_order(
    vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path, batch_size: int, shard_size: int
) -> None:
    sizes = {"batch_size": batch_size, "shard_size": shard_size}
    store = collect(vla, batches, [RESID, ("mlp_out", 0)], tmp_path, tokens=["action_read", "text"], **sizes)
    for tokens in ("action_read", "text"):
        states = ActivationSet.read(store, RESID, tokens)
        expected = np.stack([rows.mean(0).numpy() for rows in unpooled(vla, batches, tokens)])
        np.testing.assert_allclose(states.x, expected, rtol=2e-3, atol=2e-3)
        assert {unit.suite for unit in states.units} == {"inputs"}
    assert len(store) == -(-10 // shard_size)
    chunks = np.stack([np.stack(list(chunk)) for chunk in store.queries()["chunk"]])
    np.testing.assert_allclose(chunks, torch.cat([vla(b).values for b in batches]).numpy(), rtol=1e-4, atol=1e-5)


def test_every_token_can_be_kept(vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path) -> None:
    store = collect(vla, batches, RESID, tmp_path, tokens="wrist", pool="flat", dtype="float32", shard_size=4)
    x, _ = store.load(RESID, "wrist", "flat")
    expected = torch.stack(unpooled(vla, batches, "wrist"))
    np.testing.assert_allclose(x.reshape(10, 16, 64), expected.numpy(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="different numbers of 'text' tokens"):
        collect(vla, batches, RESID, tmp_path / "text", tokens="text", pool="flat")
    assert len(RolloutStore.open(tmp_path / "text")) == 0


def test_float32_is_exact_and_float16_is_half(vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path) -> None:
    exact = collect(vla, batches[:1], RESID, tmp_path / "32", dtype="float32").load(RESID)[0]
    half = collect(vla, batches[:1], RESID, tmp_path / "16").load(RESID)[0]
    assert not np.array_equal(exact, half) and np.array_equal(exact.astype(np.float16), half.astype(np.float16))


def test_episodes_keep_their_start_state(vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path) -> None:
    units = [Unit("libero_spatial", 3, init) for init in (7, 2)]
    store = collect(vla, list(zip(units, batches, strict=False)), RESID, tmp_path)
    states = ActivationSet.read(store, RESID)
    assert states.start_states == {("libero_spatial", 3, 7), ("libero_spatial", 3, 2)}
    assert [unit.init_state for unit in states.units] == [2, 2, 7, 7], "sorted by key, as every store is"
    with pytest.raises(ValueError, match="given twice"):
        collect(vla, [(units[0], batches[0]), (units[0], batches[1])], RESID, tmp_path / "twice")


def test_the_same_call_goes_on(vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path) -> None:
    seen: list[Progress] = []

    def cut(progress: Progress) -> None:
        if progress.queries >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(vla, iter(batches), RESID, tmp_path, shard_size=2, on_progress=cut)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    store = collect(vla, batches, RESID, tmp_path, shard_size=2, on_progress=seen.append)
    assert [(p.queries, p.skipped, p.total) for p in seen] == [(n, min(n, 4), 10) for n in (0, 2, 4, 6, 8, 10)]
    assert all(path.stat().st_mtime_ns == before for path, before in times.items()), "what is stored is not run again"
    whole = collect(vla, batches, RESID, tmp_path / "whole", shard_size=2)
    np.testing.assert_array_equal(store.load(RESID)[0], whole.load(RESID)[0])


def test_more_inputs_extend_the_last_shard_and_others_are_refused(
    vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path
) -> None:
    collect(vla, batches[:3], RESID, tmp_path, shard_size=4)
    store = collect(vla, batches, RESID, tmp_path, shard_size=4)
    assert len(store.load(RESID)[0]) == 10
    for other in (batches[1:], batches[:1], [noise_inputs(vla, 9), *batches[1:]]):
        with pytest.raises(ValueError, match="with other inputs"):
            collect(vla, other, RESID, tmp_path, shard_size=4)
    with pytest.raises(ValueError, match=r"other settings: groups.*wrist"):
        collect(vla, batches, RESID, tmp_path, tokens="wrist", shard_size=4)


def test_what_is_stored_is_not_even_prepared(vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path) -> None:
    made: list[int] = []

    def episodes() -> Iterator[tuple[Unit, Any]]:
        for number, batch in enumerate(batches):
            yield Unit("libero_spatial", 0, number), lambda number=number, batch=batch: made.append(number) or batch

    collect(vla, list(episodes())[:2], RESID, tmp_path)
    collect(vla, episodes(), RESID, tmp_path)
    assert made == [0, 1, 2, 3, 4]


def test_memory_holds_one_shard(vla: HookedVLA, tmp_path: Path) -> None:
    """Inputs are taken when they are needed, and let go."""
    alive: list[int] = []
    taken: list[int] = []

    def stream() -> Iterator[PolicyInputs]:
        for seed in range(6):
            batch = noise_inputs(vla, seed)
            alive.append(seed)
            weakref.finalize(batch, alive.remove, seed)
            taken.append(seed)
            yield batch
            del batch

    most = 0

    def watch(progress: Progress) -> None:
        nonlocal most
        most = max(most, len(alive))
        assert len(taken) <= progress.queries // 2 + 1

    collect(vla, stream(), RESID, tmp_path, shard_size=2, batch_size=2, on_progress=watch)
    assert most <= 2


def test_live_edits_apply_and_are_recorded(vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path) -> None:
    push = add(RESID, torch.ones(64), "action_read")
    plain = collect(vla, batches[:1], RESID, tmp_path / "plain", dtype="float32")
    with vla.hooks(push):
        pushed = collect(vla, batches[:1], RESID, tmp_path / "pushed", dtype="float32")
    np.testing.assert_allclose(pushed.load(RESID)[0] - plain.load(RESID)[0], 1.0, atol=1e-4)
    assert pushed.manifest.settings["edits"] == [push.to_dict()]
    rows = [json.loads(edits[0]) for edits in pushed.queries()["edits"]]
    assert [row["tokens"] for row in rows] == [100, 97] and rows[0]["norm"] == pytest.approx((64 * 56) ** 0.5, rel=1e-3)
    with pytest.raises(ValueError, match=r"other settings: settings\.edits"):
        collect(vla, batches[:1], RESID, tmp_path / "pushed", dtype="float32")


def test_a_value_beyond_float16_stops_the_run_and_stores_nothing(
    vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path
) -> None:
    with vla.hooks(scale(RESID, 1e6)):
        with pytest.raises(OverflowError, match=r"blocks\.1\.hook_resid_post.*beyond float16's 65504"):
            collect(vla, batches, RESID, tmp_path / "16")
        assert len(RolloutStore.open(tmp_path / "16")) == 0
        assert len(collect(vla, batches, RESID, tmp_path / "32", dtype="float32").load(RESID)[0]) == 10


@pytest.mark.parametrize("variant", ["base", "diffusion", "discrete"])
def test_every_variant(tmp_path: Path, variant: str) -> None:
    settings = {"diffusion_steps": 2} if variant == "diffusion" else {}
    vla = HookedVLA(random_policy(variant=variant, **settings).requires_grad_(False))
    inputs = noise_inputs(vla)
    # The second generated token is all that base OpenVLA reads in that run.
    tokens, step = {"base": ("all", 1), "diffusion": ("action_read", None), "discrete": ("action_read", None)}[variant]
    store = collect(vla, [inputs], RESID, tmp_path, tokens=tokens, dtype="float32", step=step)
    last = {"base": 1, "diffusion": 1, "discrete": 0}[variant]
    expected = vla.run_with_cache(inputs, names=RESID, step=last)[1][RESID].at(tokens)
    np.testing.assert_allclose(store.load(RESID, tokens)[0], expected.mean(1).numpy(), atol=1e-5)


def test_there_is_no_outcome(vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path) -> None:
    store = collect(vla, batches[:1], RESID, tmp_path)
    for target in (Failure(), ContactAhead()):
        with pytest.raises(ValueError, match="given and not run"):
            target.labels(store)
    with pytest.raises(ValueError, match="given and not run"):
        pair(store.episodes())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": []}, ValueError, "no inputs"),
        ({"inputs": ["batch"]}, TypeError, "not str"),
        ({"sites": ("resid_pots", 1)}, UnknownName, "resid_post"),
        ({"tokens": "action_reed"}, UnknownName, "action_read"),
        ({"pool": "max"}, UnknownName, "mean"),
        ({"dtype": "bfloat16"}, UnknownName, "float16"),
        ({"batch_size": 0}, ValueError, "at least 1"),
    ],
)
def test_bad_input(
    vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path, change: dict[str, Any], error: Any, message: str
) -> None:
    given = {"inputs": batches, "sites": RESID, "out": tmp_path, **change}
    with pytest.raises(error, match=message):
        collect(vla, **given)


def test_batches_and_episodes_are_not_mixed(vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path) -> None:
    pairs = [(Unit("libero_spatial", 0, 0), batches[0]), batches[1]]
    for mixed in (pairs, pairs[::-1]):
        with pytest.raises(TypeError, match="all PolicyInputs, or all"):
            collect(vla, mixed, RESID, tmp_path / "mixed")


VICTIM = """
import sys, time, torch
torch.set_num_threads(1)
from mist_interp import HookedVLA, collect
from mist_interp.models.random import random_policy
from mist_interp.tracing.checks import noise_inputs
vla = HookedVLA(random_policy(seed=1).requires_grad_(False))
def stream():
    for seed in range(5):
        time.sleep(0.3)
        yield noise_inputs(vla, seed)
collect(vla, stream(), ("resid_post", 1), sys.argv[1], shard_size=2)
"""


def test_kill_and_resume(vla: HookedVLA, batches: list[PolicyInputs], tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", VICTIM, str(out)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 90
    while len(list(out.glob("episodes/*.parquet"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(RolloutStore.open(out))
    assert 2 <= before < 5
    (out / "activations" / "action_read-mean" / "inputs-t00-i004-none-s0-p0-none.parquet").write_bytes(b"half a file")
    ran: list[Progress] = []
    store = collect(vla, batches, RESID, out, shard_size=2, on_progress=ran.append)
    assert ran[-1].skipped == 2 * before and len(store) == 5
    whole = collect(vla, batches, RESID, tmp_path / "whole", shard_size=2)
    np.testing.assert_allclose(store.load(RESID)[0], whole.load(RESID)[0], rtol=2e-3, atol=1e-3)
    assert not list(out.rglob("*.tmp"))
