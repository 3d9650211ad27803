"""What does it cost a query to be watched by a gate, and to be corrected inside the network?

Every way answers the same query of `mini` in one run, in turns, timed by the CPU time of the calling thread with one
torch thread; a ratio is the median over the turns of two times of the same turn. The gate reads a probe of random
weights, which costs what a fitted one costs. The last figure is the cost of an episode in which the gate is open at a
share of the queries, as a gate that is no co-policy is.

Aim: gate and `mist` edit together at most 1.5 x a plain query.
Measured on one core of a busy two-core x86-64 machine: the gate alone 1.09 x a plain query; with `mist` behind the last
block 1.40 x, and 1.32 x if it holds no other dimension (`mist-free` of the study of recovery: a backward pass per moved
dimension in place of seven); one block earlier 2.0 x, holding nothing 1.7 x, on four of the eight chunk steps 1.8 x, in
three rounds (`mist` of that study) 3.4 x; two blocks earlier 3.7 x. Where the gate is open at 30 % of the queries an
episode costs 1.20, 1.20, 1.40, 1.29, 1.34, 1.84 and 1.90 x.

With --large the same ways on the widths of the published 7B with two of its 32 blocks and random weights; the other
thirty are added at the cost of one, measured beside. An estimate, for a processor, in single precision. Aim: 1.3 x.
Estimated there: the gate and `mist` behind the last block 1.00 x, one block earlier 1.06 x.

    python benchmarks/steering.py [--repeats 20] [--large] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from mist_interp import HookedVLA
from mist_interp.core.files import write_atomic
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.provenance import provenance
from mist_interp.data.capture import pooled
from mist_interp.data.records import Unit
from mist_interp.evaluation.arms import Mist, Query, SafeStop
from mist_interp.evaluation.gate import Gate
from mist_interp.models.random import random_policy
from mist_interp.models.rest import rest_of
from mist_interp.tracing.checks import noise_inputs

# Widths of OpenVLA-OFT: DINOv2-L and SigLIP-so400m at 224 pixels, Llama 2 7B.
LARGE: dict[str, Any] = {
    "dino": (1024, 24, 16),
    "siglip": (1152, 27, 16),
    "hidden": 4096,
    "heads": 32,
    "ffn": 11008,
    "image_size": 224,
}
LARGE_BLOCKS, BUILT = 32, 2
OPEN = 0.3  # share of the queries above which a gate is called a co-policy


@dataclass(frozen=True)
class LinearRisk:
    """Seven linear read-outs of one layer, of random weights."""

    weights: np.ndarray
    outputs: tuple[str, ...]
    site: Any = ("resid_post", -2)

    @property
    def sites(self) -> tuple[Any, ...]:
        """See `RiskSource`."""
        return (self.site,)

    trained_on: frozenset[Any] = frozenset()

    def start(self) -> None:
        """See `RiskSource`."""

    def step(self, cache: Any, state: None) -> tuple[np.ndarray, None]:
        """See `RiskSource`."""
        row = pooled(cache, self.site, "action_read", "mean").detach().float().cpu().numpy()[0]
        return 1 / (1 + np.exp(-(self.weights @ row))), None

    def config(self) -> dict[str, Any]:
        """See `RiskSource`."""
        return {"read_by": "random weights"}

    def check_units(self, units: Any) -> None:
        """See `RiskSource`."""


def ways(vla: HookedVLA, inputs: PolicyInputs) -> dict[str, Callable[[], Any]]:
    """What is compared, by the name that the table shows; edits as far up as the network has blocks."""
    draw = np.random.default_rng(0)
    risk = LinearRisk(draw.normal(0, 0.01, (7, vla.cfg.d_model)), vla.cfg.action_names)
    shut, open_ = Gate(risk, 2.0), Gate(risk, -1.0)
    unit = Unit("libero_spatial", 0, 0)

    def answered(gate: Gate, arm: Any) -> Callable[[], Any]:
        memory: dict[str, Any] = {}

        def run() -> Any:
            seen = gate.see(vla, inputs, getattr(arm, "sites", ()))
            known = {name: getattr(seen, name) for name in ("score", "fired", "clean", "risk", "nearest", "cache")}
            asked = Query(unit, 0, 0, {}, "", **known, triggered=seen.fired, flagged=("dz",), memory=memory)
            return arm.act(vla, inputs, asked)

        return run

    last, middle = (Mist(("resid_post", layer)) for layer in (-1, -2))
    found = {
        "plain network": lambda: vla.policy(inputs),
        "gate, shut": answered(shut, middle),
        "gate, safe-stop": answered(open_, SafeStop()),
        "gate, mist behind the last block": answered(open_, last),
        "gate, mist behind the last block, holding nothing": answered(open_, Mist(("resid_post", -1), hold=False)),
        "gate, mist one block earlier": answered(open_, middle),
        "gate, mist one block earlier, holding nothing": answered(open_, Mist(("resid_post", -2), hold=False)),
        "gate, mist one block earlier, first 4 steps": answered(open_, Mist(("resid_post", -2), steps=(0, 1, 2, 3))),
        "gate, mist one block earlier, 3 rounds": answered(open_, Mist(("resid_post", -2), rounds=3, stride=0.5)),
    }
    if vla.cfg.n_layers > BUILT:
        found["gate, mist two blocks earlier"] = answered(open_, Mist(("resid_post", -3)))
    return found


def measure(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call, turn by turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(repeats + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.thread_time()
            calls[name]()
            if turn:
                times[name].append(1000 * (time.thread_time() - start))
    return times


def large(repeats: int) -> dict[str, dict[str, float]]:
    """Estimated ratios for the 7B: what a way adds to a network of two blocks, over a plain query of all 32."""
    vla = HookedVLA(random_policy(0, layers=BUILT, **LARGE).requires_grad_(False))
    inputs = noise_inputs(vla)[0]
    kept = ("plain network", "gate, shut", "gate, mist behind the last block", "gate, mist one block earlier")
    calls = {name: call for name, call in ways(vla, inputs).items() if name in kept}
    states = torch.randn(1, vla.layout(inputs).length, vla.cfg.d_model)
    for start in (0, 1):
        calls[f"from block {start}"] = partial(rest_of(vla.policy, start), states, inputs)
    times = {name: statistics.median(values) for name, values in measure(calls, repeats).items()}
    block = times["from block 0"] - times["from block 1"]
    plain = times["plain network"] + (LARGE_BLOCKS - BUILT) * block
    rows = {way: {"ms": times[way], "over_plain": 1 + (times[way] - times[kept[0]]) / plain} for way in kept}
    print(f"estimate for the 7B: a plain query {plain / 1000:.1f} s, of which a block {block / 1000:.2f} s")
    for way, row in rows.items():
        print(f"{way:48s} x {row['over_plain']:.2f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--large", action="store_true", help="estimate for the 7B instead; needs 8 GB and minutes")
    parser.add_argument("--out", help="also write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.large:
        with torch.no_grad():
            write(options.out, large(options.repeats))
        return
    vla = HookedVLA.from_pretrained("mini")
    with torch.no_grad():
        times = measure(ways(vla, noise_inputs(vla)[0]), options.repeats)
    plain, shut = times["plain network"], times["gate, shut"]
    rows = {}
    for way, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, plain, strict=True))
        episode = statistics.median(
            (OPEN * a + (1 - OPEN) * c) / b for a, b, c in zip(values, plain, shut, strict=True)
        )
        rows[way] = {"ms": statistics.median(values), "over_plain": ratio, "over_plain_if_open_at_0.3": episode}
        print(
            f"{way:48s} {rows[way]['ms']:7.1f} ms  x {ratio:.2f}   open at {OPEN:.0%} of the queries: x {episode:.2f}"
        )
    write(options.out, rows)


def write(path: str | None, rows: dict[str, dict[str, float]]) -> None:
    """Keep the figures, where a file is named."""
    if path:
        content = {"what": "median CPU milliseconds per query, one thread", "provenance": provenance(), "ways": rows}
        write_atomic(path, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
