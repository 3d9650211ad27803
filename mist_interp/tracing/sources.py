"""Where does an edit get its values from, when another forward supplies them?

From a cache: the captured values of each site, cut down to the tokens, heads and neurons that will be changed, so that
an edit holds no more than it needs, and can be written into a file.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mist_interp.core.names import Site, SiteKey
from mist_interp.core.selectors import Selector
from mist_interp.tracing.activation import locate, take, token_dim
from mist_interp.tracing.cache import ActivationCache
from mist_interp.tracing.interventions import site_keys
from mist_interp.tracing.operations import pieces


def step_of(cache: ActivationCache, step: int | str | None) -> int | str | None:
    """Where a query has several runs, values of one run belong to that run."""
    several = cache.layout.autoregressive or cache.layout.diffusion
    return cache.step if step is None and several else step


def cached_values(
    cache: ActivationCache,
    site: SiteKey | Iterable[SiteKey],
    tokens: Selector | None,
    heads: tuple[int, ...] | None,
    neurons: tuple[int, ...] | None,
) -> dict[str, Tensor]:
    """What was captured, cut down to what is changed.

    Per site `values@site`, and where samples have different numbers of tokens, `counts@site`.

    Raises:
        UnknownName: the cache has no such site or token.
        ValueError: its tokens were not captured.
    """
    tensors: dict[str, Tensor] = {}
    for found in cache.catalogue.expand(list(site_keys(site))):
        values, counts = _captured_at(cache, found, tokens)
        for axis, chosen in pieces(found, heads, neurons):
            values = values.index_select(axis, torch.tensor(chosen, device=values.device) % values.shape[axis])
        tensors[f"values@{found}"] = values
        if counts is not None:
            tensors[f"counts@{found}"] = counts
    return tensors


def _captured_at(cache: ActivationCache, site: Site, tokens: Selector | None) -> tuple[Tensor, Tensor | None]:
    named = cache[site]
    wanted = named.axis.select("all" if tokens is None else tokens)
    place = wanted if named.tokens is None else locate(wanted, named.axis.select(named.tokens), named.axis.length)
    if place is None:
        raise ValueError(f"{tokens or 'all'!r} was not captured at {site}: the cache holds only {named.tokens!r}")
    values = take(named.values, place, token_dim(site)).detach().clone()
    return values, wanted.valid.sum(1) if wanted.ragged else None
