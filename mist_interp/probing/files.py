"""What of a fitted probe is kept (`mist_interp.core.kept`)?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mist_interp.core.kept import keep, kept, triples
from mist_interp.core.names import Site
from mist_interp.data.records import Array
from mist_interp.probing.dataset import FITS
from mist_interp.probing.readout import estimator_config, estimator_from_config, readout_arrays, readout_from_arrays
from mist_interp.probing.targets import target, target_config, target_from_config

if TYPE_CHECKING:
    from mist_interp.probing.probe import Probe


def save_probe(probe: Probe, folder: Path) -> None:
    """Write `probe.safetensors`, then `probe.json`; see `Probe.save`."""
    arrays: dict[str, Array] = {}
    for fit, readout in probe.fitted.items():
        arrays |= readout_arrays(readout, fit)
    facts = {
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
    keep(folder, "probe", facts, {name: torch.from_numpy(values) for name, values in arrays.items()})


def load_probe(kind: type[Probe], folder: Path) -> Probe:
    """See `Probe.load`."""
    content, tensors = kept(folder, "probe", "probe")
    site, estimator = Site(content["site"]), estimator_from_config(content["estimator"])
    asked = target_from_config(content["target"])
    probe = kind(site, content["tokens"], content["pool"], estimator, asked, content["seed"])
    arrays = {name: values.numpy() for name, values in tensors.items()}
    probe.site_ = site
    probe.outputs_ = tuple(content["outputs"])
    probe.sigma_ = tuple(content["sigma"])
    probe.readouts_ = {fit: readout_from_arrays(arrays, fit, estimator, probe.outputs_) for fit in FITS}
    probe.trained_on_ = triples(content["trained_on"])
    probe.source_ = content["source"]
    return probe
