"""What does a closed loop cost, against LIBERO's own loop on the same machine in the same run?

LIBERO's loop as the OpenVLA-OFT protocol runs it: both cameras at every control step, the policy at every eighth. Ours
computes the same physics bit for bit and draws only when the policy looks. Same task, same start state, same actions.
Only the ratios mean something on another machine.

    python benchmarks/closed_loop.py --out results/closed_loop.json
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from mist_interp import HookedVLA
from mist_interp.core.files import write_atomic
from mist_interp.core.provenance import provenance
from mist_interp.libero import LiberoEnv, LiberoSuite
from mist_interp.libero.packages import silenced


@dataclass(frozen=True)
class Settings:
    """Control steps per second: LIBERO's loop, ours in the faithful profile, ours in the fast profile."""

    policy: str = "mini"
    """Policy that is queried every 8 control steps."""

    task: int = 0
    """Task of libero_spatial."""

    steps: int = 48
    """Control steps that are timed."""

    episodes: int = 5
    """Episodes of the policy whose median time is stated (fast profile)."""

    out: Path | None = None
    """JSON with the numbers, the machine and the versions."""


def main(settings: Settings) -> None:
    """Time all loops and print one table."""
    torch.set_num_threads(1)
    console = Console()
    vla = HookedVLA.from_pretrained(settings.policy)
    task = LiberoSuite("libero_spatial").tasks[settings.task]
    rates: dict[str, float] = {}
    for profile in ("faithful", "fast"):
        env = LiberoEnv(task, profile=profile)
        env.reset(0)
        env.observe()  # the first picture builds the renderer
        rates[f"ours, {profile}"] = rate(vla, task, env.observe, env.step, settings.steps)
        if profile == "fast":
            queries = time_queries(vla, env, task)
            episodes = [time_episode(vla, env, task, init) for init in range(settings.episodes)]
        env.close()
    rates["LIBERO"] = libero_rate(vla, task, settings.steps)
    table = Table("loop", "control steps per second", "ratio")
    for name, value in rates.items():
        table.add_row(name, f"{value:.1f}", f"{value / rates['LIBERO']:.1f}")
    console.print(table)
    console.print(
        f"one query: prepare {queries[0]:.0f} ms + forward {queries[1]:.0f} ms; one episode: median "
        f"{median(episodes):.1f} s of {len(episodes)}; {platform.processor() or platform.machine()}, 1 thread"
    )
    if settings.out:
        numbers = {"rates": rates, "prepare_ms": queries[0], "forward_ms": queries[1], "episode_seconds": episodes}
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(settings.out, json.dumps(numbers | {"provenance": provenance()}, indent=2) + "\n")


def rate(vla: Any, task: Any, observe: Any, step: Any, steps: int) -> float:
    """Control steps per second of a loop that looks and queries every 8 steps and executes the same small actions."""
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for number in range(steps):
        if number % 8 == 0:
            vla(vla.prepare(observe(), task.instruction))
        step(np.append(0.3 * rng.uniform(-1, 1, 6), -1.0))
    return steps / (time.perf_counter() - start)


def libero_rate(vla: Any, task: Any, steps: int) -> float:
    """The same loop on LIBERO's own environment, which draws both cameras at every control step."""
    from libero.libero.envs import OffScreenRenderEnv

    with silenced():
        env = OffScreenRenderEnv(bddl_file_name=str(task.bddl), camera_heights=256, camera_widths=256)
        env.seed(0)
        env.reset()
        seen = [env.set_init_state(task.init_states[0])]
        for _ in range(10):
            seen[0] = env.step([0, 0, 0, 0, 0, 0, -1])[0]

    def step(action: np.ndarray) -> None:
        seen[0] = env.step(action)[0]

    value = rate(vla, task, lambda: seen[0], step, steps)
    env.close()
    return value


def time_queries(vla: Any, env: LiberoEnv, task: Any, repeats: int = 15) -> tuple[float, float]:
    """Median milliseconds of preparing an observation and of the forward pass."""
    observation = env.observe()
    prepare, forward = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        inputs = vla.prepare(observation, task.instruction)
        middle = time.perf_counter()
        vla(inputs)
        prepare.append(middle - start)
        forward.append(time.perf_counter() - middle)
    return 1e3 * median(prepare), 1e3 * median(forward)


def time_episode(vla: Any, env: LiberoEnv, task: Any, init_state: int) -> float:
    """Seconds of one whole episode, reset included."""
    start = time.perf_counter()
    env.reset(init_state)
    step, success = 0, False
    while step < task.max_steps and not success:
        chunk = vla(vla.prepare(env.observe(), task.instruction)).to_env()[0].double().numpy()
        for action in chunk:
            success = env.step(action).success
            step += 1
            if success or step == task.max_steps:
                break
    return time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Settings))
