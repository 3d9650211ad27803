"""By which way does the instruction reach the actions of `mini`, and what do the pictures do?

    python experiments/analysis/patching.py

Found (numbers of this script; 1 is the largest step of the controller, motion is the mean dx, dy, dz of a chunk):

* **At the start of an episode `mini` goes where the words say, not where the bowl is.** Between all pairs of the ten
  tasks, swapping the instruction makes 0.99 of the difference between the motions at control step 0 and 0.91 at step
  16, swapping both pictures 0.00; from step 24 on the robot state takes over (0.70, at step 40 0.97). Control within
  one scene: the bowl moved by 8 cm in both pictures changes the hand's motion along that axis by 0.009 on average
  (largest of 40: 0.08). So there is no head that carries the bowl's position to the approach: in libero_spatial the
  place follows from the task up to a few centimetres, and `mini` learned the places.
* **The instruction travels through the image patches.** 36 pairs of runs with one picture and robot state and two
  instructions. Exchanging the text before block 0 exchanges the motion (share 1.00); before block 1 the text does
  nothing (0.00) and the image patches do everything (0.99); before block 2 it is the action slots (0.86), before block
  3 too (0.99). What is enough and what is needed agree (denoising and noising, to 0.01). Few patches do most of it, one
  block of 2 x 2 in the wrist picture 0.27 of it. Which ones, the words decide: the maps of two pairs with the same new
  instruction and other pictures correlate by 0.54, with the same task's picture and another instruction by 0.20.
* **One head reads it off the patches: L1H1.** Exchanged alone it takes the motion more than half of the way in 34 of
  36 pairs (share 0.84). Chosen on the other set of tasks it is followed in 12 of 12 and 22 of 24 pairs; as a control,
  the best of the 15 other heads in 4 and 11, the average one in 0.5 and 1.4. Next to it are L0H0 and L0H3 (0.31, 0.33),
  which write into the patches: the heads of block 0 reach the action through L1H1 (paths through its queries, keys and
  values together 0.81; keys alone 0.17, values alone 0.48, queries 0.00) and not directly (0.00).
* **Attribution patching cannot be trusted here before block 2.** Pearson's correlation with the exact grid of heads is
  0.41, 0.50, 0.90, 0.98 in blocks 0 to 3, with the grid of token groups 0.20, 0.27, 0.57, 0.65.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from scenes import TARGET, Scene, asked, begin, scenes

from mist_interp import HookedVLA
from mist_interp.analysis.figures import STYLE, heat_map
from mist_interp.analysis.metrics import action_delta
from mist_interp.analysis.patching import PatchGrid, agreement, attribution_patch, patch, swapped
from mist_interp.analysis.patching.runs import rows
from mist_interp.analysis.paths import head, path_patch
from mist_interp.core.inputs import PolicyInputs
from mist_interp.libero import LiberoEnv, LiberoSuite

MOTION = action_delta(["dx", "dy", "dz"])
PARTS = ("vision", "text", "proprio")
FREE = (0, 1, 2, 6, 8)  # tasks whose bowl stands on the table with room around it


@dataclass(frozen=True)
class Settings:
    """Swaps of inputs, a moved bowl, and patching grids between two instructions."""

    policy: str = "mini"
    """Policy to look into."""

    steps: tuple[int, ...] = (0, 16, 24, 40)
    """Control steps at which inputs are swapped."""

    shift: float = 0.04
    """The bowl is moved by this much, in m, to either side."""

    out: Path = Path("results/analysis/patching")
    """Folder of figures and numbers; grids go on where they were cut."""


def main(settings: Settings) -> None:
    """Write the figure and print what it shows."""
    vla = begin(settings.policy, settings.out)

    shares = swap_inputs(vla, scenes(per_task=4, steps=settings.steps), settings.steps)
    tell_inputs(shares)
    tell_bowl(*move_bowl(vla, settings.shift))

    shots = scenes(per_task=2)
    clean, corrupt, tasks, groups = instruction_pairs(vla, shots)
    print(f"\n{len(groups)} pairs: one picture and robot state, two instructions of equally many words")
    grids = sweep(vla, clean, corrupt, settings.out)
    for name, grid in grids.items():
        grid.save(settings.out / f"{name}.json")
    tell_places(grids)
    tell_patches(grids["patches"], tasks)
    best = tell_heads(grids["heads"], groups)
    paths = tell_paths(vla, clean, corrupt, best)
    tell_approximation(vla, clean, corrupt, grids)
    picture(shares, grids, paths, best).savefig(settings.out / "instruction.png", dpi=150)


# -- which part of the query decides ----------------------------------------------------------------------------------


def swap_inputs(vla: HookedVLA, shots: list[Scene], steps: tuple[int, ...]) -> dict[int, dict[str, float]]:
    """Share of the difference between the motions of two tasks that one part of the query makes, over all pairs."""
    found: dict[int, dict[str, float]] = {}
    for step in steps:
        first = [next(s for s in shots if (s.task, s.step) == (task, step)) for task in sorted({s.task for s in shots})]
        inputs = asked(vla, first)
        pairs = [(i, j) for i in range(len(first)) for j in range(len(first)) if i != j]
        here, there = (rows(inputs, [pair[side] for pair in pairs]) for side in (0, 1))
        own = motion(vla, inputs)
        way = own[[j for _, j in pairs]] - own[[i for i, _ in pairs]]
        found[step] = {}
        for part in PARTS:
            gone = motion(vla, swapped(here, there, part)) - own[[i for i, _ in pairs]]
            found[step][part] = float((gone * way).sum() / (way**2).sum())
    return found


def motion(vla: HookedVLA, inputs: PolicyInputs, at_once: int = 15) -> torch.Tensor:
    """Mean (dx, dy, dz) of the chunk that each query is answered with."""
    return torch.cat([MOTION(vla(inputs[start : start + at_once])) for start in range(0, len(inputs), at_once)])


def tell_inputs(shares: dict[int, dict[str, float]]) -> None:
    print("share of the difference between the motions (dx, dy, dz) in two tasks that one swapped input makes")
    for step, row in shares.items():
        print(f"  control step {step:2d}: " + ", ".join(f"{part} {share:.2f}" for part, share in row.items()))


def move_bowl(vla: HookedVLA, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Change of the motion along x and y, and of the whole motion, when only the bowl in the pictures stands elsewhere.

    Returns:
        (moment, 2): change along the axis of the move when the bowl goes from -shift to +shift along x, along y; and
        (moment, 2): norm of the change of (dx, dy, dz).
    """
    along, norm = [], []
    for index in FREE:
        task = LiberoSuite("libero_spatial").tasks[index]
        env = LiberoEnv(task)
        env.reset(20)
        address = env.model.joint(f"{TARGET}_joint0").qposadr[0]
        for _ in range(4):
            fork = env.save()
            changes = []
            for axis in range(2):
                sides = []
                for sign in (-1, 1):
                    joints = fork.sample.qpos.copy()
                    joints[address + axis] += sign * shift
                    env.restore(replace(fork, sample=replace(fork.sample, qpos=joints)))
                    sides.append(MOTION(vla(vla.prepare(env.observe(), task.instruction)))[0].numpy())
                changes.append(sides[1] - sides[0])
            along.append([changes[axis][axis] for axis in range(2)])
            norm.append([np.linalg.norm(change) for change in changes])
            env.restore(fork)
            for action in vla(vla.prepare(env.observe(), task.instruction)).to_env()[0].double().numpy():
                env.step(action)
        env.close()
    return np.array(along), np.array(norm)


def tell_bowl(along: np.ndarray, norm: np.ndarray) -> None:
    print(
        f"bowl moved by 8 cm in the pictures, {along.size} times (control steps 0 to 24): the hand's motion along the "
        f"same axis changes by {along.mean():+.3f} on average (largest {np.abs(along).max():.2f}), the whole motion by "
        f"{np.median(norm):.3f} in the median (1 is the controller's largest step)"
    )


# -- two instructions on one picture ----------------------------------------------------------------------------------


def instruction_pairs(
    vla: HookedVLA, shots: list[Scene]
) -> tuple[PolicyInputs, PolicyInputs, list[tuple[int, int]], np.ndarray]:
    """Queries that differ in the instruction alone, the tasks of picture and words, and one of two sets of tasks."""
    inputs = asked(vla, shots)
    lengths = vla.layout(inputs).lengths
    pairs = [
        (i, j)
        for i, one in enumerate(shots)
        for j, other in enumerate(shots)
        if lengths[i] == lengths[j] and one.task != other.task and other.init_state == shots[0].init_state
    ]
    corrupt = rows(inputs, [i for i, _ in pairs])
    clean = swapped(corrupt, rows(inputs, [j for _, j in pairs]), "text")
    tasks = [(shots[i].task, shots[j].task) for i, j in pairs]
    return clean, corrupt, tasks, np.array([lengths[i] for i, _ in pairs])


def sweep(vla: HookedVLA, clean: PolicyInputs, corrupt: PolicyInputs, out: Path) -> dict[str, PatchGrid]:
    """The grids of the figure."""
    asked: dict[str, dict[str, Any]] = {
        "places": {"site": "resid_pre", "over": ("layer", "segment")},
        "needed": {"site": "resid_pre", "over": ("layer", "segment"), "direction": "noise"},
        "heads": {"site": "z", "over": ("layer", "head")},
        "patches": {"site": ("resid_pre", 1), "over": ("camera", "row", "col"), "block": 2},
    }
    grids = {}
    for name, options in asked.items():
        start = time.perf_counter()
        grids[name] = patch(vla, clean, corrupt, metric=MOTION, **options, out=out / "sweeps" / name)
        cells = grids[name].values.size // grids[name].values.sizes["dim"]
        print(f"  {name}: {cells} cells in {time.perf_counter() - start:.0f} s", flush=True)
    return grids


def follows(grid: PatchGrid) -> np.ndarray:
    """Whether the motion of a pair went more than half of the way, (pair, ...)."""
    return grid.pooled("dim").values.transpose("pair", ...).values > 0.5


def tell_places(grids: dict[str, PatchGrid]) -> None:
    for name, said in (("places", "brings the other instruction's motion"), ("needed", "loses its own motion")):
        table = grids[name].pooled().values
        vision = [float(table.sel(layer=k, segment=["agentview", "wrist"]).sum()) for k in table.layer.values]
        print(f"share that exchanging the states before a block {said}:")
        for k, both in zip(table.layer.values, vision, strict=True):
            row = table.sel(layer=k)
            print(
                f"  block {k}: text {float(row.sel(segment='text')):.2f}, patches {both:.2f}, "
                f"action slots {float(row.sel(segment='action_slot')):.2f}"
            )


def tell_patches(grid: PatchGrid, tasks: list[tuple[int, int]]) -> None:
    """Whether the patches that carry the instruction are the same ones for the same words, or in the same picture."""
    maps = grid.pooled("dim").values.transpose("pair", ...).values.reshape(len(tasks), -1)
    alike = np.corrcoef(maps)
    pairs = [(a, b) for a in range(len(tasks)) for b in range(a)]

    def mean(words: bool, pictures: bool) -> float:
        same = [(tasks[a][1] == tasks[b][1], tasks[a][0] == tasks[b][0]) for a, b in pairs]
        return float(
            np.mean([alike[pair] for pair, is_same in zip(pairs, same, strict=True) if is_same == (words, pictures)])
        )

    largest, words, pictures = float(grid.pooled().values.max()), mean(True, False), mean(False, True)
    print(
        f"2 x 2 patches before block 1: at most {largest:.2f}; the maps of two pairs correlate by {words:.2f} with the "
        f"same new instruction, {pictures:.2f} with the same task's picture"
    )


def tell_heads(grid: PatchGrid, groups: np.ndarray) -> tuple[int, int]:
    """The head that alone makes the motion follow; chosen on one set of tasks, counted on the other."""
    share, won = grid.pooled("dim").values.transpose("pair", "layer", "head").values, follows(grid)
    for group in np.unique(groups):
        mean = grid.values.isel(pair=np.flatnonzero(groups != group))
        full = grid.full.isel(pair=np.flatnonzero(groups != group))
        score = ((mean * full).sum(["pair", "dim"]) / (full**2).sum()).transpose("layer", "head").values
        layer, number = np.unravel_index(score.argmax(), score.shape)
        held = groups == group
        others = np.delete(won[held].reshape(held.sum(), -1), layer * won.shape[2] + number, axis=1)
        mine = won[held, layer, number]
        print(
            f"head L{layer}H{number}, chosen on the other tasks: {mine.sum()} of {held.sum()} pairs follow it alone "
            f"(median share {np.median(share[held, layer, number]):.2f}); of the {others.shape[1]} other heads at most "
            f"{others.sum(0).max()}, on average {others.sum(0).mean():.1f}"
        )
    pooled = grid.pooled().values.transpose("layer", "head").values
    print(
        "  share per head (rows: blocks)\n" + "\n".join("    " + " ".join(f"{x:5.2f}" for x in row) for row in pooled)
    )
    layer, number = np.unravel_index(pooled.argmax(), pooled.shape)
    return int(layer), int(number)


def tell_paths(vla: HookedVLA, clean: PolicyInputs, corrupt: PolicyInputs, best: tuple[int, int]) -> dict[str, Any]:
    """Through which of its inputs the head gets the instruction from the heads of the block below."""
    senders = [head(best[0] - 1, number) for number in range(vla.cfg.n_heads)]
    receiver = head(*best)
    lengths = np.array(vla.layout(corrupt).lengths)
    sides = [[rows(side, np.flatnonzero(lengths == n).tolist()) for side in (clean, corrupt)] for n in set(lengths)]

    def share(**options: Any) -> np.ndarray:
        """Per sender, pooled over all pairs and dimensions."""
        grids = [path_patch(vla, here, there, senders, metric=MOTION, **options) for here, there in sides]
        effect = np.concatenate([_flat(grid) for grid in grids], axis=1)
        full = np.concatenate([grid.full.transpose("pair", "dim").values.ravel() for grid in grids])
        return effect @ full / (full @ full)

    table: dict[str, Any] = {}
    for through in ("q", "k", "v", "qkv"):
        options = {"receivers": [receiver], "through": tuple(through)}
        table[through] = share(**options), float(share(**options, together=True)[0])
        alone = ", ".join(f"H{k} {x:.2f}" for k, x in enumerate(table[through][0]))
        print(f"  heads of block {best[0] - 1} -> {through} of {receiver}: {alone}; together {table[through][1]:.2f}")
    print(f"  heads of block {best[0] - 1} -> action head directly: {float(share(together=True)[0]):.2f}")
    return table


def _flat(grid: PatchGrid) -> np.ndarray:
    """(sender, everything else)."""
    values = grid.values
    values = values.squeeze("receiver") if "receiver" in values.dims else values
    values = values if "sender" in values.dims else values.expand_dims("sender")
    return values.transpose("sender", "pair", "dim").values.reshape(values.sizes["sender"], -1)


def tell_approximation(vla: HookedVLA, clean: PolicyInputs, corrupt: PolicyInputs, grids: dict[str, PatchGrid]) -> None:
    for name, options in (
        ("places", {"site": "resid_pre", "over": ("layer", "segment")}),
        ("heads", {"site": "z", "over": ("layer", "head")}),
    ):
        first = attribution_patch(vla, clean, corrupt, metric=MOTION, **options)
        row = agreement(grids[name], first).sel(measure="pearson").values.to_pandas()
        said = ", ".join(f"{layer}: {value:.2f}" for layer, value in row.items())
        print(f"attribution patching against the exact grid of {name}, Pearson per layer: {said}")


# -- the figure -------------------------------------------------------------------------------------------------------


def picture(
    shares: dict[int, dict[str, float]], grids: dict[str, PatchGrid], paths: dict[str, Any], best: tuple[int, int]
) -> Figure:
    """Inputs, places, heads, patches, and paths."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 6.2))
        top, bottom = figure.subfigures(2, 1)
        inputs, places, heads = top.subplots(1, 3, width_ratios=[1, 1.3, 0.9])
        for part in PARTS:
            inputs.plot(list(shares), [row[part] for row in shares.values()], marker="o", label=part)
        inputs.set(xlabel="control step", ylabel="share of the difference", title="Which input decides the motion?")
        inputs.legend(frameon=False)
        table = grids["places"].pooled().values.transpose("layer", "segment")
        image = heat_map(
            places, table.values.round(3) + 0.0, table.layer.values.tolist(), table.segment.values.tolist(), -1.0, 1.0
        )
        places.set(title="States before a block exchanged", ylabel="block")
        table = grids["heads"].pooled().values.transpose("layer", "head")
        heat_map(
            heads, table.values.round(3) + 0.0, table.layer.values.tolist(), table["head"].values.tolist(), -1.0, 1.0
        )
        heads.set(title="One head exchanged", ylabel="block", xlabel="head")
        top.colorbar(image, ax=[places, heads], label="share", shrink=0.8)
        *maps, bars = bottom.subplots(1, 3, width_ratios=[0.8, 0.8, 1.2])
        table = grids["patches"].pooled().values
        largest = float(np.abs(table).max())
        for axes, camera in zip(maps, ("agentview", "wrist"), strict=True):
            panel = table.sel(camera=camera).transpose("row", "col")
            image = heat_map(
                axes,
                panel.values.round(3) + 0.0,
                panel.row.values.tolist(),
                panel.col.values.tolist(),
                -largest,
                largest,
            )
            axes.set(title=f"Before block 1: {camera}", xlabel="column", ylabel="row")
        bottom.colorbar(image, ax=maps, label="share", shrink=0.8)
        labels = [*(f"H{k}" for k in range(len(paths["v"][0]))), "together"]
        for place, through in enumerate(("q", "k", "v", "qkv")):
            values = [*paths[through][0], paths[through][1]]
            bars.bar(np.arange(len(values)) + 0.2 * (place - 1.5), values, 0.2, label=through)
        bars.set_xticks(range(len(labels)), labels)
        bars.set(title=f"Heads of block {best[0] - 1} -> L{best[0]}H{best[1]}", ylabel="share")
        bars.legend(frameon=False, title="through")
    return figure


if __name__ == "__main__":
    main(tyro.cli(Settings))
