"""Which changes of a policy can be asked for by name, and written into a result file?

    add(site, vector, tokens, coef)                 push along a vector
    scale(site, factor, tokens)                     make stronger or weaker
    ablate(site, with_="zero" | "mean" | "resample")    remove what is said there
    replace(site, values or cache, tokens)          say something else
    patch_from(cache, site, tokens, from_tokens)    say what was said in another forward
    project_out(site, direction)                    remove one direction, or several
    clamp_projection(site, direction, low, high)    keep the projection on a direction within bounds
    skip(layers)                                    blocks that leave the residual stream alone
    knockout(queries, keys, layers, heads)          tokens that may not look at other tokens

Each gives an `Intervention`, a record that `vla.hooks(...)` takes beside functions, in any mixture; several at one site
apply in the order in which they are listed. All take `head=` (an int or a list) where a site has heads, `neuron=` on
MLP sites, `tokens=` with the grammar of `mist_interp.core.selectors` ("action_read.t3.dz" is one chunk step, "t3" one
inside the action head), and `step=` for one run of the language model within the query. What cannot be is refused when
the scope is entered, or, where only the values show it, at the first forward.

Tensors are detached and copied. To get gradients with respect to a vector, hook a function instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import Layers, SiteKey
from mist_interp.core.selectors import Selector, parts
from mist_interp.tracing.cache import ActivationCache
from mist_interp.tracing.interventions import Intervention, indices, plain_layers, site_keys
from mist_interp.tracing.sources import cached_values, step_of

Sites = SiteKey | Iterable[SiteKey]
Chosen = int | Sequence[int] | None
WITH = ("zero", "mean", "resample")


def add(
    site: Sites,
    vector: Any,
    tokens: Selector | None = None,
    coef: float = 1.0,
    *,
    head: Chosen = None,
    neuron: Chosen = None,
    step: int | str | None = None,
) -> Intervention:
    """Add `coef * vector` at every selected token.

    Args:
        site: one site or several (every one gets the same vector).
        vector: (width,), or any last axes of what is changed, (head, d_head) or (token, width), each of size 1 or full.
        tokens: which tokens; None for all.
        coef: how much of it, in units of the vector.
        head: heads of q, k, v, z, result, pattern.
        neuron: entries of the last axis of an MLP site; the vector then has one value for each of them.
        step: one run of the language model within the query, as in `run_with_cache`; None for every run.

    Raises:
        ValueError: a coefficient or a vector that is not finite.
    """
    _check_numbers("add", coef=coef)
    return _made("add", site, tokens, head, neuron, step, {"coef": float(coef)}, {"vector": _copied(vector)})


def scale(
    site: Sites,
    factor: float,
    tokens: Selector | None = None,
    *,
    head: Chosen = None,
    neuron: Chosen = None,
    step: int | str | None = None,
) -> Intervention:
    """Multiply every selected value by `factor`; 0 removes it, 1 changes nothing. Arguments as in `add`.

    Scaling attention weights (`pattern`) leaves rows that no longer sum to 1.
    """
    _check_numbers("scale", factor=factor)
    return _made("scale", site, tokens, head, neuron, step, {"factor": float(factor)}, {})


def ablate(
    site: Sites,
    with_: str = "zero",
    *,
    head: Chosen = None,
    neuron: Chosen = None,
    tokens: Selector | None = None,
    stats: Tensor | ActivationCache | None = None,
    source: Tensor | ActivationCache | None = None,
    seed: int = 0,
    step: int | str | None = None,
) -> Intervention:
    """Remove what a site says, and put there nothing, its mean, or what it says in another situation.

    Zero is far from anything that the network ever saw, so its effect mixes "the information is missing" with "the
    values are strange"; mean and resample keep the values plausible, and resample keeps their spread as well.

    Args:
        site: one site or several.
        with_: `zero`; `mean` of `stats`; `resample`: values of a random sample of `source`.
        head: see `add`.
        neuron: see `add`.
        tokens: see `add`.
        stats: for `mean`: a cache of many samples (averaged over them, token by token), or the mean itself, any last
            axes of what is changed, as in `add`.
        source: for `resample`: a cache of many samples, or their values (sample, token, ...) for what is changed.
        seed: of the draw, which is the same at every forward and every site.
        step: see `add`. With values from a cache of a policy that runs several times, the run that was captured.

    Raises:
        UnknownName: another word for `with_`.
        ValueError: `stats` or `source` is missing, or given where it is not used; a cache that lacks the site, the
            tokens, or whose samples have different numbers of them (for `mean`).
    """
    if with_ not in WITH:
        raise UnknownName("way to ablate (with_)", with_, WITH)
    needed = {"zero": None, "mean": "stats", "resample": "source"}[with_]
    for name, value in (("stats", stats), ("source", source)):
        if (value is not None) != (name == needed):
            raise ValueError(f"ablate with_={with_!r} {f'needs {needed}=' if name == needed else f'takes no {name}='}")
    if needed is None:
        return _made("zero", site, tokens, head, neuron, step, {"as": "ablate"}, {})
    values: Any = stats if with_ == "mean" else source
    heads, neurons = indices("head", head), indices("neuron", neuron)
    if isinstance(values, ActivationCache):
        tensors, step = cached_values(values, site, tokens, heads, neurons), step_of(values, step)
        if with_ == "mean":
            if any(name.startswith("counts") for name in tensors):
                raise ValueError(
                    f"the samples of stats= have different numbers of {tokens!r} tokens: no token-wise mean"
                )
            tensors = {name: mean.double().mean(0, keepdim=True).to(mean) for name, mean in tensors.items()}
    else:
        tensors = {"values": _copied(values)}
    if with_ == "mean":
        return _made("replace", site, tokens, head, neuron, step, {"as": "ablate", "with": "mean"}, tensors)
    return _made(
        "resample", site, tokens, head, neuron, step, {"as": "ablate", "with": "resample", "seed": int(seed)}, tensors
    )


def replace(
    site: Sites,
    values: Any,
    tokens: Selector | None = None,
    *,
    head: Chosen = None,
    neuron: Chosen = None,
    step: int | str | None = None,
) -> Intervention:
    """Put given values in the place of what the network computes there.

    Args:
        site: one site or several.
        values: a cache with as many samples as the query, or one; or a tensor, any last axes of what is changed, as in
            `add`: (width,) for every token, (token, width), (batch, token, width).
        tokens: see `add`.
        head: see `add`.
        neuron: see `add`.
        step: see `ablate`.

    Raises:
        ValueError: values that are not finite, or a cache that lacks the site or the tokens.
    """
    if isinstance(values, ActivationCache):
        return patch_from(values, site, tokens, head=head, neuron=neuron, step=step)
    return _made("replace", site, tokens, head, neuron, step, {}, {"values": _copied(values)})


def patch_from(
    cache: ActivationCache,
    site: Sites,
    tokens: Selector | None = None,
    *,
    head: Chosen = None,
    neuron: Chosen = None,
    from_tokens: Selector | None = None,
    step: int | str | None = None,
) -> Intervention:
    """Put what another forward computed at the same site in the place of what this one computes.

    Sample b gets the values of sample b of the cache, or of its only sample. Patching says that what differs at a site
    *can* carry the difference in the answer, not that nothing else carries it.

    Args:
        cache: the other forward, with the site and the tokens captured.
        site: one site or several.
        tokens: which tokens are replaced; None for all.
        head: see `add`.
        neuron: see `add`.
        from_tokens: the tokens of the cache whose values are taken, as many as `tokens`; None for the same.
        step: see `ablate`.

    Raises:
        UnknownName: the cache has no such site or token.
        ValueError: its tokens were not captured.
    """
    heads, neurons = indices("head", head), indices("neuron", neuron)
    tensors = cached_values(cache, site, tokens if from_tokens is None else from_tokens, heads, neurons)
    given: dict[str, Any] = {"as": "patch_from", "from": cache.model_id}
    if from_tokens is not None:
        given["from_tokens"] = from_tokens if isinstance(from_tokens, str) else list(from_tokens)
    return _made("replace", site, tokens, head, neuron, step_of(cache, step), given, tensors)


def project_out(
    site: Sites,
    direction: Any,
    tokens: Selector | None = None,
    *,
    head: Chosen = None,
    step: int | str | None = None,
) -> Intervention:
    """Remove the part of every selected value that lies along `direction`, (width,) or several (k, width).

    The length of a direction has no meaning here. What the network writes along it later is not removed; list every
    layer for that.

    Raises:
        ValueError: a direction without length, or several that are not independent.
    """
    directions = _copied(direction)
    rows = directions.reshape(-1, directions.shape[-1]) if directions.ndim else directions.reshape(1, 1)
    if int(torch.linalg.matrix_rank(rows.double())) < len(rows):
        raise ValueError("project_out: a direction without length, or several that are not independent, span nothing")
    return _made("project_out", site, tokens, head, None, step, {}, {"direction": rows})


def clamp_projection(
    site: Sites,
    direction: Any,
    low: float | None = None,
    high: float | None = None,
    tokens: Selector | None = None,
    *,
    head: Chosen = None,
    step: int | str | None = None,
) -> Intervention:
    """Keep the projection of every selected value on `direction / |direction|` within [low, high].

    Args:
        site: one site or several.
        direction: (width,).
        low: in the units of the activation; None leaves that side open. `low=high` fixes the projection.
        high: as `low`.
        tokens: see `add`.
        head: see `add`.
        step: see `add`.

    Raises:
        ValueError: no bound, bounds in the wrong order, or a direction without length.
    """
    bounds = {name: float(bound) for name, bound in (("low", low), ("high", high)) if bound is not None}
    _check_numbers("clamp_projection", **bounds)
    if not bounds or bounds.get("low", -math.inf) > bounds.get("high", math.inf):
        raise ValueError(f"clamp_projection: low={low}, high={high}; give at least one, and low <= high")
    vector = _copied(direction)
    if vector.ndim != 1 or float(vector.double().norm()) == 0:
        raise ValueError(
            f"clamp_projection: needs one vector with a length, not a tensor of shape {tuple(vector.shape)}"
        )
    options = {"low": bounds.get("low"), "high": bounds.get("high")}
    return _made("clamp_projection", site, tokens, head, None, step, options, {"direction": vector})


def skip(layers: Layers, tokens: Selector | None = None, *, step: int | str | None = None) -> Intervention:
    """Blocks of the language model that leave the residual stream as it is, bit for bit: resid_post = resid_pre.

    A block adds `attn_out` and `mlp_out` to the stream; a skipped one adds zero. Its inside still runs, so that its
    activations can be read, and edits inside it still act.
    """
    plain = plain_layers(layers)
    if plain == ():
        raise ValueError(f"skip: layers={layers!r} names no layer")
    both = [("attn_out", plain), ("mlp_out", plain)]
    return _made("zero", both, tokens, None, None, step, {"as": "skip"}, {})


def knockout(
    queries: Selector,
    keys: Selector,
    layers: Layers | None = None,
    heads: Chosen = None,
    *,
    step: int | str | None = None,
) -> Intervention:
    """Tokens that may not look at other tokens: attention from `queries` to `keys` is exactly 0, the rest sums to 1.

    The scores are set to -infinity before the softmax, so the mass that went to the keys is shared out among the
    others in proportion. Information can still flow around: keys -> third tokens -> queries, and through other layers.

    Needs `attn_implementation="eager"`, because only there scores exist; under sdpa entering the scope is refused.

    Args:
        queries: the tokens that look, e.g. "action_read".
        keys: the tokens that are not seen, e.g. "text", "wrist", "agentview[3:6, 4]".
        layers: a layer, a list, a range or a slice; None for all.
        heads: a head or a list; None for all.
        step: see `add`.

    Raises:
        ValueError: at the first forward, if a query would be left without any key.
    """
    site = "attn_scores" if layers is None else ("attn_scores", plain_layers(layers))
    chosen = keys if isinstance(keys, str) else list(parts(keys))
    if not chosen:
        raise ValueError("knockout: keys=[] selects nothing")
    return _made("knockout", site, queries, heads, None, step, {"keys": chosen}, {})


# -- parts ---------------------------------------------------------------------------------------------------------


def _made(
    kind: str,
    site: Sites,
    tokens: Selector | None,
    head: Chosen,
    neuron: Chosen,
    step: int | str | None,
    options: dict[str, Any],
    tensors: dict[str, Tensor],
) -> Intervention:
    chosen = tokens if tokens is None or isinstance(tokens, str) else parts(tokens)
    heads, neurons = indices("head", head), indices("neuron", neuron)
    return Intervention(kind, site_keys(site), chosen, heads, neurons, step, options, tensors)


def _copied(values: Any) -> Tensor:
    tensor = torch.as_tensor(values).detach().as_subclass(Tensor)
    return (tensor if tensor.is_floating_point() else tensor.float()).clone()


def _check_numbers(verb: str, **numbers: float) -> None:
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"{verb}: {name}={number} is not a finite number")
