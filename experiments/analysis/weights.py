"""What do mini's heads write, by their weights, and does the action follow?

    python experiments/analysis/weights.py

Figures go to `results/analysis/`.

(numbers pending)
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from scenes import scenes

from mist_interp import HookedVLA, PolicyInputs
from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.weights import KINDS, composition, ov_between, ov_circuit
from mist_interp.analysis.weights_action import action_directions, ov_toward_action

SEGMENTS = ["agentview", "wrist", "proprio", "text", "action_slot"]


@dataclass(frozen=True)
class Settings:
    """Circuits of mini's heads on real scenes."""

    policy: str = "mini"
    """Policy to look at."""

    per_task: int = 4
    """Start states per task."""

    steps: tuple[int, ...] = (0, 16, 24, 40)
    """Control steps at which scenes are taken."""

    draws: int = 50
    """Random rotations that composition scores are compared with."""

    out: Path = Path("results/analysis")
    """Folder of the figures."""


def main(settings: Settings) -> None:
    """Print one sentence per figure."""
    torch.set_num_threads(1)
    console = Console(width=120)
    settings.out.mkdir(parents=True, exist_ok=True)
    vla = HookedVLA.from_pretrained(settings.policy, dtype="float32", attn_implementation="eager")
    shots = scenes(per_task=settings.per_task, steps=settings.steps)
    inputs = vla.prepare([shot.obs for shot in shots], [shot.instruction for shot in shots])
    compose(vla, settings, console)
    written(vla, inputs[0:20], settings.out, console)
    toward_action(vla, inputs, settings.out, console)


def compose(vla: HookedVLA, settings: Settings, console: Console) -> None:
    """Which later heads read what earlier heads write, against randomly turned circuits."""
    found = composition(vla, draws=settings.draws)
    excess = Result(found.scores.values - found.baseline.values, "above random", "Composition above a random rotation.")
    excess.plot(x="to", y="from", columns=3).savefig(settings.out / "weights_composition.png", dpi=130)
    ranking = found.ranking()
    for kind in KINDS:
        rows = ranking[ranking["kind"] == kind]
        best = rows.iloc[0]
        console.print(
            f"{kind}: mean score {rows['score'].mean():.3f}, random {rows['baseline'].mean():.3f}; strongest "
            f"{best['from']} to {best['to']} with {best['score']:.3f} ({best['sigmas']:.0f} deviations above random); "
            f"{(rows['sigmas'] > 4).mean():.0%} of {len(rows)} pairs lie more than 4 above."
        )


def written(vla: HookedVLA, inputs: PolicyInputs, out: Path, console: Console) -> None:
    """How much of what reaches the read positions comes from which segment."""
    result = ov_between(vla, inputs, ["action_read"], SEGMENTS).sel(**{"from": "action_read"})
    table = result.values.mean("sample").stack(which=("layer", "head"))
    labels = [f"L{layer}H{head}" for layer, head in table["which"].values]
    by_head = Result(labelled(table.values.T, head=labels, to=SEGMENTS), result.unit, result.what)
    by_head.plot(title="What each segment writes to action_read, relative to the stream").savefig(
        out / "weights_written.png", dpi=130
    )
    by_layer = result.values.mean("sample").sum("head")
    for layer in by_layer["layer"].values:
        shares = ", ".join(f"{name} {float(by_layer.sel(layer=layer, to=name)):.2f}" for name in SEGMENTS)
        console.print(
            f"Written to action_read in block {layer}, norms relative to the stream, summed over heads: {shares}"
        )


def toward_action(vla: HookedVLA, inputs: PolicyInputs, out: Path, console: Console) -> None:
    """What heads can write along the action's directions, and what taking their variation away really does."""
    directions = action_directions(vla, inputs)
    readout = ov_toward_action(vla, inputs, directions=directions)
    share = readout.share.values.stack(which=("layer", "head"))
    labels = [f"L{layer}H{head}" for layer, head in share["which"].values]
    names = list(vla.cfg.action_names)
    Result(labelled(share.values.T, head=labels, dim=names), "share", readout.share.what).plot(
        title=f"Share of an action's direction that a head can write (random: {readout.even:.2f})"
    ).savefig(out / "weights_action.png", dpi=130)
    agree = ", ".join(f"{name} {float(readout.agreement.values.sel(dim=name)):.2f}" for name in names)
    console.print(f"Agreement of the action's directions over scenes: {agree}")
    by_layer = readout.share.values.mean(["head", "dim"]).values
    console.print(
        "Share of the action's directions that a head can write, by block: "
        + ", ".join(f"{value:.2f}" for value in by_layer)
        + f" (random {readout.even:.2f})"
    )
    causal(vla, inputs, directions, console)


def causal(vla: HookedVLA, inputs: PolicyInputs, directions: torch.Tensor, console: Console) -> None:
    """Mean-ablate each head at the read positions: is the change of the action what weights and directions predict?"""
    cfg = vla.cfg
    _, cache = vla.run_with_cache(inputs, names="z", tokens="action_read")
    before = vla(inputs).values
    rows = []
    for layer in range(cfg.n_layers):
        z = cache["z", layer].values  # (sample, slot, head, d_head)
        mean = z.mean(0, keepdim=True)
        block = vla.policy.language_model.model.layers[layer]
        out = block.self_attn.o_proj.weight.float().unflatten(1, (cfg.n_heads, -1))
        for head in range(cfg.n_heads):
            removed = torch.einsum("bsd,md->bsm", (mean - z)[:, :, head], out[:, head])
            # The same mean push for all tokens, because the directions are those of a push of all of them.
            predicted = torch.einsum("bam,bm->ba", directions, removed.mean(1)).numpy()

            def ablate(values: torch.Tensor, site: object, head: int = head, mean: torch.Tensor = mean) -> torch.Tensor:
                changed = values.clone()
                changed[:, :, head] = mean[:, :, head]
                return changed

            with torch.no_grad():
                after = vla.run_with_hooks(inputs, [(("z", layer), ablate, "action_read")]).values
            real = (after - before).mean(1).numpy()
            scale = before.mean(1).numpy().std(0)
            rows.append((layer, head, np.corrcoef(predicted.ravel(), real.ravel())[0, 1], (abs(real) / scale).mean()))
    for layer in range(cfg.n_layers):
        mine = [row for row in rows if row[0] == layer]
        text = ", ".join(f"H{head} r {r:.2f} moves {size:.2f} sd" for _, head, r, size in mine)
        console.print(f"Block {layer}, mean-ablated at action_read, predicted against real change: {text}")
    assert ov_circuit(vla, 0).shape[0] == cfg.n_heads


if __name__ == "__main__":
    main(tyro.cli(Settings))
