"""How often does the small policy succeed, and does it need its instruction and its cameras?

Ten tasks of libero_spatial on start states that no demonstration was drawn from, with each render profile; in the fast
one three arms on the same units: the policy as it is, told another task's instruction, and with grey cameras. What
these controls show does not hang on how the pictures are drawn, and faithful ones cost three times as much. The result
is what the model card states: successes per task with Wilson's intervals, and paired comparisons of the arms.

    python experiments/mini/evaluate.py --workers 2                    run everything, or go on with it
    python experiments/mini/evaluate.py --shard 0/2                    one of two processes, started by hand
    python experiments/mini/evaluate.py --no-run --fill mist_interp/models/mini/README.md README.md
    python experiments/mini/evaluate.py --model mini-base --out results/mini-base --profiles fast --no-controls
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import card
import tyro
from controls import GreyCameras, OtherInstruction
from rich.console import Console

from mist_interp import HookedVLA
from mist_interp.cli.progress import ProgressDisplay, print_summary
from mist_interp.core.files import write_atomic
from mist_interp.evaluation import NoEdit, Protocol, ResultsFolder, evaluate
from mist_interp.evaluation.runner import summarize_folder
from mist_interp.libero.suite import LiberoSuite

SUITE = "libero_spatial"
PROFILES = ("fast", "faithful")
ARM_LABELS = {"none": "as it is", "other-instruction": "another task's instruction", "grey-cameras": "grey cameras"}
console = Console(highlight=False)


@dataclass(frozen=True)
class Settings:
    """Success of the small policy per task, with and without its inputs, in both render profiles.

    The same command goes on where it was cut, whether it was stopped or killed; finished episodes are never run again.
    Each profile has a results folder of its own (results/mini/fast, results/mini/faithful) with one row per episode,
    and the tables are recomputed from those rows.
    """

    model: str = "mini"
    """Policy: "mini" or "mini-base" (in the package), a folder, or a Hub id."""

    out: Path = Path("results/mini")
    """Results folder. Another policy needs another one: the weights are part of a run's settings."""

    profiles: tuple[Literal["fast", "faithful"], ...] = PROFILES
    """Render profiles, one after the other."""

    tasks: tuple[int, ...] = tuple(range(10))
    """Tasks of libero_spatial."""

    inits: tuple[int, ...] = tuple(range(10))
    """Start states of each task. Demonstrations use none of the 50; the quickstart fits on 30 to 37."""

    controls: bool = True
    """With --no-controls the fast profile, too, runs only the policy as it is."""

    max_steps: int | None = None
    """Step limit; default: the suite's 220. A lower one marks the run as partial: for trying out."""

    workers: int = 1
    """Processes on this machine, each with its own policy and simulator."""

    shard: str | None = None
    """Run part i of n, written i/n with i from 0, such as 0/2; all parts share the folder."""

    run: bool = True
    """With --no-run nothing is run: only the tables are made from the rows that are there."""

    fill: tuple[Path, ...] = ()
    """Pages whose marked places get the numbers, e.g. mist_interp/models/mini/README.md README.md. Refused while
    episodes are missing."""


def main(settings: Settings) -> None:
    """Run what is missing, then make the tables."""
    for profile in settings.profiles if settings.run else ():
        console.print(f"[bold]{profile}[/]")
        run(settings, profile)
    summaries = finished(settings)
    if not summaries:
        raise SystemExit(f"{settings.out} holds no run yet; leave --no-run out")
    measured = texts(summaries) | (sizes(settings.model) if settings.fill else {})
    for name in ("success", "controls"):
        console.print(f"\n{measured[name]}", soft_wrap=True, markup=False)
    write_atomic(settings.out / "tables.json", json.dumps({"texts": measured, "runs": summaries}, indent=2) + "\n")
    open_runs = {
        name: run["summary"]["partial_reasons"] for name, run in summaries.items() if run["summary"]["partial"]
    }
    for name, reasons in open_runs.items():
        console.print(f"[yellow]{name} is partial, not a result:[/] {'; '.join(reasons)}")
    if settings.fill and (open_runs or set(summaries) != set(settings.profiles)):
        wanted = " and ".join(settings.profiles)
        raise SystemExit(f"no page was filled: the model card states complete runs only, here of {wanted}")
    for page in settings.fill:
        console.print(f"{page}: filled {', '.join(card.fill(page, measured)) or 'nothing'}")


def run(settings: Settings, profile: str) -> None:
    """All episodes of one render profile that have no row yet."""
    suite = LiberoSuite(SUITE)
    controls = [OtherInstruction(tuple(task.instruction for task in suite.tasks)), GreyCameras()]
    with ProgressDisplay() as display:
        result = evaluate(
            settings.model,
            suite,
            [NoEdit(), *(controls if profile == "fast" and settings.controls else [])],
            out=settings.out / profile,
            tasks=settings.tasks,
            inits=settings.inits,
            protocol=Protocol(profile=profile, max_steps=settings.max_steps),
            shard=settings.shard,
            workers=settings.workers,
            on_progress=display.show,
        )
    print_summary(result.summary(), console)


def finished(settings: Settings) -> dict[str, dict[str, Any]]:
    """Profile -> settings, provenance and summary of its run, recomputed from its rows."""
    runs = {}
    for profile in PROFILES:
        folder = ResultsFolder(settings.out / profile)
        if folder.config_path.exists() and folder.rows():
            runs[profile] = {**folder.config(), "summary": summarize_folder(folder)}
    return runs


def texts(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What the pages state, by the name of its place."""
    summaries = {profile: run["summary"] for profile, run in runs.items()}
    measured = {
        "success": success_table(summaries),
        "controls": controls_table(summaries),
        "evaluated-with": evaluated_with(next(iter(runs.values()))),
    }
    for profile, summary in summaries.items():
        if "none" in summary["arms"]:
            metrics = summary["arms"]["none"]["metrics"]
            measured[f"success-{profile}"] = card.estimate(metrics["success_rate"])
            measured[f"collisions-{profile}"] = card.estimate(metrics["collision_rate_1n"])
    return measured


def success_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Successes per task of the untouched policy, one column per profile."""
    tasks = {
        (entry["task"], entry["instruction"]): None
        for summary in summaries.values()
        for entry in summary["tasks"]
        if entry["arm"] == "none"
    }
    counted = {
        (profile, entry["task"]): card.share(entry["successes"], entry["units"])
        for profile, summary in summaries.items()
        for entry in summary["tasks"]
        if entry["arm"] == "none"
    }
    rows = [
        [task, card.where(instruction), *(counted.get((profile, task), "–") for profile in summaries)]
        for task, instruction in sorted(tasks)
    ]
    pooled = [
        card.estimate(summary["arms"]["none"]["metrics"]["success_rate"]) if summary["arms"] else "–"
        for summary in summaries.values()
    ]
    return card.table(["task", "the bowl is", *summaries], [*rows, ["", "**all**", *pooled]])


def controls_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per profile and arm: success, change against the untouched policy on the same units, collisions."""
    rows = []
    for profile, summary in summaries.items():
        changes = {entry["arm"]: entry for entry in summary["comparisons"] if entry["metric"] == "success_rate"}
        for arm, facts in summary["arms"].items():
            metrics, change = facts["metrics"], changes.get(arm)
            rows.append(
                [
                    profile,
                    ARM_LABELS.get(arm, arm),
                    card.estimate(metrics["success_rate"]),
                    card.estimate(change["difference"], signed=True) if change else "",
                    card.p_value(change["p_holm"]) if change else "",
                    card.estimate(metrics["collision_rate_1n"]),
                    card.estimate(metrics["collision_rate_10n"]),
                ]
            )
    heads = ["profile", "input", "SR", "change, paired", "p (McNemar, Holm)", "CR 1 N", "CR 10 N"]
    return card.table(heads, rows)


def evaluated_with(run: Mapping[str, Any]) -> str:
    """Weights, software and machine of a run, in one line."""
    model, facts = run["settings"]["model"], run["provenance"]
    named = [f"weights `{model.get('weights', '?')}`"]
    keys = ("mist_interp", "git_commit", "torch", "transformers", "mujoco", "robosuite", "libero", "cpu")
    return ", ".join([*named, *(f"{key} {facts[key]}" for key in keys if key in facts)])


def sizes(model: str) -> dict[str, str]:
    """Parameters of each part, and what the training data counted; nothing if the policy is not there any more."""
    try:
        vla = HookedVLA.from_pretrained(model)
    except (OSError, ValueError, KeyError):
        return {}
    config, policy = vla.policy.config, vla.policy
    dino, siglip = (f"width {tower.width}, {tower.depth} blocks" for tower in config.towers)
    shapes = {
        "vision_backbone.featurizer": f"DINOv2 tower, {dino}",
        "vision_backbone.fused_featurizer": f"SigLIP tower, {siglip}",
        "projector": "both towers to the language model's width",
        "language_model": f"Llama, {vla.cfg.n_layers} layers of {vla.cfg.d_model}",
        "proprio_projector": "robot state (8) to one token",
        "action_head": f"L1 regression of {vla.cfg.chunk} x {vla.cfg.action_dim} actions",
    }
    rows = [
        [f"`{part}`", meaning, f"{sum(p.numel() for p in policy.get_submodule(part).parameters()):,}"]
        for part, meaning in shapes.items()
        if hasattr(policy, part.partition(".")[0])
    ]
    total = sum(parameter.numel() for parameter in policy.parameters())
    counts = {name: entry.get("num_trajectories") for name, entry in (config.norm_stats or {}).items()}
    return {
        "sizes": card.table(["part", "what", "parameters"], [*rows, ["**all**", "", f"{total:,}"]]),
        "parameters": f"{total / 1e6:.1f} M",
        "episodes-at-start": ", ".join(str(count) for count in counts.values()),
    }


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
