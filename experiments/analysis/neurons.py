"""Which neurons of mini move which action number, and what do their top frames have in common?

    python experiments/analysis/neurons.py

Value vectors projected on the action head linearised at 160 real frames (4 start states of each task of libero_spatial
at control steps 0, 16, 24 and 40). The best neurons are pushed, and the action is compared with the prediction and with
random neurons of the same blocks. Figures go to `results/analysis/`.

What it showed for the shipped weights:

- Neurons move numbers a little each: one standard deviation of the best neuron moves dpitch by 0.07, dx dy dz by 0.03
  to 0.04 and the gripper by 0.004 standard deviations of the action over scenes. dpitch has neurons of its own (72 to
  86 % of their squared effect for four of the best five); the others share theirs (L2N42 is first for both dx and dy).
- The predictions hold. The best five of each number raised by 1 deviation each, at the read positions of 32 scenes: dx
  +0.13 (predicted +0.13), dy +0.21 (+0.18), dz +0.07 (+0.10), droll +0.20 (+0.17), dpitch +0.28 (+0.28), dyaw +0.07
  (+0.07), gripper +0.02 (+0.01) standard deviations; the other numbers move by 0.02 to 0.08, and as many random
  neurons of the same blocks by less than 0.005. Over all pushes and numbers, predicted and real change have r = 0.99.
- Top frames are frames of one task and one moment: L2N42 is lowest (it is active with negative sign) in all four
  starts of task 9, L1N422 in those of task 8, L1N215 at step 16 of task 1. L1N422, first for dz, goes with where the
  bowl is relative to the hand: r = -0.86 with its y over all scenes, and 34 % of its variance is between tasks. In ten
  tasks that differ in where the bowl is, "task" and "place" cannot be told apart by looking.
- mini's unembedding was never trained with the rest, so the words of value vectors mean nothing here.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
import xarray as xr
from rich.console import Console
from scenes import TARGET, Scene, asked, begin, scenes

from mist_interp import HookedVLA, PolicyInputs
from mist_interp.analysis.attention.pictures import frames, policy_pictures
from mist_interp.analysis.neurons import (
    Neuron,
    neuron_activations,
    neuron_effects,
    neuron_spread,
    neuron_table,
    neuron_words,
    push_neurons,
    top_frames,
)
from mist_interp.analysis.result import Result
from mist_interp.analysis.weights.action import action_directions

SHOWN = ("dx", "dy", "dz", "gripper")


@dataclass(frozen=True)
class Settings:
    """Neurons of mini against its action head."""

    policy: str = "mini"
    """Policy to look at."""

    per_task: int = 4
    """Start states per task."""

    steps: tuple[int, ...] = (0, 16, 24, 40)
    """Control steps at which scenes are taken."""

    k: int = 5
    """Neurons per action number."""

    amount: float = 1.0
    """How far neurons are pushed, in standard deviations over scenes."""

    out: Path = Path("results/analysis")
    """Folder of the figures."""


def main(settings: Settings) -> None:
    """Print one sentence per table and figure."""
    console = Console(width=120)
    vla = begin(settings.policy, settings.out, dtype="float32")
    shots = scenes(per_task=settings.per_task, steps=settings.steps)
    inputs = asked(vla, shots)
    with torch.no_grad():
        scale = vla(inputs).values.std(0).mean(0).numpy()  # standard deviation over scenes, mean over the chunk
    directions = action_directions(vla, inputs)
    effects = neuron_effects(vla, inputs, directions=directions)
    spread = neuron_spread(vla, inputs).values
    table = neuron_table(effects, settings.k, scale)
    console.print(table.round(3).to_string(index=False))
    some = PolicyInputs.cat([inputs[k] for k in range(0, len(shots), 5)])  # all steps and tasks; pushes are many
    push(vla, some, spread, effects, table, scale, settings, console)
    show(vla, inputs, shots, table, settings.out, console)
    words = neuron_words(
        vla, [(int(row.layer), int(row.neuron)) for row in table[table["rank"] == 1].itertuples()], k=4
    )
    console.print("Words (mini's unembedding was never trained, so they mean nothing here):")
    for name, group in words.groupby("neuron", sort=False):
        console.print(f"  {name}: {', '.join(group['word'])}")


def push(
    vla: HookedVLA,
    inputs: PolicyInputs,
    spread: xr.DataArray,
    effects: Result,
    table: object,
    scale: np.ndarray,
    settings: Settings,
    console: Console,
) -> None:
    """Raise the best neurons of each number, all at once, and as many random ones of the same blocks."""
    rng = np.random.default_rng(0)
    names = list(vla.cfg.action_names)
    predicted, real = [], []
    for d, dim in enumerate(names):
        rows = table[table["dim"] == dim]  # type: ignore[index]
        best: list[Neuron] = [(int(row.layer), int(row.neuron)) for row in rows.itertuples()]
        signs = np.sign(rows["effect"].to_numpy())
        chance = [(layer, int(rng.integers(vla.cfg.d_mlp))) for layer, _ in best]
        moved = []
        for neurons, sign in ((best, signs), (chance, signs)):
            deviations = [float(spread.sel(layer=layer, neuron=n)) for layer, n in neurons]
            amounts = [settings.amount * s * e for s, e in zip(sign, deviations, strict=True)]
            change = push_neurons(vla, inputs, neurons, amounts).values.mean(["sample", "step"]).values / scale
            expected = sum(
                settings.amount * s * effects.values.sel(layer=layer, neuron=n).values / scale
                for s, (layer, n) in zip(sign, neurons, strict=True)
            )
            predicted.append(expected)
            real.append(change)
            moved.append(change)
        others = np.delete(abs(moved[0]), d).mean()
        console.print(
            f"{dim}: the {len(best)} best neurons, each raised by {settings.amount:g} sd, move it by "
            f"{moved[0][d]:+.2f} sd (predicted {predicted[-2][d]:+.2f}), the other numbers by {others:.2f}; random "
            f"neurons move it by {moved[1][d]:+.2f}"
        )
    r = np.corrcoef(np.ravel(predicted), np.ravel(real))[0, 1]
    console.print(f"Predicted against real change over all pushes and numbers: r = {r:.2f}.")


def show(vla: HookedVLA, inputs: PolicyInputs, shots: list[Scene], table: object, out: Path, console: Console) -> None:
    """Frames at which the best neuron of each number is highest and lowest, and what goes with its activation."""
    first = [table[(table["dim"] == dim) & (table["rank"] == 1)].iloc[0] for dim in SHOWN]  # type: ignore[index]
    neurons = [(int(row["layer"]), int(row["neuron"])) for row in first]
    activations = neuron_activations(vla, inputs, neurons)
    pictures = policy_pictures(vla, inputs)["agentview"]
    grid, labels, captions = [], [], []
    for name in activations.axes["neuron"]:
        dims = ", ".join(dim for dim, (layer, n) in zip(SHOWN, neurons, strict=True) if f"L{layer}N{n}" == name)
        one = activations.sel(neuron=[name])
        picked = [*top_frames(one, 4)["sample"], *top_frames(one, 4, lowest=True)["sample"][::-1]]
        grid.append([pictures[k] for k in picked])
        captions.append([f"{float(one.values[k, 0]):+.2f} task {shots[k].task} t{shots[k].step}" for k in picked])
        labels.append(f"{dims}\n{name}\nhighest,\nlowest")
        values = one.values.values[:, 0]
        bowl = np.array([shot.objects[TARGET] - shot.obs["robot0_eef_pos"] for shot in shots])
        r = [np.corrcoef(values, bowl[:, axis])[0, 1] for axis in range(3)]
        tasks = np.array([shot.task for shot in shots])
        within = sum(values[tasks == t].var() * (tasks == t).mean() for t in set(tasks)) / values.var()
        late = np.corrcoef(values, [shot.step for shot in shots])[0, 1]
        console.print(
            f"{name} (first for {dims}): correlation with the bowl relative to the gripper x {r[0]:+.2f}, "
            f"y {r[1]:+.2f}, z {r[2]:+.2f}; with the step {late:+.2f}; {1 - within:.0%} of its variance is "
            "between tasks."
        )
    frames(grid, labels, captions).savefig(out / "neurons_frames.png", dpi=130)


if __name__ == "__main__":
    main(tyro.cli(Settings))
