"""How is a network fitted to labels that are rare, partly unknown, and the same for a whole episode?

    labels       NaN is not known and has no loss. Per output, both labels weigh the same in all (`balanced`), or each
                 query weighs the same.
    held out     a share of the *groups* (episodes, start states) is not fitted: the epoch with the smallest loss on it
                 is kept, and the log odds are calibrated on it. No group is ever on both sides.
    scale        rows are standardised with the mean and deviation of the rows that are fitted, and no others.
    calibration  p = sigmoid(a z + b) per output, a > 0 (Platt 1999), drawn towards a = 1 and towards the b that undoes
                 the weights, which is what is left where nothing could be held out.
    one label    an output that has one label only gets a constant, (positives + 1) / (labels + 2), and a flag.

Training is in single precision and deterministic for a seed on one machine; torch's global random state is left as it
was.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn

from mist_interp.data.records import Array
from mist_interp.probing.networks_fitted import BLOCK, FittedNetwork, Recipe, as_sequences, blocks
from mist_interp.probing.temporal import RunningSum

# With fewer groups nothing is held out: the part would say too little.
MIN_GROUPS = 10
# How far the calibration may go from its prior, in log a and in b.
_PRIOR = (2.0, 5.0)
_MAX_GRADIENT = 1.0


def fit_network(
    recipe: Recipe,
    x: Float[Array, "rows width"],
    y: Float[Array, "rows outputs"],
    *,
    episode: np.ndarray,
    group: np.ndarray,
    seed: int,
) -> tuple[FittedNetwork, Bool[np.ndarray, " rows"]]:
    """Fit a network.

    Args:
        recipe: what to fit.
        x: rows of whole episodes, in order within each.
        y: 0, 1 or NaN where not known.
        episode: per row which episode it is of.
        group: per row what must not be split between fitting and holding out, at least the episode.
        seed: of everything that is drawn.

    Returns:
        The network, and which rows were held out.

    Raises:
        ValueError: no rows or labels, rows that are not finite, or an episode in two groups.
    """
    if len(x) == 0 or np.isnan(y).all():
        raise ValueError("there is nothing to fit on: no rows, or no labels")
    if not np.isfinite(x).all():
        raise ValueError("some training rows are not finite")
    if len({*zip(episode.tolist(), group.tolist(), strict=True)}) > len(np.unique(episode)):
        raise ValueError("an episode is in two groups, so holding out a group would split it")
    rng = np.random.default_rng(seed)
    held = hold_out(group, y, recipe.training.held_out, rng)
    mean, scale = standardisation(x[~held])
    n1, n0 = (np.sum(y[~held] == label, axis=0) for label in (1, 0))
    usable = (n1 > 0) & (n0 > 0)
    weight1, weight0 = _label_weights(n1, n0, usable, recipe.training.balanced)
    weights = np.where(np.isnan(y), 0.0, np.where(y == 1, weight1, weight0))
    facts: dict[str, float] = {
        "fitted_groups": len(np.unique(group[~held])),
        "held_out_groups": len(np.unique(group[held])),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        module = recipe.network.module(x.shape[1], y.shape[1])
        rows = torch.from_numpy(((x - mean) / scale).astype(np.float32))
        if usable.any():
            facts |= _train(module, recipe, rows, y, weights, episode, held, rng)
    module = module.cpu().double().eval().requires_grad_(False)
    fitted = FittedNetwork(recipe, module, mean, scale, np.ones(len(n1)), np.zeros(len(n1)))
    slope, offset, flags = _calibration(fitted, x, y, episode, held, np.log(weight1 / weight0), usable)
    return FittedNetwork(recipe, module, mean, scale, slope, offset, flags, tuple(facts.items())), held


def standardisation(x: Float[Array, "rows width"]) -> tuple[Float[Array, " width"], Float[Array, " width"]]:
    """Mean and deviation of each column; 1 for one that varies by rounding only."""
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    scale[scale <= 1e-6 * np.maximum(1.0, np.abs(mean))] = 1.0
    return mean, scale


def hold_out(
    group: np.ndarray, y: Float[Array, "rows outputs"], share: float, rng: np.random.Generator
) -> Bool[np.ndarray, " rows"]:
    """Rows of a random share of the groups, drawn alike from groups with and without a positive label.

    A group without which the rest would lack a label of an output is left in the rest.
    """
    names, member = np.unique(group, return_inverse=True)
    if share == 0 or len(names) < MIN_GROUPS:
        return np.zeros(len(group), dtype=bool)
    has = np.stack([_any_per_group(y == label, member, len(names)) for label in (0, 1)])  # (2, groups, outputs)
    chosen = np.zeros(len(names), dtype=bool)
    for stratum in (has[1].any(1), ~has[1].any(1)):
        places = rng.permutation(np.flatnonzero(stratum))
        chosen[places[: round(share * len(places))]] = True
    lacking = has.any(1) & ~has[:, ~chosen].any(1)
    for label, output in zip(*np.nonzero(lacking), strict=True):
        chosen &= ~has[label, :, output]
    return chosen[member]


def _any_per_group(mask: Array, member: np.ndarray, groups: int) -> np.ndarray:
    found = np.zeros((groups, mask.shape[1]), dtype=bool)
    np.logical_or.at(found, member, mask)
    return found


def _label_weights(n1: Array, n0: Array, usable: np.ndarray, balanced: bool) -> tuple[Array, Array]:
    """Weight of a positive and of a negative label per output; all labels of an output weigh 1 on average."""
    total = np.maximum(n1 + n0, 1)
    one = np.where(usable, 1.0, 1e-300)  # an output of one label has no loss, and its log ratio is 0
    if not balanced:
        return one, one
    return np.where(usable, total / (2.0 * np.maximum(n1, 1)), one), np.where(
        usable, total / (2.0 * np.maximum(n0, 1)), one
    )


def _train(
    module: nn.Module,
    recipe: Recipe,
    x: Tensor,
    y: Array,
    weights: Array,
    episode: np.ndarray,
    held: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Train in place; the best epoch on the held-out rows is kept."""
    training = recipe.training
    module.to(training.device)
    labels = torch.from_numpy(np.nan_to_num(y).astype(np.float32))
    masses = torch.from_numpy(weights.astype(np.float32))
    optimizer = torch.optim.AdamW(module.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    units = episode if recipe.needs_episodes else np.arange(len(x))
    places = as_sequences(units)
    is_held = held[places[:, 0]]
    fitted, judged = places[~is_held], places[is_held]
    per_step = max(1, round(training.batch * len(fitted) / max(1, (fitted >= 0).sum())))

    def loss_of(block: np.ndarray) -> tuple[Tensor, float]:
        block = block[:, : int((block >= 0).sum(1).max())]
        index = torch.from_numpy(block.clip(0))
        mask = torch.from_numpy(block >= 0)[..., None]
        inputs, targets, mass = (part[index].to(training.device) for part in (x, labels, masses))
        mass = mass * mask.to(training.device)
        values, _ = module(inputs)
        if isinstance(recipe.over_time, RunningSum):
            each = recipe.over_time.loss(recipe.over_time(values)[0], targets)
        else:
            each = nn.functional.binary_cross_entropy_with_logits(values, targets, reduction="none")
        return (each * mass).sum() / values.shape[-1], float(mask.sum())

    best, kept, since, epoch = np.inf, copy.deepcopy(module.state_dict()), 0, 0
    for epoch in range(1, training.epochs + 1):  # noqa: B007 - told in the facts
        module.train()
        order = rng.permutation(len(fitted))
        for start in range(0, len(order), per_step):
            loss, rows = loss_of(fitted[order[start : start + per_step]])
            optimizer.zero_grad()
            (loss / rows).backward()
            nn.utils.clip_grad_norm_(module.parameters(), _MAX_GRADIENT)
            optimizer.step()
        if not len(judged):
            continue
        module.eval()
        with torch.no_grad():
            parts = [loss_of(block) for block in blocks(judged, BLOCK)]
        loss_now = sum(float(loss) for loss, _ in parts) / sum(rows for _, rows in parts)
        if loss_now < best - 1e-4 * abs(best if np.isfinite(best) else 0.0):
            best, kept, since = loss_now, copy.deepcopy(module.state_dict()), 0
        elif (since := since + 1) >= training.patience:
            break
    if len(judged):
        module.load_state_dict(kept)
    return {"epochs": epoch, "best_epoch": epoch - since, **({"held_out_loss": best} if len(judged) else {})}


def _calibration(
    fitted: FittedNetwork,
    x: Array,
    y: Array,
    episode: np.ndarray,
    held: np.ndarray,
    log_ratio: Array,
    usable: np.ndarray,
) -> tuple[Array, Array, tuple[tuple[int, str], ...]]:
    """Slope, offset and flags of every output."""
    slope, offset, flags = np.zeros(len(usable)), np.zeros(len(usable)), []
    rows = held if held.any() else np.ones(len(held), dtype=bool)
    values = fitted.uncalibrated(x[rows], episode[rows])
    for output, labels in enumerate(y.T):
        known = labels[~np.isnan(labels)]
        if not usable[output]:
            chance = (known.sum() + 1) / (len(known) + 2)
            offset[output] = np.log(chance / (1 - chance))
            kind = f"only the label {known[0]:.0f}" if len(known) else "no label"
            flags.append((output, f"{kind} in training, so it is a constant {chance:.3g}"))
            continue
        if np.ptp(values[:, output]) == 0:
            flags.append((output, "its unit is dead: the same value for every row"))
        judged = ~np.isnan(labels[rows])
        if not held.any() or not judged.any():
            slope[output], offset[output] = 1.0, -log_ratio[output]
            flags.append((output, "not calibrated: nothing was held out to do it on"))
            continue
        slope[output], offset[output] = platt(values[judged, output], labels[rows][judged], -log_ratio[output])
    return slope, offset, tuple(flags)


def platt(z: Float[Array, " rows"], y: Float[Array, " rows"], towards: float) -> tuple[float, float]:
    """A > 0 and b of sigmoid(a z + b) that fit the labels best, drawn towards a = 1 and b = `towards`."""

    def cost(free: Array) -> tuple[float, Array]:
        a = np.exp(free[0])
        value = a * z + free[1]
        error = expit(value) - y
        away = np.array([free[0], free[1] - towards]) / np.square(_PRIOR)
        total = np.sum(np.logaddexp(0, value) - y * value) + 0.5 * float(away @ [free[0], free[1] - towards])
        return float(total), np.array([a * float(error @ z), float(error.sum())]) + away

    found: Sequence[float] = minimize(cost, np.array([0.0, towards]), jac=True, method="L-BFGS-B").x
    return float(np.exp(found[0])), float(found[1])
