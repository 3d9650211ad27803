"""Along which direction do activations vary most, and along which do two kinds separate best for their spread?

    principal component    v maximises the mean of (x . v)^2, x centred rows, or differences of paired rows as they are
    linear discriminant    v = C^-1 (mean of one kind - mean of the other), C the covariance within the kinds

A principal component has no sign of its own. Here that of rows has its largest entry positive; that of differences
points to where the differences go on average.

Differences are not centred: what all pairs have in common is what is looked for, and centring would take it away.

Where it misleads: most of the variance of a residual stream is the task, the clock and a few huge coordinates, not the
concept. A discriminant is a filter: it also *avoids* what the kinds share, so that it reads better than a difference of
means and may write worse (Haufe et al. 2014). Of two components with almost the same variance neither is a direction;
`explained` in the source shows the next one's.

Source: Zou et al. 2023 (components of differences); Ledoit and Wolf 2004 (shrinkage), by scikit-learn.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh, solve
from sklearn.covariance import ledoit_wolf, shrunk_covariance

from mist_interp.data.activation_set import ActivationSet
from mist_interp.data.records import Array
from mist_interp.steering.contrast import check_comparable

AUTO = "auto"


def centred(x: Float[Array, "rows width"], strata: np.ndarray) -> Float[Array, "rows width"]:
    """Rows minus the mean of their stratum, in float64."""
    rows: Array = np.array(x, dtype=np.float64)
    for stratum in np.unique(strata):
        rows[strata == stratum] -= rows[strata == stratum].mean(0)
    return rows


def paired_differences(rows: ActivationSet, baseline: ActivationSet) -> Float[Array, "rows width"]:
    """Row i of one set minus row i of the other.

    Raises:
        ValueError: the rows are not pairs: other sites, numbers or start states.
    """
    check_comparable(rows, baseline)
    if len(rows) != len(baseline):
        raise ValueError(f"pairs are needed: the sets have {len(rows)} and {len(baseline)} rows")
    states = [[(u.suite, u.task, u.init_state) for u in one.units] for one in (rows, baseline)]
    wrong = [place for place, (a, b) in enumerate(zip(*states, strict=True)) if a != b]
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"{len(wrong)} rows are no pairs, e.g. row {first}: {states[0][first]} and {states[1][first]}; both sets "
            "must hold the same queries in the same order"
        )
    difference: Array = rows.x.astype(np.float64) - baseline.x
    return difference


def principal_component(
    x: Float[Array, "rows width"], component: int
) -> tuple[Float[Array, " width"], tuple[float, float]]:
    """Unit vector of the component-th largest second moment of rows, and its and the next one's share of the whole.

    Raises:
        ValueError: the rows do not span so many components.
    """
    rows = np.asarray(x, dtype=np.float64)
    n, width = rows.shape
    total = float((rows**2).sum())
    wide = n < width
    matrix = rows @ rows.T if wide else rows.T @ rows
    size = len(matrix)
    if not 0 <= component < size:
        raise ValueError(f"component {component}: {n} rows of width {width} have the components 0 to {size - 1}")
    last = size - 1 - component
    values, vectors = eigh(matrix, subset_by_index=[max(last - 1, 0), last])
    moments = values[::-1] / total if total > 0 else values[::-1]
    if total == 0 or moments[0] <= 1e-10:
        raise ValueError(f"component {component}: the rows do not vary along so many directions")
    vector = rows.T @ vectors[:, -1] if wide else vectors[:, -1]
    following = float(max(moments[1], 0.0)) if len(moments) > 1 else 0.0
    return vector / np.linalg.norm(vector), (float(moments[0]), following)


def signed(vector: Float[Array, " width"], towards: Float[Array, " width"] | None = None) -> Float[Array, " width"]:
    """The vector or its opposite: its product with `towards` is positive; without that, its largest entry is."""
    product = float(vector[np.abs(vector).argmax()] if towards is None else vector @ towards)
    return -vector if product < 0 else vector


def discriminant(
    within: Float[Array, "rows width"], difference: Float[Array, " width"], shrinkage: float | str
) -> tuple[Float[Array, " width"], float]:
    """C^-1 difference, and the shrinkage of C towards a multiple of the identity that was used.

    Args:
        within: rows minus the mean of their kind.
        difference: of the means of the kinds.
        shrinkage: from 0 (the covariance as it is) to 1 (the direction of the difference); `auto`: Ledoit and Wolf.

    Raises:
        ValueError: a shrinkage that is neither, or a covariance that has no inverse.
    """
    if shrinkage == AUTO:
        covariance, used = ledoit_wolf(within, assume_centered=True)
    elif isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage={shrinkage!r}: give 'auto' or a number from 0 to 1")
    else:
        used = float(shrinkage)
        covariance = shrunk_covariance(within.T @ within / len(within), used)
    if used == 0 and np.linalg.matrix_rank(covariance, hermitian=True) < len(covariance):
        raise ValueError(
            f"{len(within)} rows do not determine a covariance of width {len(covariance)}: shrinkage above 0 is needed"
        )
    vector: Array = solve(covariance, difference, assume_a="pos")
    return vector, float(used)
