"""Does a cache take the memory of its tensors, and no more?

Caches of one query are collected until they hold a few hundred megabytes; what the process has grown by is divided by
the sum of their tensors. A cache that kept views of larger tensors, a graph, or anything of the forward alive would
show. Each case runs in a process of its own, whose C library gives freed memory back at once (otherwise holes that
other tensors left would be counted, or filled), which rounds each tensor up to whole pages.

    python benchmarks/tracing_memory.py [--megabytes 300]

Aim: at most 1.05. Measured on Linux with torch 2.13 for the CPU: 1.00 to 1.02 in all four cases.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mist_interp import HookedVLA
from mist_interp.core.inputs import PolicyInputs
from mist_interp.tracing.checks import noise_inputs

LIMIT = 1.05
CASES: dict[str, dict[str, Any]] = {
    "every stream": {},
    "everything, head results too": {"names": "*"},
    "every stream at action_read": {"tokens": "action_read"},
    "residuals in float16": {"names": "resid_post", "dtype": torch.float16},
}
MIB = 2**20


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, megabytes: int) -> str:
    """One line of the table, in this process."""
    torch.set_num_threads(1)
    vla = HookedVLA.from_pretrained("mini", attn_implementation="eager")
    inputs = PolicyInputs.cat([noise_inputs(vla)] * 3)
    for _ in range(3):  # warms up
        size = vla.run_with_cache(inputs, **CASES[name])[1].nbytes
    before = resident()
    kept = [vla.run_with_cache(inputs, **CASES[name])[1] for _ in range(min(megabytes * MIB // size, 200))]
    grown, tensors = resident() - before, sum(cache.nbytes for cache in kept)
    sizes = f"{size / MIB:9.2f} MB {len(kept):7d} {tensors / MIB:8.1f} MB {grown / MIB:8.1f} MB"
    return f"  {name:30s} {sizes}  {grown / tensors:.3f}{'' if grown <= LIMIT * tensors else f'  over {LIMIT}'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--case", choices=list(CASES), help="only this one, in this process")
    options = parser.parse_args()
    if options.case:
        print(measure(options.case, options.megabytes))
        return
    print(f"  {'mini, six queries':30s} {'one cache':>12s} {'caches':>7s} {'tensors':>11s} {'process':>11s}  ratio")
    for name in CASES:
        command = [sys.executable, __file__, "--case", name, "--megabytes", str(options.megabytes)]
        settings = {"MALLOC_MMAP_THRESHOLD_": "8192", "MALLOC_TRIM_THRESHOLD_": "8192", "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
        print(run.stdout.rstrip())


if __name__ == "__main__":
    main()
