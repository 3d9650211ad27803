"""Does one component act through another, or past it?

Path patching: exchange what a sender (an attention head, an MLP, the embedding) writes, but only as one receiver reads
it, everything between the two held at the values of the run that is patched:

    input of the receiver = its residual stream + sum over senders (written in the source run - written in this run)

A receiver is the action head, or the queries, keys or values of attention heads of a later layer. Behind the receiver
everything runs freely, so for a receiving head the effect on the action goes through that head alone.

What senders write adds up to the residual stream exactly. So all senders together (`together=True`) make the receiver
read what it reads in the source run: for the action head the effect is the whole difference of the two runs, and for a
head's queries, keys and values that of patching the head itself (the site "z"). Both are tests here.

Source: Wang et al. 2022 (interpretability in the wild); Goldowsky-Dill et al. 2023 (path patching).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mist_interp.analysis.metrics import Metric, action_delta, checked
from mist_interp.analysis.patching.forward import prompts_of
from mist_interp.analysis.patching.grid import PatchGrid
from mist_interp.analysis.patching.runs import Run
from mist_interp.analysis.patching.sweep import Direction, sides
from mist_interp.analysis.result import labelled
from mist_interp.core.actions import ActionChunk
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site, SiteKey
from mist_interp.tracing.cache import ActivationCache
from mist_interp.tracing.hooked import HookedVLA
from mist_interp.tracing.rest import RestOfForward

INPUTS = ("q", "k", "v")


@dataclass(frozen=True, order=True)
class Component:
    """Something that writes into the residual stream: `head(3, 2)`, `mlp(3)` or `EMBED`.

    Attributes:
        layer: block, -1 for the embedding.
        kind: "embed", "head" or "mlp", in the order in which a block writes.
        head: number of the head, else -1.
    """

    layer: int
    kind: str
    head: int = -1

    def __str__(self) -> str:
        names = {"embed": "embed", "head": f"L{self.layer}H{self.head}", "mlp": f"L{self.layer}.mlp"}
        return names.get(self.kind, f"L{self.layer}.{self.kind}")


EMBED = Component(-1, "embed")


def head(layer: int, number: int) -> Component:
    """One attention head, as a sender or a receiver."""
    return Component(layer, "head", number)


def mlp(layer: int) -> Component:
    """One MLP, as a sender."""
    return Component(layer, "mlp")


def components(vla: HookedVLA, before: int | None = None) -> tuple[Component, ...]:
    """Everything that writes into the residual stream before a block (default: at all), in the order of the network."""
    cfg = vla.cfg
    found = [EMBED]
    for layer in range(cfg.n_layers if before is None else before):
        found += [*(head(layer, number) for number in range(cfg.n_heads)), mlp(layer)]
    return tuple(found)


def path_patch(
    vla: HookedVLA,
    clean: PolicyInputs | Run,
    corrupt: PolicyInputs | Run,
    senders: Sequence[Component] | None = None,
    receivers: Sequence[Component] | None = None,
    through: str | Sequence[str] = INPUTS,
    metric: Metric | None = None,
    *,
    direction: Direction = "denoise",
    together: bool = False,
    batch_size: int = 8,
) -> PatchGrid:
    """Effect of every sender on the action along its direct paths into every receiver.

    Where it misleads: a path from sender to receiver that goes through a third component is not counted, however
    strong; the receiver reads a stream that no input gives; and effects of senders do not add up, because the receiver
    (a norm and a softmax, or the action head) is not linear.

    Args:
        vla: the policy; an "l1" or "discrete" variant.
        clean: one query per pair.
        corrupt: as many queries; both prompts of a pair are equally long.
        senders: default: every attention head.
        receivers: heads; default: the action head itself, and the grid then has no axis "receiver".
        through: which inputs of the receiving heads the change reaches: "q", "k", "v" or several of them.
        metric: default: every dimension, mean over the chunk.
        direction: "denoise" patches the corrupt run, "noise" the clean one.
        together: all senders at once instead of one by one; the grid then has no axis "sender".
        batch_size: paths per forward.

    Returns:
        Effects (pair if several, receiver, sender, axes of the metric); NaN for a sender that does not come before the
        receiver.

    Raises:
        UnknownName: a component or an input that does not exist.
        TypeError: a metric that is no `Metric`.
        ValueError: prompts of different lengths in a pair, a variant or live edits that this cannot follow.
    """
    metric = action_delta() if metric is None else checked(metric)
    inputs = (through,) if isinstance(through, str) else tuple(through)
    for name in inputs:
        if name not in INPUTS:
            raise UnknownName("input of a head", name, INPUTS)
    base, source = sides(clean, corrupt, direction)
    assert isinstance(source, Run)
    senders = _senders(vla) if senders is None else _known(vla, senders)
    targets = None if receivers is None else _known(vla, receivers)
    if targets is not None and any(target.kind != "head" for target in targets):
        raise ValueError("receivers are attention heads, or the action head (receivers=None)")
    runs = _Paths(vla, base, source, inputs)
    groups = [tuple(senders)] if together else [(sender,) for sender in senders]
    with torch.no_grad():
        before, after = metric(runs.unpatched), metric(runs.other)
        effects = _effects(runs, groups, targets, metric, batch_size) - before
    labels = metric.labels(runs.unpatched)
    axes: dict[str, list[Any]] = {
        "receiver": ["action head"] if targets is None else [str(target) for target in targets],
        "sender": ["together"] if together else [str(sender) for sender in senders],
        "pair": list(range(len(base.inputs))),
    }
    values = labelled(effects, **axes, **labels).transpose("pair", "receiver", "sender", *labels)
    full = labelled(after - before, pair=axes["pair"], **labels)
    if targets is None:
        values = values.isel(receiver=0, drop=True)
    if together:
        values = values.isel(sender=0, drop=True)
    if len(base.inputs) == 1:
        values, full = values.isel(pair=0, drop=True), full.isel(pair=0, drop=True)
    facts: dict[str, Any] = {"policy": vla.cfg.model_id, "patched": base.digest(), "values from": source.digest()}
    facts |= {"direction": direction, "through": list(inputs) if targets else ["action head"]}
    facts |= {"senders": [str(sender) for sender in senders], "metric": f"{metric.name} in {metric.unit}"}
    what = f"change of the action ({metric.name}) when only the receiver reads what the sender writes in the other run"
    return PatchGrid(values, metric.unit, what, facts, full, metric.floor)


class _Paths:
    """Both runs of all pairs, and the forwards that start from a changed stream."""

    def __init__(self, vla: HookedVLA, base: Run, source: Run, through: tuple[str, ...]):
        if vla.edits():
            raise ValueError(
                f"path patching holds values fixed, but {len(vla.edits())} edits are live: leave their scope"
            )
        lengths = vla.layout(base.inputs).lengths, vla.layout(source.inputs).lengths
        wrong = [pair for pair, (here, there) in enumerate(zip(*lengths, strict=True)) if here != there]
        if wrong:
            here, there = (found[wrong[0]] for found in lengths)
            raise ValueError(
                f"pair {wrong[0]} has {here} tokens in the run that is patched and {there} in the other; paths need "
                "prompts of one length in each pair"
            )
        self._width = max(lengths[0])  # a batch may be padded further than its own queries need
        self.vla, self.base, self.through = vla, base, through
        names: list[SiteKey] = ["hook_embed", "z", "mlp_out", "resid_pre", ("resid_post", -1)]
        with torch.no_grad():
            with vla.hooks(*base.hooks):
                self.unpatched, self._here = vla.run_with_cache(base.inputs, names=names)
            with vla.hooks(*source.hooks):
                self.other, self._there = vla.run_with_cache(source.inputs, names=names)
        self._rest: dict[Site, RestOfForward] = {}

    def written(self, sender: Component) -> torch.Tensor:
        """Change of what one sender writes into the stream: (pair, token, d_model)."""
        if sender.kind == "head":
            key = ("z", sender.layer)
            change = (
                self._values(self._there, key)[:, :, sender.head] - self._values(self._here, key)[:, :, sender.head]
            )
            project = self.vla.policy.language_model.model.layers[sender.layer].self_attn.o_proj.weight
            width = change.shape[-1]
            return change @ project[:, sender.head * width : (sender.head + 1) * width].T
        site: Any = "hook_embed" if sender.kind == "embed" else ("mlp_out", sender.layer)
        return self._values(self._there, site) - self._values(self._here, site)

    def into_action_head(self, change: torch.Tensor, pairs: list[int]) -> ActionChunk:
        """The answer when the final norm reads a changed stream; row k is a copy of pair `pairs[k]`."""
        site = self.vla.site(("resid_post", -1))
        return self._after(site)(self._values(self._here, site)[pairs] + change, prompts_of(self.base.inputs, pairs))

    def into_heads(
        self, change: torch.Tensor, layer: int, heads: Sequence[int], pairs: list[int]
    ) -> Iterator[ActionChunk]:
        """Per head of one block the answer when it alone computes its inputs from a changed stream."""
        stream = self.vla.site(("resid_pre", layer))
        states, inputs = self._values(self._here, stream)[pairs], prompts_of(self.base.inputs, pairs)
        places = [(name, layer) for name in self.through]
        read: dict[Site, torch.Tensor] = {}

        def keep(values: torch.Tensor, site: Site) -> None:
            read[site] = values.clone()

        self._after(stream)(states + change, inputs, [(place, keep) for place in places])
        for number in heads:

            def write(values: torch.Tensor, site: Site, number: int = number) -> torch.Tensor:
                # Several heads may share their keys and values.
                place = number * values.shape[2] // self.vla.cfg.n_heads
                new = values.clone()
                new[:, :, place] = read[site][:, :, place]
                return new

            yield self._after(stream)(states, inputs, [(place, write) for place in places])

    def _values(self, run: ActivationCache, key: Any) -> torch.Tensor:
        return run[key].values[:, : self._width]

    def _after(self, site: Site) -> RestOfForward:
        if site not in self._rest:
            self._rest[site] = RestOfForward(self.vla, site)
        return self._rest[site]


def _effects(
    runs: _Paths,
    groups: Sequence[Sequence[Component]],
    receivers: Sequence[Component] | None,
    metric: Metric,
    batch_size: int,
) -> torch.Tensor:
    """The metric, (receiver, sender, pair, ...), with the change of all senders of a group read by the receiver."""
    template = metric(runs.unpatched)
    count = len(template)
    layers: dict[int | None, list[int]] = {}  # block of the receiver -> places of its heads in the list
    for place, receiver in enumerate([None] if receivers is None else receivers):
        layers.setdefault(None if receiver is None else receiver.layer, []).append(place)
    shape = (sum(map(len, layers.values())), len(groups) * count, *template.shape[1:])
    found = template.new_full(shape, float("nan"))
    for layer, places in layers.items():
        changes = {}
        for k, group in enumerate(groups):
            early = [sender for sender in group if layer is None or sender.layer < layer]
            if early:
                changes[k] = torch.stack([runs.written(sender) for sender in early]).sum(0)
        rows = [(k, pair) for k in changes for pair in range(count)]
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            change, pairs = torch.stack([changes[k][pair] for k, pair in batch]), [pair for _, pair in batch]
            index = [k * count + pair for k, pair in batch]
            if receivers is None or layer is None:
                found[0, index] = metric(runs.into_action_head(change, pairs))
                continue
            heads = [receivers[place].head for place in places]
            for place, chunk in zip(places, runs.into_heads(change, layer, heads, pairs), strict=True):
                found[place, index] = metric(chunk)
    return found.unflatten(1, (len(groups), count))


def _senders(vla: HookedVLA) -> tuple[Component, ...]:
    return tuple(found for found in components(vla) if found.kind == "head")


def _known(vla: HookedVLA, given: Sequence[Component]) -> tuple[Component, ...]:
    possible = components(vla)
    for component in given:
        if component not in possible:
            raise UnknownName("component", str(component), map(str, possible))
    if not given:
        raise ValueError("an empty list of components has no paths")
    return tuple(given)
