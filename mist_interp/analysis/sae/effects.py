"""Does a feature do anything, and more than any other direction of the same size would?

Two questions of the same kind, each beside its control:

    steering   adds coef standard deviations of a feature at all tokens; the control adds random directions of the same
               length (`dose_response`)
    ablation   takes the feature out wherever it is active, which changes each token by its code; the control takes the
               same lengths along random directions out of the same tokens (`ablation`)

Changes are in standard deviations of the unedited actions over the queries given (`mist_interp.analysis.sae.splicing`).

Where it misleads: steering at every token pushes the activations where they never are, so large coefficients show what
breaks and not what the feature means; the random directions are isotropic, while activations (and the features) lie in
fewer directions to which the network listens: beating them is necessary, and beating other features is the harder test;
the features tried were often picked because they looked interesting: test a pick on queries that it was not picked on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.sae.autoencoder import SparseAutoencoder, site_of
from mist_interp.analysis.sae.splicing import ACTION_SD, BATCH, ablating, action_sd, actions, rms
from mist_interp.analysis.several import Several
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site
from mist_interp.steering.direction import SteeringDirection


@dataclass(frozen=True, eq=False)
class DoseResponse(Several):
    """What adding features does.

    Attributes:
        mean: (feature, coef, dim) signed change, mean over queries and chunk steps.
        size: (feature, coef) root mean square change over queries, steps and dimensions.
        random: (feature, draw, coef) the same for random directions of the feature's length.
    """

    main = "mean"

    mean: Result
    size: Result
    random: Result


@dataclass(frozen=True, eq=False)
class Ablation(Several):
    """What taking features out does.

    Attributes:
        change: (feature, dim) root mean square change over queries and chunk steps.
        size: (feature,) root mean square over the dimensions, too.
        random: (feature, draw) `size` for random directions of the same lengths at the same tokens.
        active: (feature,) share of tokens at which the feature is active.
    """

    main = "change"

    change: Result
    size: Result
    random: Result
    active: Result


def dose_response(
    vla: Any,
    inputs: PolicyInputs,
    sae: SparseAutoencoder,
    features: Sequence[int],
    *,
    coefs: Sequence[float] = (-4.0, -2.0, 2.0, 4.0),
    draws: int = 3,
    seed: int = 0,
    batch_size: int = BATCH,
) -> DoseResponse:
    """Steer along features, and along as many random directions of each one's length.

    Args:
        vla: the policy.
        inputs: queries of different scenes.
        sae: fitted on rows of a site of this policy.
        features: which to steer along.
        coefs: standard deviations of the training projection.
        draws: random directions per feature.
        seed: of the random directions.
        batch_size: queries per forward pass.

    Raises:
        IndexError: there is no such feature.
        ValueError: nothing to steer along, or actions that do not vary.
    """
    if not (len(features) and len(coefs)):
        raise ValueError(f"nothing to steer: {len(features)} features and {len(coefs)} coefficients")
    plain = actions(vla, inputs, (), batch_size)
    sd = action_sd(plain, vla)
    cells = list(_steered(sae, features, coefs, draws, seed))
    signed = np.zeros((len(features), len(coefs), len(sd)))
    size = np.zeros((len(features), len(coefs)))
    random = np.zeros((len(features), draws, len(coefs)))
    for row, column, draw, direction in cells:
        with direction.steer(vla, coefs[column]):
            change = (actions(vla, inputs, (), batch_size) - plain) / sd
        if draw is None:
            signed[row, column] = change.mean((0, 1)).numpy()
            size[row, column] = float(change.square().mean().sqrt())
        else:
            random[row, draw, column] = float(change.square().mean().sqrt())
    facts, numbers, doses = _facts(sae, inputs), [int(f) for f in features], [float(coef) for coef in coefs]
    names = list(vla.cfg.action_names)
    return DoseResponse(
        Result(labelled(signed, feature=numbers, coef=doses, dim=names), ACTION_SD, "mean change when steered", facts),
        Result(labelled(size, feature=numbers, coef=doses), ACTION_SD, "root mean square change when steered", facts),
        Result(
            labelled(random, feature=numbers, draw=range(draws), coef=doses),
            ACTION_SD,
            "root mean square change when steered along a random direction of the feature's length",
            facts | {"seed": seed},
        ),
    )


def _steered(
    sae: SparseAutoencoder, features: Sequence[int], coefs: Sequence[float], draws: int, seed: int
) -> Iterable[tuple[int, int, int | None, SteeringDirection]]:
    for row, feature in enumerate(features):
        direction = sae.direction(feature)
        for column in range(len(coefs)):
            yield row, column, None, direction
            for draw in range(draws):
                yield row, column, draw, SteeringDirection.random(direction, seed=1_000_000 * seed + 1000 * row + draw)


def ablation(
    vla: Any,
    inputs: PolicyInputs,
    sae: SparseAutoencoder,
    features: Sequence[int],
    *,
    draws: int = 5,
    seed: int = 0,
    batch_size: int = BATCH,
) -> Ablation:
    """Take features out one at a time, and the same lengths along random directions.

    Args:
        vla: the policy.
        inputs: queries of different scenes, on which the features were not picked.
        sae: fitted on rows of a site of this policy.
        features: which to take out.
        draws: random directions per feature.
        seed: of the random directions.
        batch_size: queries per forward pass.

    Raises:
        IndexError: there is no such feature.
        ValueError: nothing to take out, or actions that do not vary.
    """
    if not len(features):
        raise ValueError("no feature was given")
    sae.check_feature(*features)
    site, numbers = site_of(sae), [int(feature) for feature in features]
    plain = actions(vla, inputs, (), batch_size)
    sd = action_sd(plain, vla)

    def change(function: Callable[[Tensor, Site], Tensor]) -> Float[Tensor, "n chunk d"]:
        return (actions(vla, inputs, [(site, function, sae.tokens_)], batch_size) - plain) / sd

    rows, sizes, random = [], [], []
    for place, feature in enumerate(numbers):
        moved = change(ablating(sae, feature))
        rows.append(rms(moved))
        sizes.append(float(moved.square().mean().sqrt()))
        vectors = random_units(draws, sae.width_, seed=1000 * seed + place)
        random.append([float(change(_shifting(sae, feature, vector)).square().mean().sqrt()) for vector in vectors])
    active = active_share(vla, inputs, sae, batch_size)[numbers]
    facts, names = _facts(sae, inputs), list(vla.cfg.action_names)
    return Ablation(
        Result(labelled(torch.stack(rows), feature=numbers, dim=names), ACTION_SD, "change when taken out", facts),
        Result(labelled(sizes, feature=numbers), ACTION_SD, "root mean square change when taken out", facts),
        Result(
            labelled(np.array(random).reshape(len(numbers), draws), feature=numbers, draw=range(draws)),
            ACTION_SD,
            "root mean square change when the same lengths are taken out along a random direction",
            facts | {"seed": seed},
        ),
        Result(labelled(active, feature=numbers), "share of tokens", "where the feature is active", facts),
    )


def active_share(
    vla: Any, inputs: PolicyInputs, sae: SparseAutoencoder, batch_size: int = BATCH
) -> Float[Tensor, " features"]:
    """Share of the tokens of these queries at which each feature is active."""
    fired, count = torch.zeros(len(sae.decoder_)), 0
    with torch.no_grad():
        for start in range(0, inputs.batch_size, batch_size):
            batch = inputs[start : start + batch_size]
            _, cache = vla.run_with_cache(batch, names=site_of(sae), tokens=sae.tokens_)
            codes = sae.encode(cache[site_of(sae)].values).flatten(0, -2).cpu()
            fired += (codes > 0).float().sum(0)
            count += len(codes)
    return fired / count


def random_units(count: int, width: int, seed: int) -> Float[Tensor, "count width"]:
    """Isotropic random directions of length 1."""
    vectors = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (vectors / vectors.norm(dim=1, keepdim=True)).float()


def _shifting(sae: SparseAutoencoder, feature: int, unit: Float[Tensor, " width"]) -> Callable[[Tensor, Site], Tensor]:
    """A hook that takes the feature's code, as a length, out along another direction."""

    def shift(x: Tensor, site: Site) -> Tensor:
        code = sae.encode(x)[..., feature, None]
        return (x.float() - code * unit.to(x.device)).to(x)

    return shift


def _facts(sae: SparseAutoencoder, inputs: PolicyInputs) -> dict[str, Any]:
    return {**sae.source_, "site": str(site_of(sae)), "tokens": sae.tokens_, "queries": inputs.batch_size}
