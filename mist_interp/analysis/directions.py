"""Are two directions the same?

The cosine of two independent isotropic random directions in width w has the mean 0 and the standard deviation
1 / sqrt(w); its square is Beta(1/2, (w - 1) / 2). That is the reference beside every table: in width 192, 95 % of
random pairs lie within 0.14, so a cosine of 0.1 says nothing.

Where it misleads: activations are not isotropic. Two directions that were both made of the same rows share the few
coordinates in which these rows vary most, and are closer than random ones without meaning the same. Compare with
directions made from shuffled labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import beta

from mist_interp.analysis.result import Result, labelled
from mist_interp.steering.direction import SteeringDirection


def random_cosine(width: int, share: float = 0.95) -> float:
    """The magnitude that the cosine of two random directions stays below with the probability `share`.

    Raises:
        ValueError: a width below 2, or a share that is not between 0 and 1.
    """
    if width < 2 or not 0 < share < 1:
        raise ValueError(f"width={width}, share={share}: needed are a width of at least 2 and a share between 0 and 1")
    return float(np.sqrt(beta.ppf(share, 0.5, (width - 1) / 2)))


def cosine_table(directions: Mapping[str, SteeringDirection]) -> Result:
    """Cosine of every pair of directions of one site and token group.

    Args:
        directions: by name, at least one.

    Returns:
        Axes (direction, other); `what` and `source` say how large the cosines of random directions are.

    Raises:
        ValueError: none, or directions of different places.
    """
    if not directions:
        raise ValueError("no direction to compare")
    found = list(directions.values())
    values = np.array([[a.cosine(b) for b in found] for a in found])
    first, width = found[0], len(found[0].vector)
    within = random_cosine(width)
    what = (
        f"Cosine of directions at {first.site}, {first.tokens}; 95 % of random pairs of width {width} lie within "
        f"+-{within:.2f}"
    )
    source = {
        "site": first.site.name,
        "tokens": first.tokens,
        "width": width,
        "random": {"sd": float(width**-0.5), "within_95": within},
        "directions": {name: dict(one.source) for name, one in directions.items()},
    }
    return Result(labelled(values, direction=list(directions), other=list(directions)), "cosine", what, source)
