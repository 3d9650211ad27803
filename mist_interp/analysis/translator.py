"""How much of the final action can be read off an early layer at all, if one knows how to read it?

The lens reads an early layer with a head that was made for the last one. A `TunedTranslator` maps the states of layer L
to states of the last layer first, affinely and per layer, fitted on rollouts:

    last(slot)  ~  x(slot) + x(slot) A_L + b_L(slot)      minimise squared error + ridge * |A_L|^2

so that a very large ridge leaves the plain lens, shifted to the right mean. Episodes are split before fitting, and the
error that is shown is that of the episodes held out. `compare_lenses` puts the lens, the translated lens, a ridge probe
from the same states straight to the action, and controls side by side, on the held-out episodes.

Source: Belrose et al. 2023 (tuned lens); here with a closed-form fit to the last states instead of gradient descent on
the output distribution.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mist_interp.analysis.head import source_of
from mist_interp.analysis.lens import SITES, LayerResult, lens_of, lens_states
from mist_interp.analysis.result import Result, labelled
from mist_interp.core.errors import UnknownName
from mist_interp.core.files import write_atomic
from mist_interp.core.inputs import PolicyInputs
from mist_interp.tracing.cache import ActivationCache
from mist_interp.tracing.hooked import HookedVLA

READOUTS = ("lens", "translated", "probe", "shuffled tokens", "other query")
FORMAT = "mist_interp.TunedTranslator/1"


@dataclass(frozen=True, eq=False)
class TunedTranslator:
    """An affine map per layer, from its read states to those of the last layer; call it with states and a layer.

    Where it misleads: it is fitted, so what it reads off a layer may be what the data let one guess there (the task,
    the mean motion), and not what the network has computed or will use. It says what is *available* linearly. Its fit
    weighs directions by their variance, not by what the head makes of them. Only its held-out error counts.

    Attributes:
        weights: per layer (d_model, d_model), `A_L` above.
        biases: per layer (slot, d_model).
        ridge: penalty, relative to the mean variance of the layer's states times the rows.
        held_out: share of the variance of the last states, around their mean per slot, that is left on the episodes
            held out; axes (layer,). 1 is no better than the mean.
        source: of the fit.
    """

    weights: Mapping[str, Float[Tensor, "d_model d_model"]]
    biases: Mapping[str, Float[Tensor, "slot d_model"]]
    ridge: float
    held_out: LayerResult
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:
        """Labels of the layers that it translates; the last layer of the network needs no translation."""
        return tuple(self.weights)

    def __call__(self, states: Float[Tensor, "batch slot d_model"], layer: str) -> Float[Tensor, "batch slot d_model"]:
        """States that the last layer could have.

        Raises:
            UnknownName: a layer that was not fitted.
        """
        if layer not in self.weights:
            raise UnknownName("translated layer", layer, self.layers)
        weight, bias = self.weights[layer].to(states.device), self.biases[layer].to(states.device)
        x = states.to(weight)
        return (x + x @ weight + bias).to(states)

    @staticmethod
    def fit(
        vla: HookedVLA,
        caches: ActivationCache | Sequence[ActivationCache],
        groups: Sequence[Hashable],
        ridge: float = 1e-3,
        held_out: float = 0.25,
        seed: int = 0,
    ) -> TunedTranslator:
        """Fit one map per layer by ridge regression.

        Args:
            vla: the policy whose caches these are.
            caches: queries of rollouts, each cache with hook_embed and resid_post at `action_read` (`lens_caches`).
            groups: per query, in the order of the caches, the episode that it belongs to; episodes are never split.
            ridge: see the attribute.
            held_out: share of the episodes that is not fitted on.
            seed: of the choice of those.

        Raises:
            ValueError: groups and queries differ in number, or there are fewer than two episodes.
        """
        states = _joined(vla, caches)
        held = hold_out(groups, held_out, seed)
        *layers, last = states
        count = len(states[last])
        if len(groups) != count:
            raise ValueError(f"{len(groups)} groups for {count} queries: one episode per query")
        target = states[last].double()
        weights, biases, left = {}, {}, []
        for layer in layers:
            x = states[layer].double()
            weights[layer], biases[layer] = _fit(x[~held], (target - x)[~held], ridge)
            error = x[held] + x[held] @ weights[layer].double() + biases[layer].double() - target[held]
            spread = target[held] - target[~held].mean(0)
            left.append(float(error.pow(2).sum() / spread.pow(2).sum()))
        episodes = {"fitted": len(set(_kept(groups, ~held))), "held out": len(set(_kept(groups, held)))}
        source = source_of(vla, episodes=episodes, queries=count, ridge=ridge, seed=seed)
        what = "Variance of the last states that the translator leaves, on held-out episodes"
        return TunedTranslator(
            weights, biases, ridge, LayerResult(labelled(left, layer=layers), "share", what, source), source
        )

    def save(self, folder: str | Path) -> None:
        """Write `translator.safetensors` and `translator.json` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weight.{layer}": value.contiguous() for layer, value in self.weights.items()}
        tensors |= {f"bias.{layer}": value.contiguous() for layer, value in self.biases.items()}
        write_atomic(folder / "translator.safetensors", save_tensors(tensors))
        self.held_out.save(folder / "held_out.json")
        facts = {"format": FORMAT, "layers": self.layers, "ridge": self.ridge, "source": dict(self.source)}
        write_atomic(folder / "translator.json", json.dumps(facts, indent=2) + "\n")

    @staticmethod
    def load(folder: str | Path) -> TunedTranslator:
        """Read a folder written by `save`.

        Raises:
            FileNotFoundError, ValueError: there is no saved translator.
        """
        folder = Path(folder)
        facts = json.loads((folder / "translator.json").read_text())
        if facts.get("format") != FORMAT:
            raise ValueError(f"{folder} holds no saved translator (expected {FORMAT})")
        tensors = load_tensors((folder / "translator.safetensors").read_bytes())
        weights, biases = (
            {layer: tensors[f"{part}.{layer}"] for layer in facts["layers"]} for part in ("weight", "bias")
        )
        saved = Result.load(folder / "held_out.json")
        held_out = LayerResult(saved.values, saved.unit, saved.what, saved.source)
        return TunedTranslator(weights, biases, facts["ridge"], held_out, facts["source"])


def lens_caches(
    vla: HookedVLA, inputs: PolicyInputs, batch: int = 16, dtype: torch.dtype | None = None
) -> list[ActivationCache]:
    """What lens and translator need of many queries, in batches; (n_layers + 1) * slots * d_model numbers per query."""
    slices = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
    return [vla.run_with_cache(part, SITES, tokens="action_read", device="cpu", dtype=dtype)[1] for part in slices]


def hold_out(groups: Sequence[Hashable], share: float, seed: int = 0) -> Bool[Tensor, " query"]:
    """Which queries belong to the episodes held out: at least one, and not all.

    Raises:
        ValueError: fewer than two episodes.
    """
    episodes = list(dict.fromkeys(groups))
    if len(episodes) < 2:
        raise ValueError(f"holding out needs at least two episodes; there are {len(episodes)}")
    count = min(max(round(share * len(episodes)), 1), len(episodes) - 1)
    order = np.random.default_rng(seed).permutation(len(episodes))[:count]
    chosen = {episodes[k] for k in order}
    return torch.tensor([group in chosen for group in groups])


def compare_lenses(
    vla: HookedVLA,
    caches: ActivationCache | Sequence[ActivationCache],
    groups: Sequence[Hashable],
    ridge: float = 1e-3,
    held_out: float = 0.25,
    seed: int = 0,
) -> LayerResult:
    """The lens and its controls on the same held-out episodes.

    Read-outs: `lens`; `translated`, by a `TunedTranslator`; `probe`, a ridge regression from the seven states of a
    chunk step straight to its action, with a constant of its own per step; `shuffled tokens`, the lens on the layer's
    states dealt to the wrong read positions of the same query; `other query`, the lens of another held-out query, which
    is what no knowledge of this query costs. At the last layer `lens` and `translated` are the action itself.

    Where it misleads: numbers below 1 in early layers can come from the task being easy to tell and the motion being
    alike within it; compare `probe` across layers, not with 0. The probe's penalty is chosen within the fitted
    episodes' queries, so it is slightly too trusting there; the error shown is held out.

    Returns:
        Mean absolute error to the final action, divided by that of always answering the mean action of the fitted
        episodes at that chunk step; axes (readout, layer, dim).

    Raises:
        ValueError: as `TunedTranslator.fit`; a policy that speaks in tokens, which has `logit_lens`.
    """
    if vla.cfg.variant != "l1":
        raise ValueError(f"a policy of variant {vla.cfg.variant!r} has no regressed action; see logit_lens")
    states = _joined(vla, caches)
    translator = TunedTranslator.fit(vla, caches, groups, ridge, held_out, seed)
    held = hold_out(groups, held_out, seed)
    last = list(states)[-1]
    generator = torch.Generator().manual_seed(seed)

    def read(layer: str, values: Tensor) -> Tensor:
        return torch.from_numpy(lens_of(vla, {layer: values}).values.values[:, 0])

    final = read(last, states[last])
    mean = final[~held].mean(0)
    truth, count = final[held], int(held.sum())
    other = torch.roll(torch.arange(count), count // 2)  # half way round, so that it is not the same episode
    guess = (mean - truth).abs().mean((0, 1))
    rows: dict[str, list[Tensor]] = {
        "lens": [],
        "translated": [],
        "probe": [],
        "shuffled tokens": [],
        "other query": [],
    }
    for layer, x in states.items():
        order = torch.stack([torch.randperm(x.shape[1], generator=generator) for _ in range(count)])
        dealt = x[held].gather(1, order[..., None].expand(-1, -1, x.shape[-1]))
        plain = read(layer, x[held])
        answers = {
            "lens": plain,
            "translated": plain if layer == last else read(layer, translator(x[held], layer)),
            "probe": _probe(x, final, held),
            "shuffled tokens": read(layer, dealt),
            "other query": plain[other],
        }
        for name, answer in answers.items():
            rows[name].append((answer - truth).abs().mean((0, 1)) / guess)
    values = torch.stack([torch.stack(errors) for errors in rows.values()])
    array = labelled(values, readout=list(rows), layer=list(states), dim=list(vla.cfg.action_names))
    what = "Error of the action read off a layer, held-out episodes; 1 is always answering the mean action"
    return LayerResult(array, "relative error", what, translator.source)


def _joined(vla: HookedVLA, caches: ActivationCache | Sequence[ActivationCache]) -> dict[str, Tensor]:
    parts = [caches] if isinstance(caches, ActivationCache) else list(caches)
    if not parts:
        raise ValueError("nothing to fit on: caches is empty")
    found = [lens_states(vla, cache)[0] for cache in parts]
    return {layer: torch.cat([states[layer].cpu() for states in found]) for layer in found[0]}


def _fit(x: Tensor, change: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Ridge regression of (query, slot, d) on (query, slot, d) with one constant per slot."""
    x_mean, change_mean = x.mean(0), change.mean(0)
    rows, targets = (x - x_mean).flatten(0, 1), (change - change_mean).flatten(0, 1)
    gram = rows.T @ rows
    # The tiny constant keeps a layer without any variance (empty placeholders) solvable.
    penalty = ridge * gram.diagonal().mean() + 1e-12
    weight = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), rows.T @ targets)
    return weight.float(), (change_mean - x_mean @ weight).float()


def _probe(x: Tensor, final: Tensor, held: Tensor) -> Tensor:
    """Held-out answers of a ridge regression from the states of a chunk step to its action."""
    steps, dims = final.shape[1:]
    features = x.unflatten(1, (steps, -1)).flatten(2).double()
    centre, offset = features[~held].mean(0), final[~held].mean(0)
    flat = lambda values: values.flatten(0, 1).numpy()  # noqa: E731  # (query, step, n) to rows
    scaler = StandardScaler()
    rows = scaler.fit_transform(flat((features - centre)[~held]))
    model = RidgeCV(alphas=np.logspace(-1, 5, 7)).fit(rows, flat((final - offset)[~held]))
    answer = model.predict(scaler.transform(flat((features - centre)[held])))
    return torch.from_numpy(answer).reshape(-1, steps, dims) + offset


def _kept(groups: Iterable[Hashable], mask: Tensor) -> list[Hashable]:
    return [group for group, keep in zip(groups, mask.tolist(), strict=True) if keep]
