"""In which direction do two kinds of activations differ, whatever task they come from?

Source of the contrast of means: Rimsky et al. 2024 (contrastive activation addition), Marks and Tegmark 2024
(difference in means).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mist_interp.data.activation_set import ActivationSet
from mist_interp.data.records import Array


def check_comparable(pos: ActivationSet, neg: ActivationSet) -> None:
    """Raise unless the two sets hold the same activation.

    Raises:
        ValueError: site, tokens or pooling differ, rows are not single tokens, or a set is empty.
    """
    for name in ("site", "tokens", "pool"):
        if getattr(pos, name) != getattr(neg, name):
            raise ValueError(f"the sets differ in {name}: {getattr(pos, name)!s} and {getattr(neg, name)!s}")
    if pos.pool == "flat":
        raise ValueError("rows pooled by 'flat' are several tokens side by side; a direction is added at single tokens")
    if not len(pos) or not len(neg):
        raise ValueError(f"nothing to compare: {len(pos)} positive and {len(neg)} negative rows")


def mean_difference(
    pos: Float[Array, "p width"], neg: Float[Array, "n width"], pos_strata: np.ndarray, neg_strata: np.ndarray
) -> Float[Array, " width"]:
    """Mean of `pos` minus mean of `neg` within each stratum, averaged with the weights n+ n- / (n+ + n-).

    These are the weights of least variance for equal spreads; strata with one kind only have weight 0.

    Raises:
        ValueError: no stratum has both kinds.
    """
    total, weights = np.zeros(pos.shape[1]), 0.0
    for stratum in sorted(set(pos_strata.tolist()) & set(neg_strata.tolist())):
        a, b = pos[pos_strata == stratum], neg[neg_strata == stratum]
        weight = len(a) * len(b) / (len(a) + len(b))
        total += weight * (a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64))
        weights += weight
    if weights == 0:
        raise ValueError("no task has rows of both kinds, so nothing can be compared within a task")
    return total / weights
