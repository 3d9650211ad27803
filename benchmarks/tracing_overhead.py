"""What does it cost to read and to edit activations, against plain PyTorch hooks and plain nnsight?

Every way answers the same query of the same policy in one run. The ways take turns, in an order that changes, and each
is timed by the CPU time of the calling thread with one torch thread. A ratio is the median over the turns of two times
of the same turn, so a busy machine slows both. There are two policies: `mini` has the sizes of the shipped policy,
`deep` the module tree of the published 7B model with hardly any arithmetic in it, so that what is left is the cost of
tracing.

Aims: this package's layer costs at most 10 % over plain nnsight doing the same, and at most 15 % over the plain network
of `mini`.
Measured on one core of a busy two-core x86-64 machine: reading all residuals costs 2 % over nnsight in `mini` and 7 %
in `deep`, one edit 6 % and 4 %; over the plain network of `mini` 9 % and 7 %.

    python benchmarks/tracing_overhead.py [--repeats 40] [--policies mini deep] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mist_interp import HookedVLA
from mist_interp.core.files import write_atomic
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.provenance import provenance
from mist_interp.models import random_policy
from mist_interp.tracing.checks import noise_inputs

POLICIES: dict[str, dict[str, Any]] = {
    "mini": {
        "dino": (128, 5, 4),
        "siglip": (128, 5, 4),
        "hidden": 192,
        "layers": 6,
        "heads": 6,
        "ffn": 512,
        "image_size": 112,
    },
    "deep": {
        "dino": (8, 24, 1),
        "siglip": (8, 27, 1),
        "hidden": 8,
        "layers": 32,
        "heads": 1,
        "ffn": 8,
        "image_size": 28,
    },
}


def torch_hooks_read(vla: HookedVLA, inputs: PolicyInputs) -> Callable[[], Any]:
    """All residual streams, copied by forward hooks that live for one query."""
    layers = vla.policy.language_model.model.layers

    def run() -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        handles = [
            layer.register_forward_hook(lambda _module, _args, out: kept.append(out.detach().clone()))
            for layer in layers
        ]
        try:
            vla.policy(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    return run


def torch_hook_edit(vla: HookedVLA, inputs: PolicyInputs) -> Callable[[], Any]:
    """One layer scaled by a forward hook that lives for one query."""
    layer = vla.policy.language_model.model.layers[vla.cfg.n_layers // 2]

    def run() -> Any:
        handle = layer.register_forward_hook(lambda _module, _args, out: out * 0.5)
        try:
            return vla.policy(inputs)
        finally:
            handle.remove()

    return run


def nnsight_read(vla: HookedVLA, inputs: PolicyInputs) -> Callable[[], Any]:
    """All residual streams, saved in one plain nnsight trace."""
    from nnsight import NNsight, save

    wrapped = NNsight(vla.policy)
    layers = wrapped.language_model.model.layers

    def run() -> Any:
        with wrapped.trace(inputs):
            kept = save([layer.output.detach().clone() for layer in layers])
        return kept

    return run


def nnsight_edit(vla: HookedVLA, inputs: PolicyInputs) -> Callable[[], Any]:
    """One layer scaled in one plain nnsight trace."""
    from nnsight import NNsight, save

    wrapped = NNsight(vla.policy)
    middle = vla.cfg.n_layers // 2

    def run() -> Any:
        with wrapped.trace(inputs):
            block = wrapped.language_model.model.layers[middle]
            block.output = block.output * 0.5
            out = save(wrapped.output)
        return out

    return run


def scoped_edit(vla: HookedVLA, inputs: PolicyInputs, *pairs: Any) -> Callable[[], Any]:
    """A query under edits that stay alive from query to query, as in a steered rollout."""

    def run() -> Any:
        with vla.hooks(*pairs):
            return vla(inputs)

    return run


def ways(vla: HookedVLA, inputs: PolicyInputs) -> dict[str, Callable[[], Any]]:
    """What is compared, by the name that the table shows."""
    middle = ("resid_post", vla.cfg.n_layers // 2)
    return {
        "plain network": lambda: vla.policy(inputs),
        "vla(inputs), no edit": lambda: vla(inputs),
        "read residuals: torch hooks": torch_hooks_read(vla, inputs),
        "read residuals: plain nnsight": nnsight_read(vla, inputs),
        "read residuals: run_with_cache": lambda: vla.run_with_cache(inputs, names="resid_post"),
        "read action_read only: run_with_cache": lambda: vla.run_with_cache(inputs, "resid_post", "action_read"),
        "read every stream: run_with_cache": lambda: vla.run_with_cache(inputs),
        "edit one layer: torch hook": torch_hook_edit(vla, inputs),
        "edit one layer: plain nnsight": nnsight_edit(vla, inputs),
        "edit one layer: hooks": scoped_edit(vla, inputs, (middle, lambda x, site: x * 0.5)),
        "edit action_read of one layer: hooks": scoped_edit(
            vla, inputs, (middle, lambda x, site: x * 0.5, "action_read")
        ),
    }


def measure(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call, turn by turn; the calls take turns, so that drift of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(repeats + 2):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.thread_time()
            calls[name]()
            if turn >= 2:  # the first turns compile and warm up
                times[name].append(1000 * (time.thread_time() - start))
    return times


def ratio(times: dict[str, list[float]], way: str, reference: str) -> float:
    """Median over the turns of a way's time over that of the reference in the same turn."""
    return statistics.median(a / b for a, b in zip(times[way], times[reference], strict=True))


# What each of our ways is held against: plain nnsight that does the same.
NNSIGHT = {
    "read residuals: run_with_cache": "read residuals: plain nnsight",
    "edit one layer: hooks": "edit one layer: plain nnsight",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--policies", nargs="+", choices=sorted(POLICIES), default=sorted(POLICIES, reverse=True))
    parser.add_argument("--out", help="also write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"what": "median CPU milliseconds per query, one thread", "provenance": provenance()}
    for name in options.policies:
        vla = HookedVLA(random_policy(**POLICIES[name]).requires_grad_(False))
        inputs = noise_inputs(vla)[0]
        modules = sum(1 for _ in vla.policy.modules())
        times = measure(ways(vla, inputs), options.repeats)
        figures = {way: statistics.median(values) for way, values in times.items()}
        over_plain = {way: ratio(times, way, "plain network") for way in times}
        over_nnsight = {way: ratio(times, way, NNSIGHT[way]) for way in NNSIGHT}
        results[name] = {"modules": modules, "milliseconds": figures, "over_plain": over_plain}
        results[name]["over_nnsight"] = over_nnsight
        print(f"\n{name}: {modules} modules, {vla.layout(inputs).length} tokens")
        print(f"  {'':40s} {'median':>11s}  over the network  over nnsight")
        for way, value in figures.items():
            beside = f"  x {over_nnsight[way]:.3f}" if way in over_nnsight else ""
            print(f"  {way:40s} {value:8.2f} ms  x {over_plain[way]:.3f}        {beside}")
    facts = results["provenance"]
    print(
        f"\n{facts.get('cpu')}, torch {facts.get('torch')}, nnsight {facts.get('nnsight')}, {options.repeats} repeats"
    )
    if options.out:
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
