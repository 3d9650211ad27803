"""How is a fitted probe kept, and read again without running foreign code?

Arrays go into one safetensors file, everything else into one JSON file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from mist_interp.core.files import write_atomic
from mist_interp.core.names import Site
from mist_interp.data.records import Array
from mist_interp.probing.dataset import FITS
from mist_interp.probing.readout import estimator_config, estimator_from_config, readout_arrays, readout_from_arrays
from mist_interp.probing.targets import target, target_config, target_from_config

if TYPE_CHECKING:
    from mist_interp.probing.probe import Probe

FORMAT = 1


def save_probe(probe: Probe, folder: Path) -> None:
    """Write `probe.safetensors`, then `probe.json`; see `Probe.save`."""
    arrays: dict[str, Array] = {}
    for fit, readout in probe.fitted.items():
        arrays |= readout_arrays(readout, fit)
    content = {
        "format": FORMAT,
        "site": probe.site_.name,
        "tokens": probe.tokens,
        "pool": probe.pool,
        "estimator": estimator_config(probe.estimator_),
        "target": target_config(target(probe.target)),
        "seed": probe.seed,
        "outputs": probe.outputs_,
        "sigma": probe.sigma_,
        "trained_on": sorted(probe.trained_on_),
        "source": probe.source_,
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomic(folder / "probe.safetensors", save_arrays({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    write_atomic(folder / "probe.json", text)


def load_probe(kind: type[Probe], folder: Path) -> Probe:
    """See `Probe.load`."""
    path = folder / "probe.json"
    if not path.is_file():
        raise FileNotFoundError(f"no probe in {folder}: probe.json is missing")
    content = json.loads(path.read_text())
    if content["format"] != FORMAT:
        raise ValueError(f"{path} has format {content['format']}; this package reads {FORMAT}")
    site, estimator = Site(content["site"]), estimator_from_config(content["estimator"])
    asked = target_from_config(content["target"])
    probe = kind(site, content["tokens"], content["pool"], estimator, asked, content["seed"])
    arrays = load_arrays((folder / "probe.safetensors").read_bytes())
    probe.site_ = site
    probe.outputs_ = tuple(content["outputs"])
    probe.sigma_ = tuple(content["sigma"])
    probe.readouts_ = {fit: readout_from_arrays(arrays, fit, estimator, probe.outputs_) for fit in FITS}
    probe.trained_on_ = frozenset((suite, task, init_state) for suite, task, init_state in content["trained_on"])
    probe.source_ = content["source"]
    return probe
