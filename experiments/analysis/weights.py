"""What do mini's heads write, by their weights, and does the action follow?

    python experiments/analysis/weights.py

160 real scenes (4 start states of each task of libero_spatial at control steps 0, 16, 24 and 40; every fifth where the
network is run under edits). Figures go to `results/analysis/`.

What it showed for the shipped weights:

- Composition scores are far above random rotations almost everywhere (mean 0.195 to 0.198 against 0.071, more than 4
  deviations for 80 to 94 % of pairs), so "above random" singles out nothing; the strongest is Q of L1H0 to L2H1,
  0.383.
- Do they mean anything? If an earlier head is mean-ablated at action_read, attention of later heads from there moves
  (by 42 % for L1H1 to L3H2, by 3.9 % in the median pair). Over all 96 pairs Q scores go along with it (Spearman 0.71),
  but that is block 0, which has low scores and hardly anything that varies: in later blocks it is 0.21, K 0.38, V
  -0.14. Here composition scores are no guide to which head steers which.
- The two cameras write most to action_read (norms of heads added up): 0.40 and 0.60 of the stream's norm in block 0,
  0.67 and 0.56 in block 1, then less than 0.35; the robot state never more than 0.04.
- A head can write along 28 % of an action's direction in block 0 and 43 to 48 % later, where a random space of its
  size has 25 %. dpitch stands out in L1H0 (79 %), dz in L3H1 (68 %).
- The directions predict what happens. Each head mean-ablated at action_read: per scene and number, the change
  predicted from OV, activations and head directions against the real one has r 0.82 to 0.96 in blocks 2 and 3, where
  little or nothing lies between, 0.71 to 0.74 in block 1, and 0.24 to 0.41 in block 0, whose heads move the action by
  0.01 standard deviations only. L1H1 moves it most, by 0.37 (others 0.00 to 0.21).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from rich.console import Console
from scenes import asked, begin, scenes
from scipy.stats import spearmanr

from mist_interp import HookedVLA, PolicyInputs
from mist_interp.analysis.attention.mass import summarise
from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.weights.action import action_directions, ov_toward_action
from mist_interp.analysis.weights.circuits import KINDS, composition, ov_between
from mist_interp.core.layout import TokenLayout

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
    console = Console(width=120)
    vla = begin(settings.policy, settings.out, dtype="float32", attn_implementation="eager")
    shots = scenes(per_task=settings.per_task, steps=settings.steps)
    inputs = asked(vla, shots)
    some = PolicyInputs.cat([inputs[k] for k in range(0, len(shots), 5)])
    follow(vla, some, compose(vla, settings, console), console)
    written(vla, some, settings.out, console)
    toward_action(vla, inputs, settings.out, console)


def compose(vla: HookedVLA, settings: Settings, console: Console) -> pd.DataFrame:
    """Which later heads read what earlier heads write, against randomly turned circuits."""
    found = composition(vla, draws=settings.draws)
    excess = Result(found.scores.values - found.baseline.values, "above random", "Composition above a random rotation.")
    excess.plot(x="to", y="from", columns=3).savefig(settings.out / "weights_composition.png", dpi=130)
    ranking = found.ranking()
    for kind in KINDS:
        rows = ranking[ranking["kind"] == kind]
        best = rows.sort_values("score", ascending=False).iloc[0]
        console.print(
            f"{kind}: mean score {rows['score'].mean():.3f}, random {rows['baseline'].mean():.3f}; strongest "
            f"{best['from']} to {best['to']} with {best['score']:.3f} ({best['sigmas']:.0f} deviations above random); "
            f"{(rows['sigmas'] > 4).mean():.0%} of {len(rows)} pairs lie more than 4 above."
        )
    return ranking


def follow(vla: HookedVLA, some: PolicyInputs, ranking: pd.DataFrame, console: Console) -> None:
    """Do later heads look elsewhere when an earlier one is mean-ablated, the more they compose with it?"""
    cfg = vla.cfg

    def looks(pattern: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        rows = layout.select("action_read").index[:, None, :, None].expand(-1, pattern.shape[1], -1, pattern.shape[-1])
        return pattern.gather(2, rows)

    _, cache = vla.run_with_cache(some, names="z", tokens="action_read")
    before = summarise(vla, some, looks, batch=len(some))
    moved = {}
    for layer in range(cfg.n_layers - 1):
        mean = cache["z", layer].values.mean(0, keepdim=True)
        for head in range(cfg.n_heads):
            with vla.hooks((("z", layer), partial(ablated, head=head, mean=mean), "action_read")):
                after = summarise(vla, some, looks, batch=len(some))
            # Half the absolute difference: the share of attention that went elsewhere.
            shift = (after - before).abs().sum(-1).mean((0, 3)) / 2
            for later in range(layer + 1, cfg.n_layers):
                for other in range(cfg.n_heads):
                    moved[f"L{layer}H{head}", f"L{later}H{other}"] = float(shift[later, other])
    for kind in KINDS:
        rows = ranking[ranking["kind"] == kind]
        shifts = [moved[pair] for pair in zip(rows["from"], rows["to"], strict=True)]
        after_first = ~rows["from"].str.startswith("L0").to_numpy()
        all_pairs, some_pairs = (
            spearmanr(rows["score"][keep], np.array(shifts)[keep]).statistic
            for keep in (np.ones(len(rows), bool), after_first)
        )
        console.print(
            f"{kind} composition against how much of the later head's attention moves when the earlier one is "
            f"mean-ablated at action_read: Spearman {all_pairs:.2f} over {len(rows)} pairs, {some_pairs:.2f} without "
            "block 0"
        )
    (one, two), most = max(moved.items(), key=lambda item: item[1])
    median = float(np.median(list(moved.values())))
    console.print(f"The most: {one} moves {most:.0%} of the attention of {two}; the median pair {median:.1%}.")


def ablated(values: torch.Tensor, site: object, head: int, mean: torch.Tensor) -> torch.Tensor:
    """What a head computes, replaced by its mean over scenes at the same position."""
    changed = values.clone()
    changed[:, :, head] = mean[:, :, head]
    return changed


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
    few = torch.arange(0, len(directions), 5)
    causal(vla, PolicyInputs.cat([inputs[int(k)] for k in few]), directions[few], console)


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

            hook = partial(ablated, head=head, mean=mean)
            with torch.no_grad():
                after = vla.run_with_hooks(inputs, [(("z", layer), hook, "action_read")]).values
            real = (after - before).mean(1).numpy()
            scale = before.mean(1).numpy().std(0)
            rows.append((layer, head, np.corrcoef(predicted.ravel(), real.ravel())[0, 1], (abs(real) / scale).mean()))
    for layer in range(cfg.n_layers):
        mine = [row for row in rows if row[0] == layer]
        text = ", ".join(f"H{head} r {r:.2f} moves {size:.2f} sd" for _, head, r, size in mine)
        console.print(f"Block {layer}, mean-ablated at action_read, predicted against real change: {text}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
