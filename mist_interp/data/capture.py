"""How do the activations of a query become the rows of a store?

At every query the wanted sites are captured during the one forward pass that also gives the action; the selected
tokens are pooled into one vector per site.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import SiteKey
from mist_interp.data.manifest import TokenGroup
from mist_interp.data.records import Array, Decision
from mist_interp.data.rollout import Act, Observation

POOLS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda tokens: tokens.mean(dim=1),
    "first": lambda tokens: tokens[:, 0],
    "last": lambda tokens: tokens[:, -1],
    "flat": lambda tokens: tokens.flatten(1),
}


def pool_tokens(values: Float[Tensor, "batch tokens width"], pool: str) -> Float[Tensor, "batch row"]:
    """One row per sample: `mean`, `first` or `last` token, or all of them side by side (`flat`).

    Raises:
        UnknownName: no such pooling.
        ValueError: no token is selected.
    """
    if pool not in POOLS:
        raise UnknownName("pooling", pool, POOLS)
    if values.shape[1] == 0:
        raise ValueError("no token is selected, so there is nothing to pool")
    return POOLS[pool](values)


def pooled(cache: Any, site: SiteKey, tokens: str, pool: str) -> Float[Tensor, "batch row"]:
    """One row per sample of a captured site; samples may have different numbers of tokens, unless they stay (`flat`).

    Raises:
        ValueError: `flat`, and the samples have different numbers of tokens.
    """
    if not cache[site].axis.select(tokens).ragged:
        return pool_tokens(cache[site].at(tokens), pool)
    if pool == "flat":
        raise ValueError(f"the samples have different numbers of {tokens!r} tokens, so flat rows differ in width")
    return torch.cat([pool_tokens(cache[sample][site].at(tokens), pool) for sample in range(cache.batch_size)])


def change_texts(vla: Any, sample: int = 0) -> tuple[str, ...]:
    """What the live edits did to one sample in the last forward, one JSON text each."""
    return tuple(json.dumps(change.to_dict(sample)) for change in vla.changes())


def token_groups(
    vla: Any,
    sites: SiteKey | Sequence[SiteKey],
    tokens: str | Sequence[str],
    pool: str,
    dtype: str = "float16",
) -> tuple[TokenGroup, ...]:
    """One group per token selector, each with all sites that the keys name in this policy.

    Raises:
        UnknownName: a site, a pooling or a type that there is not.
    """
    selectors = [tokens] if isinstance(tokens, str) else list(tokens)
    names = tuple(site.name for site in vla.sites(sites))
    if pool not in POOLS:
        raise UnknownName("pooling", pool, POOLS)
    return tuple(TokenGroup(selector, names, pool, dtype) for selector in selectors)


def caching_act(vla: Any, instruction: str, groups: Sequence[TokenGroup]) -> Act:
    """An `act` function for `rollout` that keeps, at every query, the activations of the token groups."""
    sites = sorted({site for group in groups for site in group.sites})
    # One selector can be cut out during the forward pass; several may overlap, and are cut out of all tokens.
    only = groups[0].tokens if len(groups) == 1 else None

    def act(observation: Observation, query: int) -> Decision:
        inputs = vla.prepare(observation, instruction)
        with torch.no_grad():
            chunk, cache = vla.run_with_cache(inputs, names=sites, tokens=only)
        activations: dict[str, Array] = {}
        for group in groups:
            for site in group.sites:
                row = pooled(cache, site, group.tokens, group.pool)[0]
                activations[group.key(site)] = row.float().cpu().numpy()
        return Decision(
            actions=chunk.to_env()[0].double().cpu().numpy(),
            chunk=chunk.values[0].double().cpu().numpy(),
            activations=activations,
            edits=change_texts(vla),
        )

    return act
