"""What do caching and patching cost here, and what in TransformerLens, on a Llama of the same sizes?

Both packages wrap the transformers implementation of Llama. Here it is the language model of a random policy whose
cameras are next to nothing (towers 8 wide, one block), there a `LlamaForCausalLM` under TransformerLens'
`TransformerBridge`: the same width, layers, heads, MLP and number of tokens, eager attention, one torch thread. Each
package is held against its own network without any package, in the same turns of one run, by the CPU time of the
calling thread; a ratio is the median over the turns.

    forward       one query through the package with nothing to do
    cache         the residual stream after every block
    everything    every activation that the package has a name for (without head results, which the other leaves out)
    edit          one layer of the residual stream scaled
    patching      cells (layer, token) of a sweep that puts the clean residual stream into a corrupt run; counted in
                  cells per forward of the bare network. TransformerLens runs one forward per cell, here `patch` runs
                  several and starts at the patched block.

Measured on one core of a busy two-core x86-64 machine, over the bare network of the same package, here and there: in
"mini" (6 layers, 192 wide, 196 tokens) cache 1.04 and 1.26, everything 1.9 and 2.1, edit 1.10 and 1.26, patching 1.4
and 0.8 cells per forward; in "deep" (32 layers, 64 wide, 100 tokens) cache 1.3 and 2.2, everything 2.6 and 4.3, edit
1.2 and 2.1, patching 2.9 and 0.5.

TransformerLens is no dependency of this package. To run this, install it beside it, into an environment of its own:

    python -m venv /tmp/lens && /tmp/lens/bin/pip install -e . "transformer-lens==4.3.0"
    OMP_NUM_THREADS=1 /tmp/lens/bin/python benchmarks/against_transformer_lens.py [--repeats 20] [--sizes mini deep]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mist_interp import HookedVLA
from mist_interp.analysis.metrics import action_delta
from mist_interp.analysis.patching import patch
from mist_interp.core.files import write_atomic
from mist_interp.core.provenance import provenance
from mist_interp.models import random_policy
from mist_interp.tracing.checks import noise_inputs

SIZES = {
    "mini": {"hidden": 192, "layers": 6, "heads": 6, "ffn": 512, "image_size": 112},
    "deep": {"hidden": 64, "layers": 32, "heads": 4, "ffn": 128, "image_size": 56},
}
TINY_CAMERAS = {"dino": (8, 2, 1), "siglip": (8, 2, 1)}
Calls = dict[str, Callable[[], Any]]


def ours(sizes: dict[str, Any]) -> tuple[Calls, Callable[[], int], int, int]:
    """Ways of this package, its patching sweep (which gives the number of cells), tokens and vocabulary."""
    vla = HookedVLA(random_policy(**sizes, **TINY_CAMERAS).requires_grad_(False))
    vla.policy.set_attn_implementation("eager")
    clean, corrupt = noise_inputs(vla, 0)[0], noise_inputs(vla, 1)[0]
    middle = ("resid_pre", vla.cfg.n_layers // 2)
    everything = [site for site in vla.sites() if site.hook.short != "result"]
    calls: Calls = {
        "bare network": lambda: vla.policy(clean),
        "forward": lambda: vla(clean),
        "cache": lambda: vla.run_with_cache(clean, names="resid_post"),
        "everything": lambda: vla.run_with_cache(clean, names=everything),
        "edit": lambda: vla.run_with_hooks(clean, [(middle, lambda x, site: x * 0.5)]),
    }
    tokens = tuple(f"agentview[0, {col}]" for col in range(4))

    def sweep() -> int:
        grid = patch(vla, clean, corrupt, "resid_pre", ("layer", "token"), action_delta(), tokens=tokens)
        return vla.cfg.n_layers * len(tokens) if grid.values is not None else 0

    return calls, sweep, vla.layout(clean).length, vla.policy.config.llm.vocab_size


def theirs(sizes: dict[str, Any], tokens: int, vocabulary: int) -> tuple[Calls, Callable[[], int]]:
    """The same ways of TransformerLens on a Llama of the same sizes."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    layers = sizes["layers"]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=sizes["hidden"],
        num_hidden_layers=layers,
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["ffn"],
        attn_implementation="eager",
    )
    bare, wrapped = (LlamaForCausalLM(config).eval().requires_grad_(False) for _ in range(2))
    wrapped.load_state_dict(bare.state_dict())
    bridge = build_bridge_from_module(wrapped, "LlamaForCausalLM", hf_config=config)
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(3, vocabulary, (2, 1, tokens), generator=generator)
    assert torch.equal(bare(clean).logits, bridge(clean)), "the two networks differ"
    names = [f"blocks.{i}.hook_resid_post" for i in range(layers)]

    def cached() -> Any:
        _, cache = bridge.run_with_cache(clean, names_filter=lambda name: name in names)
        assert len(cache) == layers
        return cache

    def halve(x: torch.Tensor, hook: Any) -> torch.Tensor:
        return x * 0.5

    calls: Calls = {
        "bare network": lambda: bare(clean),
        "forward": lambda: bridge(clean),
        "cache": cached,
        "everything": lambda: bridge.run_with_cache(clean),
        "edit": lambda: bridge.run_with_hooks(clean, fwd_hooks=[(f"blocks.{layers // 2}.hook_resid_pre", halve)]),
    }

    def sweep() -> int:
        entering = {f"blocks.{i}.hook_resid_pre" for i in range(layers)}
        _, kept = bridge.run_with_cache(clean, names_filter=lambda name: name in entering)
        reference, effects = bridge(corrupt), []
        for layer in range(layers):
            for token in range(1, 5):

                def write(x: torch.Tensor, hook: Any, layer: int = layer, token: int = token) -> torch.Tensor:
                    x = x.clone()
                    x[:, token] = kept[f"blocks.{layer}.hook_resid_pre"][:, token]
                    return x

                patched = bridge.run_with_hooks(corrupt, fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", write)])
                effects.append((patched - reference)[0, -1].mean())
        return len(effects)

    return calls, sweep


def measure(packages: dict[str, Calls], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of every way of every package, turn by turn."""
    ways = [(package, way) for package, calls in packages.items() for way in calls]
    times: dict[str, dict[str, list[float]]] = {name: {way: [] for way in calls} for name, calls in packages.items()}
    for turn in range(repeats + 2):
        for package, way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            start = time.thread_time()
            packages[package][way]()
            if turn >= 2:  # the first turns warm up
                times[package][way].append(1000 * (time.thread_time() - start))
    return times


def compare(sizes: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Numbers of one size."""
    our_calls, our_sweep, tokens, vocabulary = ours(sizes)
    their_calls, their_sweep = theirs(sizes, tokens, vocabulary)
    times = measure({"mist_interp": our_calls, "transformer_lens": their_calls}, repeats)
    found: dict[str, Any] = {"tokens": tokens}
    for package, sweep in (("mist_interp", our_sweep), ("transformer_lens", their_sweep)):
        bare = times[package]["bare network"]
        rows = {}
        for way, values in times[package].items():
            ratio = statistics.median(a / b for a, b in zip(values, bare, strict=True))
            rows[way] = {"milliseconds": statistics.median(values), "ratio": ratio}
        rates = []
        for _ in range(3):
            start = time.thread_time()
            cells = sweep()
            rates.append(cells / (1000 * (time.thread_time() - start)) * statistics.median(bare))
        found[package] = {"ways": rows, "cells_per_forward": statistics.median(rates)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=["mini", "deep"])
    parser.add_argument("--out", help="also write the figures as JSON")
    options = parser.parse_args()
    if find_spec("transformer_lens") is None:
        print("skipped: TransformerLens is not installed here; the head of this file says how to install it")
        return
    torch.set_num_threads(1)
    results: dict[str, Any] = {"transformer_lens": version("transformer-lens"), "provenance": provenance()}
    with torch.no_grad():
        for name in options.sizes:
            found = results[name] = compare(SIZES[name], options.repeats)
            print(f"\n{name}: {SIZES[name]}, {found['tokens']} tokens; x: over the bare network of the same package")
            print(f"  {'':14s}{'mist_interp':>24s}{'transformer_lens':>24s}")
            for way in found["mist_interp"]["ways"]:
                cells = [found[package]["ways"][way] for package in ("mist_interp", "transformer_lens")]
                print(f"  {way:14s}" + "".join(f"{c['milliseconds']:13.2f} ms  x {c['ratio']:5.3f}" for c in cells))
            rates = [found[package]["cells_per_forward"] for package in ("mist_interp", "transformer_lens")]
            print(f"  {'patching':14s}" + "".join(f"{rate:12.2f} per forward" for rate in rates))
    print(f"\ntransformer-lens {results['transformer_lens']}, torch {torch.__version__}, {options.repeats} repeats")
    if options.out:
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
