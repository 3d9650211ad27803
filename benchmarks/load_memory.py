"""How much memory does loading a published-size checkpoint take?

Writes a random checkpoint with the shapes of the published 7B models (full vision towers, embeddings and head, fewer
decoder layers so that it fits everywhere), loads it in bfloat16 in a fresh process, and answers one query, which reads
every weight that is ever used. Peak memory counts all resident pages of the process, memory-mapped ones included, above
what the process used before loading.

    python benchmarks/load_memory.py [--layers 4] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from mist_interp.core.files import write_atomic
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.provenance import provenance
from mist_interp.models import load_policy
from mist_interp.models.checkpoint import build_without_memory
from mist_interp.models.config import OpenVLAConfig
from mist_interp.models.small import identity_statistics

LIMIT = 1.1
BYTES_PER_FILE = 1_000_000_000


def write_checkpoint(folder: Path, layers: int) -> None:
    """A random checkpoint in the published layout, written one file at a time."""
    text = {"num_hidden_layers": layers, "vocab_size": 32064, "pad_token_id": 32000}
    settings = {"model_type": "openvla", "text_config": text, "norm_stats": None}
    statistics = identity_statistics()
    config = OpenVLAConfig(**settings)
    shapes = {name: value.shape for name, value in build_without_memory(config).state_dict().items()}
    groups: list[list[str]] = [[]]
    for name in (name for name in shapes if not name.startswith(("action_head.", "proprio_projector."))):
        if sum(shapes[other].numel() * 2 for other in groups[-1]) > BYTES_PER_FILE:
            groups.append([])
        groups[-1].append(name)
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number, names in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: draw(shapes[name], torch.bfloat16) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    for part, dtype in (("action_head", torch.bfloat16), ("proprio_projector", torch.float32)):
        inside = {name: shape for name, shape in shapes.items() if name.startswith(f"{part}.")}
        weights = {f"module.{name.partition('.')[2]}": draw(shape, dtype) for name, shape in inside.items()}
        torch.save(weights, folder / f"{part}--0_checkpoint.pt")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))


def draw(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Small random numbers."""
    return torch.empty(shape, dtype=dtype).normal_(std=0.02)


def memory(field: str) -> int:
    """A line of this process's memory report, in bytes: VmRSS, VmHWM (its peak), RssAnon, RssFile."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {field} in /proc/self/status: this benchmark needs Linux")


def measure(folder: Path) -> dict[str, float]:
    """Load, answer one query, and report memory in bytes and time in seconds."""
    before = memory("VmRSS")
    start = time.perf_counter()
    policy = load_policy(folder, dtype=torch.bfloat16)
    load_seconds = time.perf_counter() - start
    peak_load, anonymous_load = memory("VmHWM"), memory("RssAnon")
    ids = torch.tensor([[1, 512, 29901, 29871]])
    inputs = PolicyInputs(ids, torch.ones_like(ids), torch.randn(1, 12, 224, 224), torch.zeros(1, 8))
    start = time.perf_counter()
    with torch.no_grad():
        policy(inputs)
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in policy.parameters())
    return {
        "parameters_bytes": parameters,
        "before_bytes": before,
        "peak_after_load_bytes": peak_load - before,
        "anonymous_after_load_bytes": anonymous_load,
        "peak_after_query_bytes": memory("VmHWM") - before,
        "load_seconds": load_seconds,
        "first_query_seconds": time.perf_counter() - start,
    }


def main() -> None:
    """Write the checkpoint, measure in a fresh process, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="decoder layers; the published models have 32")
    parser.add_argument("--keep", type=Path, help="write the checkpoint here and keep it")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/load_memory.json"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary) / "checkpoint"
        write_checkpoint(folder, options.layers)
        command = [sys.executable, __file__, "--measure", str(folder)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    size = found["parameters_bytes"]
    print(f"random checkpoint, published shapes with {options.layers} decoder layers, bfloat16, CPU")
    for label, key in (
        ("parameters", "parameters_bytes"),
        ("peak after loading", "peak_after_load_bytes"),
        ("peak after the first query", "peak_after_query_bytes"),
    ):
        print(f"  {label:<28}{found[key] / 1e9:8.2f} GB   {found[key] / size:5.2f} x parameters")
    print(f"  {'loading':<28}{found['load_seconds']:8.2f} s")
    ratio = found["peak_after_query_bytes"] / size
    print(f"  limit {LIMIT} x parameters: {'kept' if ratio <= LIMIT else 'EXCEEDED'}")
    report = {"layers": options.layers, **found, "peak_ratio": ratio, "limit": LIMIT, "provenance": provenance()}
    write_atomic(options.out, json.dumps(report, indent=2) + "\n")
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
