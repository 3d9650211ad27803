"""Which tokens get attention that nothing seems to need, and what is left without them?

A head that has nothing to read still has to spend its attention, and networks learn to park it on a few tokens: the
first one in language models, single patches without content in vision transformers. A map whose largest entry is a
sink says little about the rest; without the sinks, rows are renormalised and show what the remaining attention prefers.

Where it misleads. Sinks are found by how much they get, and a token that everything truly needs gets much as well
(knock it out to tell them apart, `mist_interp.analysis.attention.knockout`). After renormalising, a query that had left
0.1 % beside its sinks weighs as much as one that had left all: look at `SinkView.share` first.

Source: Xiao et al. 2024, "Efficient streaming language models with attention sinks"; Darcet et al. 2024, "Vision
transformers need registers".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mist_interp.analysis.attention.mass import (
    REST,
    Layers,
    averages,
    column_masks,
    layer_numbers,
    parts,
    result,
    shared_columns,
    summarise,
    with_rest,
    without,
)
from mist_interp.analysis.head import source_of
from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.several import Several
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.layout import TokenLayout
from mist_interp.core.selectors import Selector
from mist_interp.tracing.hooked import HookedVLA


@dataclass(frozen=True, eq=False)
class SinkView(Several):
    """Attention with its sinks taken out.

    Attributes:
        mass: as `segment_mass`, of the keys that are left; rows sum to 1.
        share: what the sinks had, axes (sample, layer, head, from). Where it is near 1 the rows of `mass` are made of
            what little is left, and should not be read.
    """

    main = "mass"

    mass: Result
    share: Result


def sink_view(
    vla: HookedVLA,
    inputs: PolicyInputs,
    sinks: Selector = "bos",
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    layers: Layers = None,
    batch: int = 8,
) -> SinkView:
    """Attention from segment to segment after some keys were taken out and every query's row was renormalised.

    Args:
        vla: a policy with eager attention.
        inputs: queries.
        sinks: the keys to take out, for example what `find_sinks` names.
        queries: as in `segment_mass`.
        keys: as in `segment_mass`; a segment keeps its column even if all its tokens are sinks.
        layers: of the language model; default: all.
        batch: samples per forward.

    Raises:
        ValueError: attention is not eager, or `keys` overlap.
        UnknownName: no such token.
    """
    layout = vla.layout(inputs[0])
    rows = list(queries or (*parts(layout), "action_read"))
    columns, covered = shared_columns(list(keys or parts(layout)), vla.layout(inputs))

    def summary(pattern: Tensor, layout: TokenLayout) -> Tensor:
        mean = averages(layout, rows, pattern)[:, None]
        left, share = without(pattern, layout, sinks)
        mass = with_rest(mean @ left @ column_masks(layout, columns, pattern)[:, None], covered)
        return torch.cat([mass, mean @ share[..., None]], dim=-1)

    values = summarise(vla, inputs, summary, layers, batch)
    to = [str(column) for column in columns] + ([] if covered else [REST])
    what = f"Share of a segment's attention that goes to another one, of what is left without {sinks!r}."
    mass = result(vla, values[..., :-1], what, layers, rows, to=to)
    share = result(vla, values[..., -1], f"Share of a segment's attention that {sinks!r} has.", layers, rows)
    return SinkView(mass, share)


def received(vla: HookedVLA, inputs: PolicyInputs, layers: Layers = None, batch: int = 8) -> Result:
    """How much attention each token gets from all queries, in multiples of the even share 1/length.

    Prompt tokens are one row, "text" (their mean), because prompts differ in length. A token that everything truly
    needs, and a sink that nothing needs, look alike here: knock it out to tell them apart.

    Returns:
        Axes (layer, head, token), the mean over samples.

    Raises:
        ValueError: attention is not eager.
    """
    labels = _token_names(vla.layout(inputs[0]))

    def summary(pattern: Tensor, layout: TokenLayout) -> Tensor:
        lengths = torch.tensor(layout.lengths).to(pattern)
        share = averages(layout, ["all"], pattern)[:, None] @ pattern  # (batch, head, 1, key)
        single = [take for take in labels if take != "text"]
        places = torch.cat([layout.select(take).index for take in single], dim=1).to(pattern.device)
        alone = share[:, :, 0].gather(-1, places[:, None].expand(-1, share.shape[1], -1))
        text = share[:, :, 0] @ averages(layout, ["text"], pattern)[:, 0, :, None]
        at = labels.index("text")
        return torch.cat([alone[..., :at], text, alone[..., at:]], dim=-1) * lengths[:, None, None]

    values = summarise(vla, inputs, summary, layers, batch).mean(0)
    what = "Attention that a token gets from all queries, as a multiple of the even share; mean over samples."
    axes = {"layer": layer_numbers(vla, layers), "head": range(vla.cfg.n_heads), "token": labels}
    return Result(labelled(values, **axes), "times the even share", what, source_of(vla, samples=inputs.batch_size))


def find_sinks(attention: Result, factor: float = 10.0) -> tuple[str, ...]:
    """Tokens that get more than `factor` times the even share, on the mean over the heads of some layer.

    Args:
        attention: what `received` gives.
        factor: how many times the even share makes a sink.

    Returns:
        Selectors, most attended first; empty where nothing is a sink.
    """
    most = attention.values.mean("head").max("layer")
    names = [str(name) for name in most["token"].values[np.argsort(-most.values, kind="stable")]]
    return tuple(name for name in names if float(most.sel(token=name)) > factor and name != "text")


def _token_names(layout: TokenLayout) -> list[str]:
    """Selectors of all single tokens, the prompt as one."""
    names: list[str] = []
    for segment in parts(layout):
        if segment in layout.cameras:
            names += [f"{segment}[{row}, {col}]" for row in range(layout.grid[0]) for col in range(layout.grid[1])]
        elif segment == "action_slot":
            slots = [f"t{step}.{name}" for step in range(layout.chunk) for name in layout.action_names]
            names += [f"action_slot.{slot}" for slot in slots]
        else:
            names.append(segment)
    # The order of the sequence.
    first = {name: int(layout.select(name).index[0, 0]) for name in names}
    return sorted(names, key=lambda name: first[name])
