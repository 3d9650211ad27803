"""What does each neuron of the language model write, and when?

A neuron n of the MLP of block l adds activation * w_n to the residual stream; w_n, its value vector, is column n of
`down_proj`. Where it points can be read without running anything:

    on the action   slope(n, a) = <w_n, direction_a>, with the action head linearised at real inputs
    on words        lm_head(g * w_n), the view of a language model (g: weight of the final norm)

and what it stands for is then guessed from the frames at which it is most active. In OpenVLA-OFT no column of a matrix
belongs to an action number, so the slope replaces the action bins of the original method; a neuron is concept-like if
it moves few numbers, and is active in frames that have something in common.

Where it misleads. Only the direct path from the neuron to the head is seen; in early blocks later ones change it.
The slope is local and the mean over inputs. Top frames show a neuron at its extremes, and people see patterns in nine
pictures of anything: push the neuron and compare the action with the prediction and with random neurons
(`push_neurons`). Words need an unembedding that was trained: in a policy with a regression head it was not trained
with the rest, and in `mini` it never was.

Source: Häon, Stocking, Chuang and Tomlin 2025, "Mechanistic interpretability for steering vision-language-action
models"; value vectors after Geva et al. 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.analysis.attention.mass import Layers, averages
from mist_interp.analysis.head import action_unit, source_of
from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.weights.action import action_directions
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.selectors import Selector
from mist_interp.tracing.hooked import HookedVLA

Neuron = tuple[int, int]  # layer, number


def value_vectors(vla: HookedVLA, layer: int) -> Float[Tensor, "neuron d_model"]:
    """What each neuron of a block adds to the residual stream at activation 1, float32.

    Raises:
        UnknownName: no such layer.
    """
    if not -vla.cfg.n_layers <= layer < vla.cfg.n_layers:
        raise UnknownName("layer", layer, map(str, range(vla.cfg.n_layers)))
    return vla.policy.language_model.model.layers[layer].mlp.down_proj.weight.detach().float().T


def neuron_spread(
    vla: HookedVLA, inputs: PolicyInputs, layers: Layers = None, tokens: Selector = "action_read", batch: int = 16
) -> Result:
    """Standard deviation of every neuron over samples, of its mean over some tokens; axes (layer, neuron).

    Raises:
        ValueError: fewer than two samples.
    """
    if inputs.batch_size < 2:
        raise ValueError("one sample has no spread; give at least two")
    wanted = list(range(vla.cfg.n_layers)) if layers is None else list(layers)
    rows = []
    for start in range(0, inputs.batch_size, batch):
        some = inputs[start : start + batch]
        _, cache = vla.run_with_cache(some, names=("mlp.post", wanted))
        mean = averages(vla.layout(some), [tokens], torch.zeros(()))[:, 0]
        rows.append(torch.einsum("bt,lbtn->bln", mean, cache.stack("mlp.post").float().cpu()))
    spread = torch.cat(rows).std(0)
    what = f"Standard deviation over samples of a neuron's mean activation at {tokens!r}."
    axes = {"layer": wanted, "neuron": range(vla.cfg.d_mlp)}
    return Result(labelled(spread, **axes), "activation", what, source_of(vla, samples=inputs.batch_size))


def neuron_effects(
    vla: HookedVLA,
    inputs: PolicyInputs,
    layers: Layers = None,
    per_deviation: bool = True,
    directions: Float[Tensor, "sample dim d_model"] | None = None,
) -> Result:
    """How far each neuron's value vector moves each action number, by the direct path, the head linearised.

    Args:
        vla: a policy without a diffusion head.
        inputs: real queries: they set where the head is linearised, and how much each neuron varies.
        layers: of the language model; default: all.
        per_deviation: for a rise by one standard deviation over samples, so that neurons that hardly ever move do not
            lead the table; otherwise for a rise by 1. Either way at all read tokens of a chunk step.
        directions: if `action_directions` was computed already.

    Returns:
        Axes (layer, neuron, dim). `.top(k)` are the neurons that move any number most.

    Raises:
        ValueError: a diffusion head; fewer than two samples.
    """
    wanted = list(range(vla.cfg.n_layers)) if layers is None else list(layers)
    mean = (action_directions(vla, inputs) if directions is None else directions).mean(0)
    slopes = torch.stack([value_vectors(vla, layer).cpu() @ mean.T for layer in wanted])
    unit = f"{action_unit(vla)} per unit of activation"
    if per_deviation:
        spread = neuron_spread(vla, inputs, wanted).values.values
        slopes = slopes * torch.from_numpy(spread).float()[..., None]
        unit = f"{action_unit(vla)} per standard deviation of the neuron"
    axes = {"layer": wanted, "neuron": range(vla.cfg.d_mlp), "dim": list(vla.cfg.action_names)}
    what = "Change of an action number when a neuron rises at all read tokens of a step (direct path, linearised)."
    return Result(labelled(slopes, **axes), unit, what, source_of(vla, samples=inputs.batch_size))


def neuron_table(effects: Result, k: int = 5, relative_to: Sequence[float] | None = None) -> pd.DataFrame:
    """The k neurons that move each action number most.

    Args:
        effects: from `neuron_effects`.
        k: neurons per action dimension.
        relative_to: per dimension a scale, for example the standard deviation of the action over scenes, so that
            dimensions can be compared; it also decides how exclusive a neuron is.

    Returns:
        Columns dim, rank, layer, neuron, effect (in units of `relative_to`), exclusive: the share of the neuron's
        squared effects that this dimension has, 1/dims if it moves all alike.
    """
    values = effects.values.transpose("layer", "neuron", "dim")
    scale = torch.ones(values.sizes["dim"]) if relative_to is None else torch.as_tensor(relative_to)
    scaled = values / scale.double().numpy()
    exclusive = scaled**2 / (scaled**2).sum("dim")
    rows = []
    for dim in effects.axes["dim"]:
        flat = scaled.sel(dim=dim).stack(which=("layer", "neuron"))
        order = abs(flat).argsort(kind="stable").values[::-1][:k]
        for rank, place in enumerate(order):
            layer, neuron = flat["which"].values[place]
            share = float(exclusive.sel(dim=dim, layer=layer, neuron=neuron))
            facts = {"dim": dim, "rank": rank + 1, "layer": int(layer), "neuron": int(neuron)}
            rows.append({**facts, "effect": float(flat[place]), "exclusive": share})
    return pd.DataFrame(rows)


def neuron_activations(
    vla: HookedVLA,
    inputs: PolicyInputs,
    neurons: Iterable[Neuron],
    tokens: Selector = "action_read",
    batch: int = 16,
) -> Result:
    """Mean activation of some neurons over some tokens, per sample: which frames do they respond to?

    Returns:
        Axes (sample, neuron), labels "L3N17", each neuron once.

    Raises:
        UnknownName: no such neuron, layer or token.
    """
    pairs = list(dict.fromkeys(_checked(vla, neurons)))
    layers = sorted({layer for layer, _ in pairs})
    rows = []
    for start in range(0, inputs.batch_size, batch):
        some = inputs[start : start + batch]
        _, cache = vla.run_with_cache(some, names=("mlp.post", layers))
        mean = averages(vla.layout(some), [tokens], torch.zeros(()))[:, 0]
        picked = [cache["mlp.post", layer].values[..., number].float().cpu() for layer, number in pairs]
        rows.append(torch.stack([(mean * values).sum(1) for values in picked], dim=1))
    labels = [f"L{layer}N{number}" for layer, number in pairs]
    what = f"Mean activation of a neuron at {tokens!r}."
    return Result(
        labelled(torch.cat(rows), sample=range(inputs.batch_size), neuron=labels), "activation", what, source_of(vla)
    )


def top_frames(activations: Result, k: int = 5, lowest: bool = False) -> pd.DataFrame:
    """The k samples with the largest (or smallest) activation of each neuron.

    Args:
        activations: from `neuron_activations`.
        k: samples per neuron.
        lowest: the other end.

    Returns:
        Columns neuron, rank, sample, activation.
    """
    rows = []
    for neuron in activations.axes["neuron"]:
        values = activations.values.sel(neuron=neuron).values
        order = (values if lowest else -values).argsort(kind="stable")[:k]
        for rank, sample in enumerate(order):
            facts = {"neuron": neuron, "rank": rank + 1, "sample": activations.axes["sample"][sample]}
            rows.append({**facts, "activation": float(values[sample])})
    return pd.DataFrame(rows)


def push_neurons(
    vla: HookedVLA,
    inputs: PolicyInputs,
    neurons: Iterable[Neuron],
    amounts: Iterable[float],
    tokens: Selector = "action_read",
) -> Result:
    """What really happens to the action when neurons are raised.

    Args:
        vla: a policy.
        inputs: queries, in one batch.
        neurons: pairs (layer, number), all raised at once.
        amounts: how much is added to each, in units of activation.
        tokens: where.

    Returns:
        Change of the action in the unit of the demonstrations, axes (sample, step, dim).

    Raises:
        UnknownName: no such neuron, layer or token.
        ValueError: not one amount per neuron.
    """
    pairs, added = _checked(vla, neurons), list(amounts)
    if len(pairs) != len(added):
        raise ValueError(f"{len(pairs)} neurons and {len(added)} amounts: give one amount per neuron")
    hooks = []
    for layer in sorted({layer for layer, _ in pairs}):
        push = torch.zeros(vla.cfg.d_mlp)
        for (where, number), amount in zip(pairs, added, strict=True):
            push[number] += amount if where == layer else 0.0
        hooks.append((("mlp.post", layer), lambda values, site, push=push: values + push.to(values), tokens))
    with torch.no_grad():
        before = vla(inputs)
        with vla.hooks(*hooks):
            after = vla(inputs)
    axes = {"sample": range(len(before)), "step": [f"t{step}" for step in range(vla.cfg.chunk)], "dim": before.names}
    what = "Change of the action when some neurons are raised."
    facts = source_of(vla, neurons=[list(pair) for pair in pairs], amounts=added)
    return Result(labelled(after.values - before.values, **axes), "action (unit of the demonstrations)", what, facts)


def neuron_words(vla: HookedVLA, neurons: Iterable[Neuron], k: int = 8, lowest: bool = False) -> pd.DataFrame:
    """The vocabulary that value vectors point at, action bins decoded.

    In a policy with a regression head nothing trained this read-out together with the rest: the words are those of the
    language model that the policy was made from, or mean nothing where there was none.

    Args:
        vla: a policy; without a tokenizer, words are "id 17".
        neurons: pairs (layer, number).
        k: words per neuron.
        lowest: the words that it points away from.

    Returns:
        Columns neuron, rank, word, logit (per unit of activation, the final norm's weight included, its scale not).
        A token of an action bin reads "action -0.42", its normalised action.

    Raises:
        UnknownName: no such neuron or layer.
    """
    from mist_interp.models import bins

    config, rows = vla.policy.config, []
    scale = vla.policy.language_model.model.norm.weight.detach().float()
    unembed = vla.policy.language_model.lm_head.weight.detach().float()
    tokenizer = None if vla.policy.processor is None else vla.policy.processor.tokenizer
    first_bin = config.bin_vocab_size - config.n_action_bins
    for layer, number in dict.fromkeys(_checked(vla, neurons)):
        logits = (unembed @ (scale * value_vectors(vla, layer)[number]))[: config.bin_vocab_size]
        values, ids = logits.topk(k, largest=not lowest)
        for rank, (value, token) in enumerate(zip(values.tolist(), ids.tolist(), strict=True)):
            word = f"id {token}" if tokenizer is None else str(tokenizer.convert_ids_to_tokens(token))
            if token >= first_bin:
                action = bins.decode(torch.tensor([token]), config.bin_vocab_size, config.n_action_bins)
                word = f"action {float(action):.2f}"
            rows.append({"neuron": f"L{layer}N{number}", "rank": rank + 1, "word": word, "logit": value})
    return pd.DataFrame(rows)


def _checked(vla: HookedVLA, neurons: Iterable[Neuron]) -> list[Neuron]:
    cfg, pairs = vla.cfg, [(int(layer), int(number)) for layer, number in neurons]
    for layer, number in pairs:
        if not 0 <= layer < cfg.n_layers:
            raise UnknownName("layer", layer, map(str, range(cfg.n_layers)))
        if not 0 <= number < cfg.d_mlp:
            raise UnknownName("neuron", number, [f"0..{cfg.d_mlp - 1}"])
    if not pairs:
        raise ValueError("no neuron was named")
    return pairs
