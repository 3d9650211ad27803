"""Where does mini build what its action is read from, and what would a random network share with it?

    python experiments/analysis/similarity.py

Means over token groups of real frames, compared between layers, token groups, and with a random policy of the same
sizes. Figures go to `results/analysis/`.

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

from mist_interp import HookedVLA
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
    torch.set_num_threads(1)
    console = Console(width=120)
    settings.out.mkdir(parents=True, exist_ok=True)
    vla = HookedVLA.from_pretrained(settings.policy, dtype="float32")
    shots = scenes(per_task=settings.per_task, steps=settings.steps)
    inputs = vla.prepare([shot.obs for shot in shots], [shot.instruction for shot in shots])
    starts = [f"task {shot.task} start {shot.init_state}" for shot in shots]
    tasks = [shot.task for shot in shots]
    places = ["embed", *(f"resid_post {layer}" for layer in range(vla.cfg.n_layers))]
    last = f"{places[-1]} action_read"

    with torch.no_grad():
        tables = pooled(vla, inputs, ["embed", "resid_post"], GROUPS)
        untrained = pooled(random_twin(vla), inputs, ["embed", "resid_post"], GROUPS)
        action = vla(inputs).normalized.flatten(1).double().numpy()

    names = {name: place for place in places[1:] for name in [f"{place} action_read"]}
    layers = {short: tables[name] for name, short in names.items()}
    others = {short: untrained[name] for name, short in names.items()}
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
    by_group = {f"{place} {group}": tables[f"{place} {group}"] for group in GROUPS for place in places[1:]}
    similarity(by_group).plot(title="mini: debiased CKA of layers and token groups").savefig(
        settings.out / "similarity_groups.png", dpi=130
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
