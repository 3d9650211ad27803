"""How many cells of a patching grid per second, against one forward per cell, and what makes the difference?

The grid: 8 layers x 130 tokens of the residual stream, one pair of queries. Two random policies: "small" (64 wide, 139
tokens), in which much of a forward is the cost of starting its operations, and "mini" (192 wide, 196 tokens, as the
shipped policy), in which one core does arithmetic all the time, so that only what is not computed at all is saved. In
one run on one machine with one torch thread, by the CPU time of the calling thread:

    torch hooks, one forward per cell      a hook on the block that writes one token, the whole network from the pixels
    ours, one forward per cell             `patch(batch_size=1, reuse=False)`: the same through the named sites
    ours, batched                          many cells per forward, each from the pixels
    ours, from the patched layer           one cell per forward, which starts at the patched block
    ours                                   both, as `patch` does by default
    ours, by gradient                      `attribution_patch`: the same grid to first order

The slow ways run a sample of the cells and are held against the full grid. Only ratios mean something elsewhere.

The aim is 4 times (4 x) the cells per second of torch hooks with one forward per cell. "ours" reaches it in "small", 64
wide, with 5.6 x, and misses it in "mini", 192 wide, with 3.1 x; on one core of a busy two-core x86-64 machine. In
"small" batches alone make 1.9 x and starting late alone 1.8 x, in "mini" 1.2 x and 2.2 x: there a grid of all layers
leaves out the cameras and on average half of the blocks, and no batch makes the rest of the arithmetic smaller.

    python benchmarks/patching.py --out results/patching.json
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import platform
import time
from collections.abc import Callable
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
from mist_interp.analysis.metrics import action_delta
from mist_interp.analysis.patching import agreement, attribution_patch, patch
from mist_interp.core.files import write_atomic
from mist_interp.core.provenance import provenance
from mist_interp.models import random_policy
from mist_interp.tracing.checks import noise_inputs

# 130 tokens each: with 72 patches all but the prompt and the stop token, with 128 patches all before the prompt.
TOKENS = {"small": ("bos", "vision", "proprio", "action_slot"), "mini": ("bos", "vision", "proprio")}
SIZES: dict[str, dict[str, Any]] = {
    "small": {"image_size": 84},
    "mini": {"dino": (128, 5, 4), "siglip": (128, 5, 4), "hidden": 192, "heads": 6, "ffn": 512, "image_size": 112},
}


@dataclass(frozen=True)
class Settings:
    """Cells per second of a patching grid."""

    policies: tuple[str, ...] = ("small", "mini")
    """Widths of the random policies, see `SIZES`."""

    layers: int = 8
    """Blocks of the language model."""

    sample: int = 48
    """Cells that the slow ways run."""

    batch_size: int | None = None
    """Cells per forward; default: that of `patch`."""

    repeats: int = 3
    """How often everything is timed; the median counts."""

    out: Path | None = None
    """JSON with the numbers, the machine and the versions."""


def main(settings: Settings) -> None:
    """Measure every policy and print one table each."""
    torch.set_num_threads(1)
    numbers = {name: measure(name, settings) for name in settings.policies}
    if settings.out:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(settings.out, json.dumps(numbers | {"provenance": provenance()}, indent=2) + "\n")


def measure(policy: str, settings: Settings) -> dict[str, Any]:
    """Time all ways in turns."""
    sizes, tokens = {**SIZES[policy], "layers": settings.layers}, TOKENS[policy]
    vla = HookedVLA(random_policy(**sizes).requires_grad_(False))
    vla.policy.set_attn_implementation("sdpa")
    clean, corrupt = (noise_inputs(vla, seed)[0] for seed in (0, 1))
    n_tokens = vla.layout(clean).select(tokens).index.shape[1]
    chosen = np.random.default_rng(0).choice(settings.layers * n_tokens, settings.sample, replace=False)
    cells = [(int(cell) // n_tokens, int(cell) % n_tokens) for cell in chosen]
    options: dict[str, Any] = {"over": ("layer", "token"), "tokens": tokens, "metric": action_delta()}

    def some(batch_size: int | None, reuse: bool) -> Callable[[], np.ndarray]:
        """A part of the grid as large as the sample: whole layers would be too slow, so a few tokens of every layer."""
        few = {**options, "tokens": few_tokens(vla, clean, settings.sample // settings.layers)}
        return lambda: patch(vla, clean, corrupt, **few, batch_size=batch_size, reuse=reuse).values.values

    part = settings.layers * (settings.sample // settings.layers)
    ways: dict[str, tuple[Callable[[], Any], int]] = {
        "torch hooks, one forward per cell": (lambda: by_torch_hooks(vla, clean, corrupt, tokens, cells), len(cells)),
        "ours, one forward per cell": (some(1, False), part),
        "ours, batched": (some(settings.batch_size, False), part),
        "ours, from the patched layer": (some(1, True), part),
        "ours": (
            lambda: patch(vla, clean, corrupt, **options, batch_size=settings.batch_size),
            settings.layers * n_tokens,
        ),
        "ours, by gradient": (lambda: attribution_patch(vla, clean, corrupt, **options), settings.layers * n_tokens),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Any] = {}
    for _ in range(settings.repeats):
        for name, (run, _) in ways.items():
            start = time.thread_time()
            found[name] = run()
            times[name].append(time.thread_time() - start)
    grid, reference = found["ours"], found["torch hooks, one forward per cell"]
    largest = max(np.abs(grid.values.values[cell] - reference[k]).max() for k, cell in enumerate(cells))
    correlation = float(agreement(grid, found["ours, by gradient"]).sel(layer="all", measure="pearson").values)
    rates = {name: count / median(times[name]) for name, (_, count) in ways.items()}
    slow = rates["torch hooks, one forward per cell"]
    table = Table(f"{policy}: way", "cells per second", "ratio")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.1f}", f"{rate / slow:.1f}")
    console = Console()
    console.print(table)
    console.print(
        f"{settings.layers} layers x {n_tokens} tokens; largest difference to torch hooks {largest:.1e} where effects "
        f"reach {np.abs(reference).max():.2g}; by gradient correlates {correlation:.2f}; "
        f"{platform.processor() or platform.machine()}, 1 thread, median of {settings.repeats}"
    )
    return {"cells_per_second": rates, "largest_difference": float(largest), "gradient_pearson": correlation}


def by_torch_hooks(
    vla: HookedVLA, clean: Any, corrupt: Any, tokens: tuple[str, ...], cells: list[tuple[int, int]]
) -> np.ndarray:
    """What one writes without a library: record the clean run, then one forward per cell with one hook."""
    layers = vla.policy.language_model.model.layers
    places = vla.layout(clean).select(tokens).index[0]
    kept: dict[int, torch.Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, k=k: kept.__setitem__(k, args[0].clone()))
        for k, layer in enumerate(layers)
    ]
    vla.policy(clean)
    for handle in handles:
        handle.remove()
    unpatched = vla.policy(corrupt).values.mean(1)[0]
    effects = []
    for layer, token in cells:

        def write(_: Any, args: tuple[torch.Tensor, ...], layer: int = layer, place: Any = places[token]) -> Any:
            states = args[0].clone()
            states[:, place] = kept[layer][:, place]
            return states, *args[1:]

        handle = layers[layer].register_forward_pre_hook(write)
        effects.append((vla.policy(corrupt).values.mean(1)[0] - unpatched).numpy())
        handle.remove()
    return np.stack(effects)


def few_tokens(vla: HookedVLA, inputs: Any, count: int) -> tuple[str, ...]:
    """Selectors of as many single patches, spread over the first camera."""
    rows, cols = vla.layout(inputs).grid
    places = np.linspace(0, rows * cols - 1, count).astype(int)
    return tuple(f"agentview[{place // cols}, {place % cols}]" for place in places)


if __name__ == "__main__":
    main(tyro.cli(Settings))
