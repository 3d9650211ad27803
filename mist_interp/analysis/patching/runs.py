"""Between which two runs is one patching?

A patching grid compares two runs of the policy: a clean one and a corrupt one that differs in something. Inputs alone
are a run. The something can be

    another scene, instruction, robot state    `swapped(clean, other, "vision")`, or simply other inputs
    noise                                      `noised(clean, tokens="vision", std=3)`
    the average                                `averaged(vla, clean, over=many, tokens="proprio")`

all of which are runs of the whole network and have an action of their own. `mean_of(many)` is not a run: it gives every
place its mean activation over many inputs, so patching it in is mean ablation, place by place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site
from mist_interp.core.selectors import Selector
from mist_interp.tracing.hooked import HookedVLA

PARTS = {"vision": ("pixel_values",), "text": ("input_ids", "attention_mask"), "proprio": ("proprio",)}


@dataclass(frozen=True, eq=False)
class Run:
    """Inputs, and what is changed on the way.

    Attributes:
        inputs: one query per pair.
        change: a hook at `hook_embed`, as `HookedVLA.hooks` takes it, or None.
        what: the change in words.
    """

    inputs: PolicyInputs
    change: tuple[str, Callable[[torch.Tensor, Site], torch.Tensor], Selector] | None = None
    what: str = "inputs"

    @property
    def hooks(self) -> tuple[Any, ...]:
        """To be live during this run."""
        return () if self.change is None else (self.change,)

    def digest(self) -> str:
        """Hash of everything that this run depends on, the network apart."""
        return f"{self.what}, sha256 {_digest(self.inputs)}"


@dataclass(frozen=True, eq=False)
class MeanActivations:
    """The mean activation of every place over some inputs; see `mean_of`."""

    inputs: PolicyInputs

    def digest(self) -> str:
        """Hash of the inputs that are averaged."""
        return f"mean activations, sha256 {_digest(self.inputs)}"


def as_run(given: PolicyInputs | Run) -> Run:
    """Inputs alone are a run."""
    if isinstance(given, Run):
        return given
    if isinstance(given, PolicyInputs):
        return Run(given)
    raise TypeError(f"{type(given).__name__} is no run: give PolicyInputs, or what noised() or averaged() make of them")


def swapped(clean: PolicyInputs, other: PolicyInputs, parts: str | Sequence[str]) -> PolicyInputs:
    """`clean` with some parts of another query: "vision", "text" or "proprio".

    Raises:
        UnknownName: no such part.
        ValueError: the batches differ in size, or one of them lacks the part.
    """
    names = [parts] if isinstance(parts, str) else list(parts)
    if len(clean) != len(other):
        raise ValueError(f"a batch of {len(clean)} cannot take parts of a batch of {len(other)}")
    taken = {}
    for name in names:
        if name not in PARTS:
            raise UnknownName("part of a query", name, PARTS)
        for field in PARTS[name]:
            taken[field] = getattr(other, field)
            if taken[field] is None or getattr(clean, field) is None:
                raise ValueError(f"one of the two queries has no {field}")
    return replace(clean, **taken)


def noised(inputs: PolicyInputs | Run, tokens: Selector, std: float = 3.0, seed: int = 0) -> Run:
    """Gaussian noise on the embeddings of some tokens.

    Args:
        inputs: the clean queries.
        tokens: which of them are corrupted, for example "vision" or "text:bowl".
        std: of the noise, in standard deviations of each token's own embedding.
        seed: every query of the batch gets the same noise, every time.

    The network has never seen such embeddings: what it does with them may tell more about noise than about the scene.
    """
    if not std > 0:
        raise ValueError(f"noise of std {std} corrupts nothing")

    def add_noise(values: torch.Tensor, site: Site) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        # One draw for all queries, so that what a query gets does not depend on which others are in its batch.
        noise = torch.randn(values.shape[1:], generator=generator, dtype=torch.float32).to(values)
        return values + std * values.std(dim=-1, keepdim=True) * noise

    return Run(as_run(inputs).inputs, ("hook_embed", add_noise, tokens), f"noise of std {std} on {tokens}, seed {seed}")


def averaged(vla: HookedVLA, inputs: PolicyInputs, over: PolicyInputs, tokens: Selector) -> Run:
    """The embeddings of some tokens replaced by their mean over other queries, place by place.

    Raises:
        ValueError: the queries have different numbers of these tokens.
    """
    with torch.no_grad():
        _, cache = vla.run_with_cache(over, names="hook_embed", tokens=tokens, stop_at_layer=1)
    selection = cache.layout.select(tokens)
    if selection.ragged:
        raise ValueError(f"the queries to average over have {selection.valid.sum(1).tolist()} tokens of {tokens!r}")
    mean = cache["hook_embed"].values.mean(0)

    def put_mean(values: torch.Tensor, site: Site) -> torch.Tensor:
        if values.shape[1] != len(mean):
            raise ValueError(f"{values.shape[1]} tokens of {tokens!r} cannot get the mean of {len(mean)}")
        return mean.to(values).expand_as(values)

    return Run(inputs, ("hook_embed", put_mean, tokens), f"mean of {tokens} over sha256 {_digest(over)}")


def mean_of(inputs: PolicyInputs) -> MeanActivations:
    """A source of activations: every place gets its mean over these inputs, token by token.

    Patching it into a run is mean ablation. The mean of activations is no activation that any input gives, and a mean
    over scenes of one task still knows the task; take inputs in which that varies whose use is asked for.
    """
    if len(inputs) < 2:
        raise ValueError("a mean over one query is that query: give several")
    return MeanActivations(inputs)


def rows(inputs: PolicyInputs, index: Sequence[int]) -> PolicyInputs:
    """Some queries of a batch, in any order and as often as wanted."""
    named = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return replace(inputs, **{name: value[list(index)] for name, value in named.items() if value is not None})


def _digest(inputs: PolicyInputs) -> str:
    found = hashlib.sha256()
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        if value is not None:
            found.update(f"{field.name} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().double().numpy().tobytes())
    return found.hexdigest()[:16]
