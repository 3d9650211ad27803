"""What of a fitted risk predictor is kept (`mist_interp.core.kept`)?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mist_interp.core.kept import keep, kept, triples
from mist_interp.core.names import Site
from mist_interp.data.records import Array
from mist_interp.probing.networks import network_config, network_from_config
from mist_interp.probing.networks_fitted import FittedNetwork, Recipe, Training
from mist_interp.probing.targets import target, target_config, target_from_config
from mist_interp.probing.temporal import over_time_config, over_time_from_config

if TYPE_CHECKING:
    from mist_interp.probing.predictor import RiskPredictor

_NUMBERS = ("mean", "scale", "slope", "offset")


def save_predictor(predictor: RiskPredictor, folder: Path) -> None:
    """Write `predictor.safetensors`, then `predictor.json`; see `RiskPredictor.save`."""
    arrays: dict[str, Array] = {}
    for fit, network in predictor.fitted.items():
        arrays |= network_arrays(network, fit)
    facts = {
        "sites": [site.name for site in predictor.sites_],
        "tokens": predictor.tokens,
        "pool": predictor.pool,
        "recipe": recipe_config(predictor.estimator_),
        "target": target_config(target(predictor.target)),
        "seed": predictor.seed,
        "outputs": predictor.outputs_,
        "networks": {fit: {"flags": n.flags, "facts": n.facts} for fit, n in predictor.fitted.items()},
        "flags": predictor.flags_,
        "trained_on": sorted(predictor.trained_on_),
        "source": predictor.source_,
    }
    keep(folder, "predictor", facts, {name: torch.from_numpy(values) for name, values in arrays.items()})


def load_predictor(kind: type[RiskPredictor], folder: Path) -> RiskPredictor:
    """See `RiskPredictor.load`."""
    content, tensors = kept(folder, "predictor", "predictor")
    sites = tuple(Site(name) for name in content["sites"])
    recipe = recipe_from_config(content["recipe"])
    predictor = kind(
        list(sites) if len(sites) > 1 else sites[0],
        content["tokens"],
        content["pool"],
        recipe.network,
        target_from_config(content["target"]),
        recipe.over_time,
        recipe.training,
        content["seed"],
    )
    arrays = {name: values.numpy() for name, values in tensors.items()}
    predictor.sites_ = sites
    predictor.outputs_ = tuple(content["outputs"])
    predictor.networks_ = {
        fit: network_from_arrays(arrays, fit, recipe, kept) for fit, kept in content["networks"].items()
    }
    predictor.flags_ = tuple(content["flags"])
    predictor.trained_on_ = triples(content["trained_on"])
    predictor.source_ = content["source"]
    return predictor


def network_arrays(network: FittedNetwork, prefix: str) -> dict[str, Array]:
    """Arrays of a fitted network, names beginning with `prefix`; weights in the single precision of their training."""
    weights = {f"{prefix}.module.{name}": value.float().numpy() for name, value in network.module.state_dict().items()}
    numbers = {f"{prefix}.{name}": np.asarray(getattr(network, name), dtype=np.float64) for name in _NUMBERS}
    return {name: np.ascontiguousarray(value) for name, value in {**weights, **numbers}.items()}


def network_from_arrays(
    arrays: Mapping[str, Array], prefix: str, recipe: Recipe, kept: Mapping[str, Any]
) -> FittedNetwork:
    """Inverse of `network_arrays`; `kept` has the flags and facts."""
    mean, scale, slope, offset = (arrays[f"{prefix}.{name}"] for name in _NUMBERS)
    start = f"{prefix}.module."
    with torch.random.fork_rng(devices=[]):  # weights are drawn before they are replaced
        module = recipe.network.module(len(mean), len(slope))
    module.load_state_dict(
        {name.removeprefix(start): torch.from_numpy(value) for name, value in arrays.items() if name.startswith(start)}
    )
    module = module.double().eval().requires_grad_(False)
    flags = tuple((int(place), str(text)) for place, text in kept["flags"])
    facts = tuple((str(name), value) for name, value in kept["facts"])
    return FittedNetwork(recipe, module, mean, scale, slope, offset, flags, facts)


def recipe_config(recipe: Recipe) -> dict[str, Any]:
    """Plain values from which `recipe_from_config` makes an equal one."""
    return {
        "network": network_config(recipe.network),
        "over_time": over_time_config(recipe.over_time),
        "training": asdict(recipe.training),
    }


def recipe_from_config(config: Mapping[str, Any]) -> Recipe:
    """Inverse of `recipe_config`."""
    network, over_time = network_from_config(config["network"]), over_time_from_config(config["over_time"])
    return Recipe(network, over_time, Training(**config["training"]))
