"""Do two layers, token groups or policies hold the same thing?

Two answers for activations X (rows, p) and Y (rows, q) of the same rows, columns centred:

    linear CKA      |X^T Y|^2 / (|X^T X| |Y^T Y|), Frobenius norms; unchanged by rotation and scale, p and q may differ
    predictivity    held-out R^2 of a ridge regression from X to Y; asks only whether the content is there, in any form

CKA compares where the variance is: two layers that share their three largest directions are "the same", whatever the
rest does. Predictivity has a direction: everything can be predicted from a layer that nothing was lost in.

Where it misleads. With fewer rows than columns plain CKA is near 1 for unrelated noise; the debiased estimator is near
0 there, and may be negative. Rows of one episode, scene or task resemble each other: without groups, held-out R^2
measures how well those are recognised. A few neurons of huge size, or one sink token, decide CKA. A similarity of two
policies on the same scenes may be the scenes' alone: a random network is the control. And one number above another is
no "representation of X": neither measure knows what the activations are used for.

Source: Kornblith et al. 2019 (linear CKA); the debiased estimator uses the unbiased HSIC of Song et al. 2012, as in
Nguyen et al. 2021; Murphy et al. 2024 show the bias for wide layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from mist_interp.analysis.attention.mass import averages
from mist_interp.analysis.result import Result, labelled
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import SiteKey
from mist_interp.core.selectors import Selector
from mist_interp.tracing.hooked import HookedVLA

Rows = Float[np.ndarray, "rows width"]
Measure = Literal["cka", "debiased cka", "predictivity"]
MEASURES = ("cka", "debiased cka", "predictivity")
PENALTIES = tuple(10.0**power for power in range(-4, 5))


def cka(x: Rows, y: Rows, debiased: bool = True) -> float:
    """Linear CKA of the same rows in two spaces.

    Args:
        x: (rows, p).
        y: (rows, q).
        debiased: the estimator whose expectation is 0 for unrelated x and y; it may be a little below 0 or above 1.

    Returns:
        1 for equal up to rotation, scale and offset; NaN where one of them does not vary.

    Raises:
        ValueError: different numbers of rows, or too few (four for the debiased estimator, two otherwise).
    """
    x, y = _rows(x, y, at_least=4 if debiased else 2)
    if debiased:
        k, l = x @ x.T, y @ y.T  # noqa: E741  # the letters of the paper
        both, one, other = _unbiased_hsic(k, l), _unbiased_hsic(k, k), _unbiased_hsic(l, l)
    else:
        both, one, other = _squared(x, y), _squared(x, x), _squared(y, y)
    return float(both / np.sqrt(one * other)) if one > 0 and other > 0 else float("nan")


def _squared(x: Rows, y: Rows) -> float:
    """|X^T Y|^2, by whichever product is smaller."""
    if x.shape[1] * y.shape[1] <= len(x) ** 2:
        return float(((x.T @ y) ** 2).sum())
    return float(((x @ x.T) * (y @ y.T)).sum())


def _unbiased_hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741  # the letters of the paper
    """Equation 5 of Song et al. 2012: a U-statistic, which never pairs a row with itself."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    ends = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ l.sum(1))
    return float(((k * l).sum() + ends) / (n * (n - 3)))


def predictivity(
    x: Rows,
    y: Rows,
    groups: Sequence[Any],
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> float:
    """Held-out R^2 of a ridge regression from x to y.

    Whole groups are held out. The penalty, relative to the mean variance of x, is chosen inside the training part, by
    held-out groups again. The R^2 is 1 - squared error / squared deviation from the training mean, both summed over
    held-out rows and all columns of y: columns count by their variance.

    Args:
        x: (rows, p), what is predicted from.
        y: (rows, q), what is predicted.
        groups: per row; rows of one group (task, scene, episode) are never on both sides.
        folds: parts that the groups are dealt into; fewer groups mean fewer folds.
        penalties: to choose from.
        seed: deals the groups.

    Returns:
        1 for fully predictable, 0 for no better than the mean, below 0 for worse.

    Raises:
        ValueError: other numbers of rows, or fewer than three groups.
    """
    x, y = _rows(x, y, at_least=3, centre=False)
    if len(groups) != len(x):
        raise ValueError(f"{len(groups)} groups for {len(x)} rows")
    part = deal(groups, folds, seed)
    if len(np.unique(part)) < 3:
        raise ValueError("at least three groups are needed: one to judge on, and two to choose the penalty with")
    error = total = 0.0
    for held in np.unique(part):
        test = part == held
        inner = [_errors(x[~test], y[~test], part[~test] == other, penalties) for other in np.unique(part[~test])]
        best = int(np.sum([e for e, _ in inner], axis=0).argmin())
        found, scale = _errors(x, y, test, [penalties[best]])
        error, total = error + float(found[0]), total + scale
    return 1 - error / total if total > 0 else float("nan")


def deal(groups: Sequence[Any], folds: int, seed: int = 0) -> np.ndarray:
    """Number of the fold of each row, groups dealt out evenly in a random order.

    Raises:
        ValueError: fewer than two folds.
    """
    if folds < 2:
        raise ValueError(f"{folds} folds leave nothing to judge on; take at least two")
    names, index = np.unique(np.array([str(group) for group in groups]), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return (np.arange(len(names)) % folds)[np.argsort(order)][index]


def _errors(x: Rows, y: Rows, test: np.ndarray, penalties: Sequence[float]) -> tuple[np.ndarray, float]:
    """Squared error of every penalty on the test rows, and their squared deviation from the training mean."""
    mean_x, mean_y = x[~test].mean(0), y[~test].mean(0)
    u, s, vh = np.linalg.svd(x[~test] - mean_x, full_matrices=False)
    scores, along = (x[test] - mean_x) @ vh.T, u.T @ (y[~test] - mean_y)
    size = (s**2).mean() or 1.0  # so that a penalty means the same in every layer
    wanted = y[test] - mean_y
    errors = [((wanted - (scores * (s / (s**2 + p * size))) @ along) ** 2).sum() for p in penalties]
    return np.array(errors), float((wanted**2).sum())


def _rows(x: Rows, y: Rows, at_least: int, centre: bool = True) -> tuple[Rows, Rows]:
    x, y = (np.asarray(values, dtype=np.float64) for values in (x, y))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"two tables with the same rows are needed; given shapes {x.shape} and {y.shape}")
    if len(x) < at_least:
        raise ValueError(f"{len(x)} rows are too few; at least {at_least} are needed")
    return (x - x.mean(0), y - y.mean(0)) if centre else (x, y)


# -- between layers, token groups and policies ------------------------------------------------------------------------


def similarity(
    rows: Mapping[str, Rows],
    columns: Mapping[str, Rows] | None = None,
    measure: Measure = "debiased cka",
    groups: Sequence[Any] | None = None,
    **options: Any,
) -> Result:
    """Every table against every other: layers of one policy, or of two.

    Args:
        rows: name -> (row, width); the widths may differ, the rows must be the same moments.
        columns: of another policy, or of other tokens; default: the same tables again.
        measure: "cka", "debiased cka" or "predictivity" (from the table of the row to the table of the column).
        groups: per row of the tables, for "predictivity".
        **options: of `predictivity`: folds, penalties, seed.

    Returns:
        Axes (from, to).

    Raises:
        UnknownName: another measure.
        ValueError: predictivity without groups; tables of different rows.
    """
    measures: dict[str, Callable[[Rows, Rows], float]] = {
        "cka": lambda x, y: cka(x, y, debiased=False),
        "debiased cka": cka,
        "predictivity": lambda x, y: predictivity(x, y, groups or (), **options),
    }
    if measure not in measures:
        raise UnknownName("measure of similarity", measure, MEASURES)
    if measure == "predictivity" and groups is None:
        raise ValueError("predictivity needs groups: without them, rows of one scene are on both sides")
    others = rows if columns is None else columns
    values = np.array([[measures[measure](x, y) for y in others.values()] for x in rows.values()])
    unit = "held-out R²" if measure == "predictivity" else "CKA"
    what = {
        "cka": "Linear CKA (biased upwards where there are few rows for the width).",
        "debiased cka": "Linear CKA, debiased.",
        "predictivity": "Share of the variance of `to` that a ridge predicts from `from`, whole groups held out.",
    }[measure]
    facts: dict[str, Any] = {"rows": len(next(iter(rows.values())))}
    if groups is not None:
        facts["groups"] = len({str(group) for group in groups})
    return Result(labelled(values, **{"from": list(rows), "to": list(others)}), unit, what, facts)


def pooled(
    vla: HookedVLA,
    inputs: PolicyInputs,
    names: SiteKey | Sequence[SiteKey] = "resid_post",
    tokens: Sequence[Selector] = ("action_read",),
    batch: int = 16,
) -> dict[str, Rows]:
    """One table per site and token group: the mean over the group's tokens, one row per sample.

    The mean over tokens keeps what they share; to compare token by token, give single tokens.

    Args:
        vla: a policy.
        inputs: queries.
        names: sites whose token axis is the sequence.
        tokens: token groups.
        batch: samples per forward.

    Returns:
        Name -> (sample, width), float64, sites in the order of the network; names such as "resid_post 3" or, with
        several token groups, "resid_post 3 wrist".

    Raises:
        UnknownName: no such site or token.
        ValueError: a site whose token axis is not the sequence.
    """
    sites = vla.sites(names)
    wrong = [str(site) for site in sites if site.hook.axis != "sequence"]
    if wrong:
        raise ValueError(f"{wrong[0]} has no sequence of tokens to pool over; name sites such as 'resid_post'")
    found: dict[str, list[torch.Tensor]] = {}
    for start in range(0, inputs.batch_size, batch):
        some = inputs[start : start + batch]
        _, cache = vla.run_with_cache(some, names=sites)
        weights = averages(vla.layout(some), tokens, torch.zeros((), dtype=torch.float64))
        for site in sites:
            values = weights @ cache[site].values.flatten(2).cpu().double()
            label = site.hook.short if site.layer is None else f"{site.hook.short} {site.layer}"
            for k, selector in enumerate(tokens):
                name = label if len(tokens) == 1 else f"{label} {selector if isinstance(selector, str) else k}"
                found.setdefault(name, []).append(values[:, k])
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}
