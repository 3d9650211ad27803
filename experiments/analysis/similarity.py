"""Where does mini build what its action is read from, and what would a random network share with it?

    python experiments/analysis/similarity.py

Means over token groups of 160 real frames (4 start states of each task of libero_spatial at control steps 0, 16, 24 and
40), compared between layers, token groups, and with a random policy of the same sizes. Figures go to
`results/analysis/`.

What it showed for the shipped weights:

- Block 1 is where action_read becomes what it is: debiased CKA of neighbouring layers is 0.32 from block 0 to 1, then
  0.92 and 0.96. After block 0, where the empty placeholders look everywhere evenly, mini's action_read is that of the
  random policy (0.92), afterwards no longer (0.36, 0.27, 0.28).
- What will be the final action_read is everywhere early: held-out R² on other start states 0.95 from the agentview
  tokens and 0.96 from the prompt's after block 0, and at least 0.95 from every group after block 1. The control is
  high as well: 0.62 to 0.78 from any group of the random policy, because scenes of one task at one step look alike. On
  other tasks the action is predicted with 0.69 from action_read of block 2 and 0.36 to 0.68 from the others, against
  0.93 to 0.97 on other start states.
- Predictable is not used. After block 1 the prompt's tokens predict the final action_read as well as any (0.99), but
  action_read blinded to them in blocks 2 and 3 moves dx dy dz by 0.04 standard deviations; the pictures, with R² 0.98,
  move it by 0.28 (agentview) and 0.23 (wrist), the robot state by 0.04.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from scenes import asked, begin, scenes

from mist_interp import HookedVLA, PolicyInputs
from mist_interp.analysis.attention.knockout import knockout_shift
from mist_interp.analysis.similarity import cka, pooled, predictivity, similarity
from mist_interp.models import random_policy

GROUPS = ("agentview", "wrist", "proprio", "text", "action_read")


@dataclass(frozen=True)
class Settings:
    """Representations of mini on real scenes."""

    policy: str = "mini"
    """Policy to look at."""

    per_task: int = 4
    """Start states per task."""

    steps: tuple[int, ...] = (0, 16, 24, 40)
    """Control steps at which scenes are taken."""

    out: Path = Path("results/analysis")
    """Folder of the figures."""


def main(settings: Settings) -> None:
    """Print one sentence per figure."""
    console = Console(width=120)
    vla = begin(settings.policy, settings.out, dtype="float32", attn_implementation="eager")
    shots = scenes(per_task=settings.per_task, steps=settings.steps)
    inputs = asked(vla, shots)
    starts = [f"task {shot.task} start {shot.init_state}" for shot in shots]
    tasks = [shot.task for shot in shots]
    places = ["embed", *(f"resid_post {layer}" for layer in range(vla.cfg.n_layers))]
    last = f"{places[-1]} action_read"

    with torch.no_grad():
        tables = pooled(vla, inputs, ["embed", "resid_post"], GROUPS)
        untrained = pooled(random_twin(vla), inputs, ["embed", "resid_post"], GROUPS)
        action = vla(inputs).normalized.flatten(1).double().numpy()

    layers, others = ({place: table[f"{place} action_read"] for place in places[1:]} for table in (tables, untrained))
    between, control = similarity(layers), similarity(layers, others)
    between.plot(title="mini, action_read: debiased CKA of layers").savefig(
        settings.out / "similarity_layers.png", dpi=130
    )
    control.plot(title="mini (down) against a random policy of the same sizes").savefig(
        settings.out / "similarity_random.png", dpi=130
    )
    same = np.array([cka(layers[name], others[name]) for name in layers])
    console.print(
        f"Debiased CKA of neighbouring layers at action_read: {row(np.diag(between.values.values, 1))}; of the same "
        f"layer of a random policy: {row(same)}."
    )

    for text, source in (("mini", tables), ("random policy", untrained)):
        for place in places:
            found = [predictivity(source[f"{place} {group}"], tables[last], starts) for group in GROUPS]
            console.print(f"{text}, {place} -> mini's last action_read, R² on other start states: {row(found, GROUPS)}")
    for text, groups in (("other start states", starts), ("other tasks", tasks)):
        found = [predictivity(tables[f"{places[-2]} {group}"], action, groups) for group in GROUPS]
        console.print(f"{places[-2]} -> the action, R² on {text}: {row(found, GROUPS)}")
    used(vla, PolicyInputs.cat([inputs[k] for k in range(0, len(shots), 5)]), action.std(0), console)
    by_group = {f"{place} {group}": tables[f"{place} {group}"] for group in GROUPS for place in places[1:]}
    similarity(by_group).plot(title="mini: debiased CKA of layers and token groups").savefig(
        settings.out / "similarity_groups.png", dpi=130
    )


def used(vla: HookedVLA, some: PolicyInputs, spread: np.ndarray, console: Console) -> None:
    """Predictable is not used: blind action_read to each group in the second half of the blocks."""
    late = [
        (layer, head) for layer in range(vla.cfg.n_layers // 2, vla.cfg.n_layers) for head in range(vla.cfg.n_heads)
    ]
    moved = []
    for group in GROUPS[:-1]:
        shift = knockout_shift(vla, some, late, group).values.values / spread.reshape(vla.cfg.chunk, -1)
        moved.append(np.sqrt((shift[..., :3] ** 2).mean()))
    console.print(
        f"action_read blinded to a group in blocks {late[0][0]} to {late[-1][0]} moves dx dy dz by (sd): "
        f"{row(moved, GROUPS[:-1])}"
    )


def random_twin(vla: HookedVLA) -> HookedVLA:
    """A policy of the same sizes with random weights: what the scenes alone make similar."""
    config, cfg = vla.policy.config, vla.cfg
    towers = {
        name: (tower.width, tower.depth, tower.heads)
        for name, tower in zip(("dino", "siglip"), config.towers, strict=True)
    }
    sizes = {"hidden": cfg.d_model, "layers": cfg.n_layers, "heads": cfg.n_heads, "ffn": cfg.d_mlp}
    return HookedVLA(random_policy(0, **towers, **sizes, image_size=config.image_size).requires_grad_(False))


def row(values: object, names: tuple[str, ...] = ()) -> str:
    """Numbers in words."""
    shown = [f"{float(value):.2f}" for value in values]  # type: ignore[attr-defined]
    return ", ".join(f"{name} {value}" for name, value in zip(names, shown, strict=True)) if names else ", ".join(shown)


if __name__ == "__main__":
    main(tyro.cli(Settings))
