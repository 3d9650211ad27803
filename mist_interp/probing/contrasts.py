"""Which queries are of one kind and which of the other, so that their difference may become a direction?

    pos, neg = contrast_sets(store, site, target="failure")             failed against successful episodes
    pos, neg = contrast_sets(store, site, target="risk", output="dz")   dz is about to cause a collision, or no event
    SteeringDirection.from_contrast(pos, neg)                           from 0 towards 1, so towards harm

Masked queries are in neither set. For what is special to a dimension, and not to a collision of any kind, take
`target=Risk(contrast="attribution")`: its 0 are collisions that other dimensions are to blame for.
"""

from __future__ import annotations

import numpy as np

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import SiteKey
from mist_interp.data.activation_set import ActivationSet
from mist_interp.data.store import RolloutStore
from mist_interp.probing.targets import Target
from mist_interp.probing.targets import target as named_target


def contrast_sets(
    store: RolloutStore,
    site: SiteKey,
    tokens: str = "action_read",
    pool: str = "mean",
    *,
    target: str | Target,
    output: str | None = None,
) -> tuple[ActivationSet, ActivationSet]:
    """Rows of the queries that the target labels 1, and of those that it labels 0.

    Args:
        store: recorded episodes with activations.
        site: which activation.
        tokens: token selector under which it was stored.
        pool: how the tokens were pooled.
        target: a name (`failure`, `contact`, `risk`, ...) or a target object.
        output: which output of the target, such as "dz" of `risk`; may be left out when there is only one.

    Returns:
        pos, neg; their `source` says target, output, and how many queries are masked.

    Raises:
        UnknownName: the store has no such site, tokens or pooling, or there is no such target or output.
        ValueError: several outputs and none was named; no query of one of the kinds.
    """
    chosen = named_target(target)
    labels = chosen.labels(store)
    if output is None and len(labels.outputs) > 1:
        raise ValueError(f"name one of the outputs {', '.join(labels.outputs)}")
    name = labels.outputs[0] if output is None else output
    if name not in labels.outputs:
        raise UnknownName(f"output of the target {chosen.name!r}", name, labels.outputs)
    values = labels.values[:, labels.outputs.index(name)]
    read = ActivationSet.read(store, site, tokens, pool)
    if len(read) != len(values):
        raise ValueError(f"{len(read)} activation rows and {len(values)} labels: the store is damaged")
    facts = {**read.source, "target": chosen.name, "output": name, "masked": int(np.isnan(values).sum())}
    rows = ActivationSet(read.x, read.units, read.site, tokens, pool, facts)
    pos, neg = rows.where(values == 1), rows.where(values == 0)
    if not len(pos) or not len(neg):
        raise ValueError(
            f"{name}: {len(pos)} queries are labelled 1 and {len(neg)} 0, {facts['masked']} are masked; both kinds are "
            "needed"
        )
    return pos, neg
