"""How does a number computed from the action depend on every activation on the way?

    gradient at a site = d metric / d values of the site, all other inputs of the network held fixed

The weights are frozen, so a forward builds no graph of its own. Here each captured tensor becomes part of one: where
nothing before it did, it starts to require a gradient, and the network goes on computing with that very tensor. What
the network never forms (head results, norm scales) is written back as its own copy. One backward pass then gives
the gradients at all sites, and leaves no trace in the policy.

The graph holds every intermediate result of the forward until the backward pass is over; with many layers and a long
sequence that is much more than the cache itself.

Where it misleads: a gradient is local. It says what an infinitely small change does, and a saturated softmax or an
inactive ReLU has none although removing the whole activation may change everything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from mist_interp.core.actions import ActionChunk
from mist_interp.core.names import Site
from mist_interp.tracing.cache import ActivationCache
from mist_interp.tracing.capture import Capture
from mist_interp.tracing.engine import Engine, Worker
from mist_interp.tracing.locations import locator
from mist_interp.tracing.plan import read_workers

Metric = Callable[[Any], torch.Tensor]


def differentiate(
    engine: Engine,
    inputs: Any,
    capture: Capture,
    edits: list[Worker],
    metric: Metric,
    of: Site | None,
) -> tuple[ActionChunk, ActivationCache, ActivationCache]:
    """Action, values and gradients of one forward; see `HookedVLA.run_with_gradients`."""
    policy, place = engine.module, locator(engine.module)
    batch = inputs.batch_size
    held: dict[Site, torch.Tensor] = {}

    def hold(site: Site, raw: torch.Tensor) -> torch.Tensor | None:
        derived = place(site).port.derived
        # The copy of a tensor that was computed here is what the network then goes on with.
        tensor = raw.clone() if derived else raw
        if not tensor.requires_grad:
            tensor.requires_grad_(True)
        held[site] = tensor
        return tensor if derived else None

    sites = capture.sites if of is None else tuple(sorted({*capture.sites, of}, key=lambda site: site.order))
    with torch.enable_grad():
        readers = read_workers(sites, policy, capture.run, hold, whole=True)
        out = engine.traced(partial(policy, inputs), [*edits, *readers], batch)
        value = metric(out if of is None else place(of).show(held[of], batch))
        total = _demand_metric(value, batch, of).sum()
        # One tensor may have two names (what leaves a block enters the next); it is asked for once.
        tensors = {id(held[site]): held[site] for site in capture.sites}
        found = dict(zip(tensors, torch.autograd.grad(total, list(tensors.values()), allow_unused=True), strict=True))
    values, gradients = {}, {}
    for site in capture.sites:
        tensor, show = held[site], place(site).show
        gradient = found[id(tensor)]
        # No path from here to the metric: the derivative is zero.
        gradient = torch.zeros_like(tensor) if gradient is None else gradient
        values[site] = capture.entry(site, show(tensor, batch))
        gradients[site] = capture.entry(site, show(gradient, batch))
    detached = ActionChunk(out.normalized.detach(), out.values.detach(), out.names, out.token_ids)
    return detached, capture.cache(values), capture.cache(gradients)


def _demand_metric(value: Any, batch: int, of: Site | None) -> torch.Tensor:
    """The metric's value, if a gradient of it exists."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"the metric must give a tensor, one number or one per query, not {type(value).__name__}")
    if value.numel() != 1 and value.shape != (batch,):
        raise ValueError(
            f"the metric gave shape {tuple(value.shape)}: it must be one number, or one per query ({batch},)"
        )
    if not value.requires_grad:
        source = "the action" if of is None else f"the values of {of}"
        hint = " Action tokens are chosen, not computed: take the logits, of='logits'." if of is None else ""
        raise ValueError(f"the metric does not depend on {source} in a way that has a gradient.{hint}")
    return value
