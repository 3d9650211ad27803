"""Where in `mini` is the action decided: which layers could act, and from which tokens?

Read off every layer at the positions that the action head reads: the action lens, the same with a translator fitted on
other episodes, a ridge probe, and two controls. Then the causal side: the states of some tokens at some layer are taken
from another start state of the same task, and how far does the action go along?

What it shows on `mini` (315 frames of 60 episodes; errors on 15 episodes held out, relative to always answering the
mean action; shares of the way over 60 pairs of frames at the same control step, 16 or later):

    - The action is there after block 1 of four, but not yet in the head's terms: the lens errs by 0.73, a translator
      fitted on other episodes by 0.16, as little as a ridge probe (0.16). After block 2 it is 0.31, 0.05 and 0.11.
    - It is used from there: the states at `action_read` after block 1 take the action 0.88 of the way to that of the
      other frame; after block 0 they take it 0.01 of the way, although the probe reads some of the action there (0.45).
    - What differs between two start states reaches the action through the robot state (0.97 of the way when the
      proprioception token is taken over in the embeddings, 0.05 for all image patches together; 0.91 and 0.10 at the
      start of episodes). It does not go there straight: after block 0 it is the image tokens that carry it (0.87), the
      proprioception token no longer does (0.04). Hidden from the image tokens in block 0 the robot state moves the
      action 0.53 of the way instead of 0.97; hidden from the read positions 0.97, from the text 0.93 (the controls).
    - Which read position holds what matters little: dealing the last states to wrong positions costs 0.18, another
      frame's states 1.36.

    python experiments/analysis/lens.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from scenes import Scene, asked, begin, scenes

from mist_interp import HookedVLA
from mist_interp.analysis.attention.knockout import knockout_edits
from mist_interp.analysis.figures import STYLE
from mist_interp.analysis.lens import action_lens
from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.translator import READOUTS, TunedTranslator, compare_lenses, lens_caches
from mist_interp.core.inputs import PolicyInputs

TOKENS = ("vision", "action_read", "text", "proprio")


@dataclass(frozen=True)
class Settings:
    """Lens, translator, probe and controls on real frames of LIBERO, and the patches that test them."""

    policy: str = "mini"
    """Policy to look into."""

    per_task: int = 6
    """Start states per task."""

    every: int = 16
    """Control steps between two frames of an episode."""

    until: int = 96
    """Control step before which frames are taken."""

    pairs: int = 60
    """Pairs of frames (same task, same control step, other start state) that are patched."""

    out: Path = Path("results/analysis/lens")
    """Folder of figures and numbers."""


def main(settings: Settings) -> None:
    """Write the figures and print what they show."""
    vla = begin(settings.policy, settings.out, attn_implementation="eager")
    shots = scenes(settings.per_task, steps=tuple(range(0, settings.until, settings.every)))
    inputs = asked(vla, shots)
    episodes = [(shot.task, shot.init_state) for shot in shots]
    caches = lens_caches(vla, inputs)

    comparison = compare_lenses(vla, caches, episodes)
    translator = TunedTranslator.fit(vla, caches, episodes)
    translator.save(settings.out / "translator")
    first = inputs[: settings.until // settings.every]
    action_lens(vla, first).plot(title=f"Action lens of {len(first)} frames of one episode, chunk step t0").savefig(
        settings.out / "lens.png", dpi=150
    )
    action_lens(vla, inputs).error_to_final().plot().savefig(settings.out / "error.png", dpi=150)
    comparison.save(settings.out / "comparison.json")

    later = pairs(shots, settings.pairs, at_start=False)
    followed = follow(vla, inputs, later)
    followed.save(settings.out / "patched.json")
    picture(comparison, followed).savefig(settings.out / "where.png", dpi=150)
    tell(len(shots), len(set(episodes)), comparison, followed, translator)
    print("the same at the start of episodes, where the robot stands alike:")
    print(follow(vla, inputs, pairs(shots, settings.pairs, at_start=True)).values.to_pandas().round(2).to_string())
    print("robot state taken from the other frame, while in block 0 it is hidden from:")
    print({name: round(share, 2) for name, share in routes(vla, inputs, later).items()})


def pairs(shots: list[Scene], count: int, at_start: bool, seed: int = 0) -> list[tuple[int, int]]:
    """Frames of one task at one control step, from two start states; at the start of episodes, or later."""
    found = [
        (a, b)
        for a, one in enumerate(shots)
        for b, other in enumerate(shots)
        if (one.task, one.step) == (other.task, other.step)
        and one.init_state != other.init_state
        and (one.step == 0) == at_start
    ]
    order = np.random.default_rng(seed).permutation(len(found))[:count]
    return [found[k] for k in order]


def layer_site(layer: str) -> str | tuple[str, int]:
    """Site of a label of the lens."""
    return "hook_embed" if layer == "embed" else ("resid_post", int(layer))


def follow(vla: HookedVLA, inputs: PolicyInputs, chosen: list[tuple[int, int]], batch: int = 20) -> Result:
    """How far the action goes toward another frame's when some tokens take that frame's states at one layer."""
    layers = ["embed", *map(str, range(vla.cfg.n_layers))]
    moved = torch.zeros(len(TOKENS), len(layers), dtype=torch.float64)
    whole = 0.0
    for start in range(0, len(chosen), batch):
        here, action, cache, way = both(vla, inputs, chosen[start : start + batch])
        whole += float(way.pow(2).sum())
        for t, tokens in enumerate(TOKENS):
            given = cache.select(tokens)
            for k, layer in enumerate(layers):
                with vla.hooks(patch(layer_site(layer), given, tokens)):
                    gone = vla(here).normalized.double() - action
                moved[t, k] += (gone * way).sum()
    values = labelled(moved / whole, tokens=TOKENS, layer=layers)
    return Result(values, "share of the way", "How far the action goes along when tokens take another frame's states")


def routes(vla: HookedVLA, inputs: PolicyInputs, chosen: list[tuple[int, int]], batch: int = 20) -> dict[str, float]:
    """The same for the robot state in the embeddings, while some tokens cannot see it in block 0."""
    blind = {"nobody": None, "vision": "vision", "action_read": "action_read", "text": "text"}
    heads = [(0, head) for head in range(vla.cfg.n_heads)]
    moved, whole = dict.fromkeys(blind, 0.0), 0.0
    for start in range(0, len(chosen), batch):
        here, _, cache, way = both(vla, inputs, chosen[start : start + batch])
        whole += float(way.pow(2).sum())
        change = patch("hook_embed", cache.select("proprio"), "proprio")
        for name, queries in blind.items():
            edits = [] if queries is None else knockout_edits(vla, here, heads, "proprio", queries)
            with vla.hooks(*edits):
                before = vla(here).normalized.double()
                with vla.hooks(change):
                    moved[name] += float(((vla(here).normalized.double() - before) * way).sum())
    return {name: value / whole for name, value in moved.items()}


def both(vla: HookedVLA, inputs: PolicyInputs, part: list[tuple[int, int]]) -> tuple[PolicyInputs, Any, Any, Any]:
    """Queries, their actions, activations of the other frames, and the way from these actions to the others."""
    here, there = (PolicyInputs.cat([inputs[pair[k]] for pair in part]) for k in (0, 1))
    action = vla(here).normalized.double()
    other, cache = vla.run_with_cache(there, ["hook_embed", "resid_post"])
    return here, action, cache, other.normalized.double() - action


def patch(site: Any, given: Any, tokens: str) -> tuple[Any, Any, str]:
    """Hook that puts captured states in place."""
    values = given[site].values
    return site, lambda _, site: values, tokens


def picture(comparison: Result, followed: Result) -> Figure:
    """What can be read, beside what is used."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 3.6))
        left, right = figure.subplots(1, 2)
        for name in READOUTS:
            control = name in READOUTS[3:]
            errors = comparison.sel(readout=name).values.mean("dim")
            left.plot(errors.layer, errors, marker="o", ms=3, label=name, ls=":" if control else "-")
        left.axhline(1, color="0.7", lw=0.8)
        left.set(ylim=(0, 2), xlabel="layer", ylabel="error / error of the mean action")
        left.set_title("Read at action_read, held-out episodes")
        for name in TOKENS:
            shares = followed.sel(tokens=name).values
            right.plot(shares.layer, shares, marker="o", ms=3, label=name)
        right.set(
            ylim=(-0.05, 1.05), xlabel="layer whose states are replaced", ylabel="share of the way to the other action"
        )
        right.set_title("Patched from another start state")
        left.legend(loc="lower left")
        right.legend(loc="center right")
    return figure


def tell(frames: int, episodes: int, comparison: Result, followed: Result, translator: TunedTranslator) -> None:
    """Print the numbers in sentences."""
    error = comparison.values.mean("dim")
    print(f"{frames} frames of {episodes} episodes; held out: {translator.source['episodes']['held out']} episodes")
    print("error of the read-out, relative to the mean action (mean over dimensions):")
    print(error.to_pandas().round(2).to_string())
    print("variance of the last states left by the translator:", translator.held_out.values.round(2).values.tolist())
    print("share of the way that the action goes along:")
    print(followed.values.to_pandas().round(2).to_string())


if __name__ == "__main__":
    main(tyro.cli(Settings))
