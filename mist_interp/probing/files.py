"""What of a fitted probe is kept (`mist_interp.core.kept`)?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sklearn.base import clone

from mist_interp.core.kept import keep, kept, triples
from mist_interp.core.names import Site
from mist_interp.data.records import Array
from mist_interp.probing.dataset import FITS
from mist_interp.probing.estimator_files import dump_estimators, load_estimators
from mist_interp.probing.readout import (
    Estimator,
    estimator_config,
    estimator_from_config,
    is_linear,
    linear_from_arrays,
    readout_arrays,
    readout_from_arrays,
)
from mist_interp.probing.targets import target, target_config, target_from_config

if TYPE_CHECKING:
    from mist_interp.probing.probe import Probe

# Holds the classifiers where they are not linear.
ESTIMATORS = "probe.skops"


def save_probe(probe: Probe, folder: Path) -> None:
    """Write `probe.safetensors` and, for other than linear classifiers, `probe.skops`, then `probe.json`."""
    arrays: dict[str, Array] = {}
    for fit, readout in probe.fitted.items():
        arrays |= readout_arrays(readout, fit)
    estimator, others = probe.estimator_, None
    if not is_linear(estimator):
        fitted = {fit: list(readout.estimators) for fit, readout in probe.fitted.items()}
        others = dump_estimators({"estimator": clone(estimator), "fitted": fitted})
    facts = {
        "site": probe.site_.name,
        "tokens": probe.tokens,
        "pool": probe.pool,
        "estimator": {"kind": type(estimator).__name__, "file": ESTIMATORS} if others else estimator_config(estimator),
        "target": target_config(target(probe.target)),
        "seed": probe.seed,
        "outputs": probe.outputs_,
        "sigma": probe.sigma_,
        "trained_on": sorted(probe.trained_on_),
        "source": probe.source_,
    }
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    keep(folder, "probe", facts, tensors, {ESTIMATORS: others})


def load_probe(kind: type[Probe], folder: Path) -> Probe:
    """See `Probe.load`."""
    content, tensors = kept(folder, "probe", "probe")
    site, outputs = Site(content["site"]), tuple(content["outputs"])
    arrays = {name: values.numpy() for name, values in tensors.items()}
    if "file" in content["estimator"]:
        estimator, fitted = _estimators(folder, len(outputs))
    else:
        estimator = estimator_from_config(content["estimator"])
        fitted = {fit: linear_from_arrays(arrays, fit, estimator, outputs) for fit in FITS}
    asked = target_from_config(content["target"])
    probe = kind(site, content["tokens"], content["pool"], estimator, asked, content["seed"])
    probe.site_ = site
    probe.outputs_ = outputs
    probe.sigma_ = tuple(content["sigma"])
    probe.readouts_ = {fit: readout_from_arrays(arrays, fit, fitted[fit]) for fit in FITS}
    probe.trained_on_ = triples(content["trained_on"])
    probe.source_ = content["source"]
    return probe


def _estimators(folder: Path, outputs: int) -> tuple[Estimator, Mapping[str, list[Any]]]:
    """Template and fitted classifiers of a probe that is not linear."""
    path = folder / ESTIMATORS
    if not path.is_file():
        raise FileNotFoundError(f"no probe in {folder}: {ESTIMATORS} is missing")
    content = load_estimators(path.read_bytes(), f"{path} is refused")
    estimator, fitted = content.get("estimator"), content.get("fitted")
    if estimator is None or not isinstance(fitted, dict) or any(len(fitted.get(fit, ())) != outputs for fit in FITS):
        raise ValueError(f"{path} is refused: it does not hold a classifier per output of the probe and its controls")
    return estimator, fitted
