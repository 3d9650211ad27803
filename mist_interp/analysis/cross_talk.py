"""If one action number is commanded through the network, what do all of them do, at which layer, and up to which size?

    cross talk      row d: realised change of every number, as a share of the change of d that was asked for
    dose            realised change of the commanded number against the change asked for

Each change is the smallest edit of the stream at the read positions that makes it to first order and holds the other
numbers (`mist_interp.steering.correction`), made and undone query by query; all numbers are means over the chunk, in
normalised units. With perfect control the cross talk is the identity and the dose the diagonal.

Where it misleads: a good matrix at the last layer says little, because there the edit is an offset of the action in
disguise. And control of the numbers is not control of the robot: the edit may be far from any state that occurs, which
`norm` (against the norm of the states themselves) gives a hint of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.analysis.head import source_of
from mist_interp.analysis.result import Result, labelled
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.steering.correction import chunk_steps, correctable
from mist_interp.tracing.hooked import HookedVLA
from mist_interp.tracing.rest import RestOfForward


@dataclass(frozen=True)
class Doses:
    """What edits of several sizes do at several layers.

    Attributes:
        change: realised mean change; axes (layer, size, dim).
        norm: length of the edit as a share of the length of the states that it changes; axes (layer, size).
    """

    change: Result
    norm: Result


def cross_talk_matrix(
    vla: HookedVLA,
    inputs: PolicyInputs,
    layers: Sequence[int] | None = None,
    size: float = 0.05,
    steps: Sequence[int] | None = None,
    hold: bool = True,
) -> Result:
    """Cross talk of edits of the stream behind blocks; axes (layer, commanded, realised), mean over the queries.

    Args:
        vla: a policy with a regression head.
        inputs: queries, without padding among them.
        layers: blocks behind which the stream is edited; default: all.
        size: change that is asked for, normalised.
        steps: chunk steps; default: all.
        hold: whether the edit holds the other numbers to first order.

    Raises:
        UnknownName: no such layer or step.
        ValueError: a size that is 0, or a policy without such derivatives.
    """
    names = vla.cfg.action_names
    found, _ = _effects(vla, inputs, layers, size * torch.eye(len(names), dtype=torch.float64), steps, hold)
    shares = {layer: change.mean(0) / size for layer, change in found.items()}
    values = labelled(torch.stack(list(shares.values())), layer=list(shares), commanded=names, realised=names)
    what = f"Realised change of every number when {size:g} of one is commanded, as a share of {size:g}."
    source = source_of(vla, samples=inputs.batch_size) | {"steps": list(chunk_steps(vla, steps)), "hold": hold}
    return Result(values, "share of the command", what, source)


def dose_response(
    vla: HookedVLA,
    inputs: PolicyInputs,
    dim: str,
    sizes: Sequence[float],
    layers: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Doses:
    """What commands of several sizes for one number do; mean over the queries. Arguments as in `cross_talk_matrix`.

    Raises:
        UnknownName: no such number, layer or step.
    """
    names = vla.cfg.action_names
    if dim not in names:
        raise UnknownName("action dimension", dim, names)
    unit = torch.eye(len(names), dtype=torch.float64)[names.index(dim)]
    found, norms = _effects(vla, inputs, layers, torch.stack([float(size) * unit for size in sizes]), steps, True)
    axes: dict[str, list[Any]] = {"layer": list(found), "size": [float(size) for size in sizes]}
    source = source_of(vla, samples=inputs.batch_size) | {"commanded": dim, "steps": list(chunk_steps(vla, steps))}
    change = labelled(torch.stack([change.mean(0) for change in found.values()]), **axes, dim=names)
    length = labelled(torch.stack([norm.mean(0) for norm in norms.values()]), **axes)
    return Doses(
        Result(change, "normalised action", f"Realised change when `size` of {dim} is commanded.", source),
        Result(length, "share", "Length of the edit over that of the states that it changes.", source),
    )


def _effects(
    vla: HookedVLA,
    inputs: PolicyInputs,
    layers: Sequence[int] | None,
    deltas: Float[Tensor, "command dim"],
    steps: Sequence[int] | None,
    hold: bool,
) -> tuple[dict[int, Float[Tensor, "query command dim"]], dict[int, Float[Tensor, "query command"]]]:
    """Realised changes and relative lengths of the edits, per layer."""
    if not bool((deltas != 0).any(1).all()):
        raise ValueError("a command of size 0 changes nothing")
    wanted = list(range(vla.cfg.n_layers)) if layers is None else [range(vla.cfg.n_layers)[layer] for layer in layers]
    rests = {layer: RestOfForward(vla, ("resid_post", layer)) for layer in wanted}
    changes: dict[int, list[Tensor]] = {layer: [] for layer in wanted}
    norms: dict[int, list[Tensor]] = {layer: [] for layer in wanted}
    chosen = list(chunk_steps(vla, steps))
    for number in range(inputs.batch_size):
        query = inputs[number : number + 1]
        with torch.no_grad():
            clean, cache = vla.run_with_cache(query, names=[rest.after for rest in rests.values()])
        copies = PolicyInputs.cat([query] * len(deltas))
        for layer, rest in rests.items():
            at = correctable(rest, query, cache[rest.after], chosen)
            edits = torch.stack([at.edit(delta, hold) for delta in deltas])
            states = at.states.expand(len(deltas), -1, -1).index_add(1, at.positions, edits.to(at.states))
            with torch.no_grad():
                moved = rest(states, copies).normalized - clean.normalized
            changes[layer].append(moved[:, chosen].double().mean(1).cpu())
            norms[layer].append(edits.flatten(1).norm(dim=1).cpu() / float(at.states[at.positions].norm()))
    return (
        {layer: torch.stack(rows) for layer, rows in changes.items()},
        {layer: torch.stack(rows) for layer, rows in norms.items()},
    )
