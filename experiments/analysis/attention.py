"""Which heads of mini look at the bowl, and does the action depend on it?

    python experiments/analysis/attention.py

Real frames of libero_spatial, 4 start states of each task at control steps 0, 16, 24 and 40: 160 scenes. Heads are
ranked by two start states of each task and judged, and blinded, on the other two. Figures go to `results/analysis/`.

What it showed for the shipped weights:

- action_read gives 75 % of its attention to the two pictures, 11 % to the prompt, 2 % to the robot state. Blinding all
  of its heads to a segment moves dx dy dz by 0.22 (agentview), 0.18 (wrist), 0.05 (robot state), 0.05 (text) standard
  deviations over scenes at step 0, and by 0.26, 0.45, 0.01, 0.05 at step 24. That cuts only what action_read fetches
  itself: the prompt decides everything (with another task's instruction no success, see the model card), by way of
  other tokens.
- In block 0 the heads of action_read look everywhere evenly, because the placeholders enter it as zeros.
- One head of 16 follows the target bowl, L1H3: 16.7 % of its attention on the bowl, 9.9 % if the masks are those of
  other scenes (gain 6.8 points, 95 % interval over tasks 2.7 to 10.8, in the judged half), and no gain on the other,
  identical bowl (-0.4). Spearman of all heads' gains between the halves: 0.99. The gain comes with the approach: -0.6
  points at step 0, when the wrist camera often does not see the bowl, then 3.4, 4.4 and 7.9. Within one step the
  intervals reach below zero (at step 40 from -1.2 to 16.5): the bowl then stands at nearly the same place of the wrist
  picture in all scenes, and following and habit look alike.
- The action depends on it. At step 24, L1H3 of action_read blinded to the bowl's 17 patches moves dx dy dz by 0.114
  standard deviations; as many other patches of the same cameras 0.008 (difference 0.038 to 0.184); other heads blinded
  to the bowl 0.014 (difference 0.034 to 0.178). All 16 heads together: 0.179, so most of what action_read itself
  fetches from the bowl's patches comes through this one head. At step 40: 0.069, 0.005, 0.017, all heads 0.146.
- At step 0 nothing does: 0.001 for L1H3, 0.008 for all heads, less than for other patches (0.014).
- Tokens with more than 5 times the even share: the robot state and four patches. They have 9 % of the attention of
  action_read on average and 27 % in one head. BOS is no sink.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from scenes import GOAL, TARGET, Scene, asked, begin, scenes

from mist_interp import HookedVLA, PolicyInputs
from mist_interp.analysis.attention.knockout import Head, knockout_edits, patch_keys, random_patches
from mist_interp.analysis.attention.mass import camera_attention, segment_mass
from mist_interp.analysis.attention.objects import clustered_interval, track
from mist_interp.analysis.attention.pictures import overlay, patch_shares, policy_pictures
from mist_interp.analysis.attention.sinks import find_sinks, received, sink_view
from mist_interp.analysis.result import Result, labelled

OBJECTS = {"target bowl": TARGET, "other bowl": "akita_black_bowl_2", "plate": GOAL}
SHOWN = 0.05  # share of a patch from which on it counts as showing the bowl
KEYS = ["agentview", "wrist", "proprio", "text", "action_slot"]


@dataclass(frozen=True)
class Settings:
    """Attention of mini on real scenes, and what blinding heads to the bowl does."""

    policy: str = "mini"
    """Policy to look at."""

    per_task: int = 4
    """Start states per task; the first half ranks the heads, the second half judges them."""

    steps: tuple[int, ...] = (0, 16, 24, 40)
    """Control steps at which scenes are taken."""

    heads: int = 1
    """How many of the best heads are blinded."""

    draws: int = 4
    """Random sets of patches and of heads to compare with."""

    out: Path = Path("results/analysis")
    """Folder of the figures."""


def main(settings: Settings) -> None:
    """Print one sentence per figure."""
    console = Console(width=120)
    vla = begin(settings.policy, settings.out, dtype="float32", attn_implementation="eager")
    shots = scenes(per_task=settings.per_task, steps=settings.steps)
    inputs = asked(vla, shots)
    look(vla, inputs, settings.out, console)

    shares = patch_shares(vla, {label: masks(shots, name) for label, name in OBJECTS.items()})
    attention = camera_attention(vla, inputs)
    middle = sorted({shot.init_state for shot in shots})[settings.per_task // 2]
    first = [k for k, shot in enumerate(shots) if shot.init_state < middle]
    second = [k for k, shot in enumerate(shots) if shot.init_state >= middle]
    best = rank(attention, shares, shots, first, second, settings, console)
    show(vla, inputs, shares, best[0], shots, settings.out)
    blind(vla, inputs, shares, shots, second, best, settings, console)


def look(vla: HookedVLA, inputs: PolicyInputs, out: Path, console: Console) -> None:
    """Where the read positions look, sinks and all."""
    mass = segment_mass(vla, inputs, ["action_read"], KEYS).sel(**{"from": "action_read"})
    table = mass.values.mean("sample").stack(which=("layer", "head"))
    labels = [f"L{layer}H{head}" for layer, head in table["which"].values]
    by_head = Result(labelled(table.values.T, head=labels, to=mass.axes["to"]), mass.unit, mass.what)
    by_head.plot(title="Where action_read looks, mean over scenes").savefig(out / "attention_segments.png", dpi=130)
    got = received(vla, inputs)
    sinks = find_sinks(got, factor=5)
    most = got.values.mean("head")
    strongest = got.to_frame().sort_values("value", ascending=False).iloc[0]
    head = f"L{strongest['layer']}H{strongest['head']}"
    console.print(
        f"Mean over heads and layers, action_read gives {describe(by_head)}. Most attended token of a layer (mean over "
        f"heads): {float(most.max()):.1f} times the even share; of one head: {strongest['token']} in {head} with "
        f"{strongest['value']:.1f}. Sinks above 5 times: {', '.join(sinks) or 'none'}."
    )
    if sinks:
        share = sink_view(vla, inputs, list(sinks), ["action_read"]).share.values.mean(["sample", "from"])
        console.print(
            f"They have {float(share.mean()):.0%} of the attention of action_read, at most {float(share.max()):.0%}."
        )


def describe(by_head: Result) -> str:
    """Shares per segment in words."""
    means = by_head.values.mean("head")
    return ", ".join(f"{float(means.sel(to=name)):.0%} to {name}" for name in by_head.axes["to"])


def masks(shots: list[Scene], name: str) -> list[dict[str, np.ndarray]]:
    """Pixels of an object in every scene and camera."""
    return [{camera: shot.mask(camera, name) for camera in shot.masks} for shot in shots]


def rank(
    attention: Result,
    shares: Result,
    shots: list[Scene],
    first: list[int],
    second: list[int],
    settings: Settings,
    console: Console,
) -> list[Head]:
    """Rank heads by how they follow the target bowl in one half of the start states, judge in the other."""
    tables = {}
    for half, places in (("ranked", first), ("judged", second)):
        tracking = track(attention.sel(sample=places), shares.sel(sample=places), [shots[k].task for k in places])
        tables[half] = tracking.ranking("target bowl").set_index(["layer", "head"])
    order = tables["ranked"].index.tolist()
    judged = tables["judged"].loc[order]
    agreement = tables["ranked"]["gain"].corr(judged["gain"], method="spearman")
    labels = [f"L{layer}H{head}" for layer, head in order]
    columns = ["mass", "even", "elsewhere", "gain"]
    table = Result(
        labelled(judged[columns].to_numpy(), head=labels, of=columns), "share", "Attention on the target bowl."
    )
    table.plot(title="Attention of action_read on the target bowl").savefig(
        settings.out / "attention_tracking.png", dpi=130
    )
    best = [(int(layer), int(head)) for layer, head in order[: settings.heads]]
    console.print(f"Heads by gain on the target bowl; order agrees between halves with Spearman {agreement:.2f}.")
    everything = track(attention, shares, [shot.task for shot in shots])
    others = {name: everything.ranking(name).set_index(["layer", "head"]) for name in OBJECTS}
    for layer, head in best:
        row, other = judged.loc[(layer, head)], others["other bowl"].loc[(layer, head)]
        plate = others["plate"].loc[(layer, head)]
        console.print(
            f"  L{layer}H{head}: mass {row['mass']:.3f}, even {row['even']:.3f}, elsewhere {row['elsewhere']:.3f}, "
            f"gain {row['gain']:.3f} ({row['low']:.3f} to {row['high']:.3f}); gain in all scenes: "
            f"other bowl {other['gain']:.3f} ({other['low']:.3f} to {other['high']:.3f}), plate {plate['gain']:.3f}"
        )
    for step in settings.steps:  # at one moment of the episode, where the bowl's place in the wrist picture is no clock
        now = [k for k, shot in enumerate(shots) if shot.step == step]
        tracking = track(attention.sel(sample=now), shares.sel(sample=now), [shots[k].task for k in now])
        row = tracking.ranking("target bowl").set_index(["layer", "head"]).loc[best[0]]
        console.print(
            f"  {named(best[:1])} at step {step} against other scenes of that step: mass {row['mass']:.3f}, elsewhere "
            f"{row['elsewhere']:.3f}, gain {row['gain']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        )
    return best


def show(vla: HookedVLA, inputs: PolicyInputs, shares: Result, head: Head, shots: list[Scene], out: Path) -> None:
    """The best head over both pictures, in one start scene of six tasks, and per action dimension in one."""
    pictures = policy_pictures(vla, inputs)
    wanted = ((0, 0), (2, 24), (5, 16), (9, 24))
    places = [next(k for k, shot in enumerate(shots) if (shot.task, shot.step) == pair) for pair in wanted]
    for k in places:
        outlines = {
            c: shares.sel(sample=k, object="target bowl", camera=c).values.values for c in ("agentview", "wrist")
        }
        one = {camera: pictures[camera][k] for camera in pictures}
        dims = ["action_read", *(f"action_read.t0.{name}" for name in ("dx", "dy", "dz", "gripper"))]
        maps = camera_attention(vla, inputs[k], dims, layers=[head[0]]).sel(sample=0, layer=head[0], head=head[1])
        figure = overlay(maps, one, outlines, f"L{head[0]}H{head[1]}: {shots[k].instruction} (target bowl framed)")
        figure.savefig(out / f"attention_overlay_task{shots[k].task}_step{shots[k].step}.png", dpi=130)


def blind(
    vla: HookedVLA,
    inputs: PolicyInputs,
    shares: Result,
    shots: list[Scene],
    judged: list[int],
    best: list[Head],
    settings: Settings,
    console: Console,
) -> None:
    """Knock out attention to segments and to the bowl's patches; the controls are other patches and other heads."""
    with torch.no_grad():
        spread = vla(inputs).normalized.std(0).numpy()  # of every number of the chunk, over all scenes
    rng = np.random.default_rng(0)
    heads = [(layer, head) for layer in range(vla.cfg.n_layers) for head in range(vla.cfg.n_heads)]
    others = [head for head in heads if head not in best]

    of_target = shares.sel(object="target bowl").values
    patches = (of_target >= SHOWN).sum(["row", "col"]).max("camera").values
    for step in settings.steps:
        # In the hand, the bowl may fill so much of the wrist camera that as many other patches are not there.
        at = [k for k in judged if shots[k].step == step and 0 < patches[k] <= vla.cfg.patch_grid[0] ** 2 // 2]
        some = PolicyInputs.cat([inputs[k] for k in at])
        layout, tasks = vla.layout(some), [shots[k].task for k in at]
        with torch.no_grad():
            before = vla(some).normalized

        def moved(
            which: list[Head] | None,
            where: str | torch.Tensor,
            some: PolicyInputs = some,
            before: torch.Tensor = before,
        ) -> np.ndarray:
            """Per scene: root mean square over the chunk and dx dy dz, in deviations of the action over scenes."""
            with torch.no_grad(), vla.hooks(*knockout_edits(vla, some, which, where)):
                shift = (vla(some).normalized - before).numpy() / spread
            return np.sqrt((shift[..., :3] ** 2).mean((1, 2)))

        whole = ", ".join(f"{name} {moved(None, name).mean():.2f}" for name in KEYS[:4])
        console.print(f"Step {step}, {len(at)} scenes. All heads of action_read blinded to a segment, in sd: {whole}")
        keys = patch_keys(vla, some, shares.sel(sample=at, object="target bowl"), SHOWN)
        cameras = [layout.mask(camera) for camera in layout.cameras]
        controls = [
            torch.stack([random_patches(keys & camera, camera, seed) for camera in cameras]).any(0)
            for seed in range(settings.draws)
        ]
        real = {}
        for name, which in (("all heads", None), (named(best), best)):
            real[name] = moved(which, keys)
            chance = np.mean([moved(which, control) for control in controls], axis=0)
            low, high = clustered_interval((real[name] - chance)[:, None], tasks)
            console.print(
                f"  {name}, the bowl's {keys.sum(1).float().mean():.0f} patches: {real[name].mean():.3f} sd; as many "
                f"other patches {chance.mean():.3f} (difference {low[0]:+.3f} to {high[0]:+.3f})"
            )
        draws = [
            [others[k] for k in rng.choice(len(others), len(best), replace=False)] for _ in range(2 * settings.draws)
        ]
        chance = np.mean([moved(which, keys) for which in draws], axis=0)
        low, high = clustered_interval((real[named(best)] - chance)[:, None], tasks)
        console.print(
            f"  random other heads, the bowl's patches: {chance.mean():.3f} sd (difference {low[0]:+.3f} to "
            f"{high[0]:+.3f})"
        )


def named(heads: list[Head]) -> str:
    """L1H3 and so on."""
    return ", ".join(f"L{layer}H{head}" for layer, head in heads)


if __name__ == "__main__":
    main(tyro.cli(Settings))
