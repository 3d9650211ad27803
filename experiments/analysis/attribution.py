"""Which parts of `mini` write the first vertical motion, and is the attribution right?

Direct action attribution of dz at chunk step 0 to all attention heads, against the mean over real frames. Three checks:
the head without its linear view (take a part out of the final stream and run the action head again), the network
(replace a head by its mean at the read positions and run everything behind it), and random heads of the same layer.
Then integrated gradients on the image patches: the patches with the largest shares are blanked, against random ones.

What it shows on `mini` (60 frames; dz at chunk step 0 has a spread of 0.62 over them):

    - Without a baseline the rows sum to the action, with an error of 2e-07. Against the mean frame, the tangent at the
      input misses two thirds of the difference ("live" 66 %, "frozen" 75 %); the gradient averaged over the way misses
      1 %. Between the two most different frames (1.13 and -1.01): attention and MLP of block 2 write 0.65 each.
    - Over all pairs of frame and head, the share correlates with what taking the head out of the last state does with
      0.94 ("live"), 0.88 ("path"), 0.83 ("frozen"); with what ablating it in the network does with 0.54 to 0.60: with
      0.90 in blocks 2 and 3 ("live") and 0.44 in blocks 0 and 1, whose heads act through later blocks.
    - L3H1 has the largest share (0.11): ablating it changes dz by 0.068, the other heads of its block by 0.018 to
      0.023. L1H1 (0.11): 0.23 against 0.08 to 0.14. L2H3 (0.10): 0.098 against 0.061 to 0.077. Ranked by their mean
      magnitude, shares and effects of the 16 heads agree with 0.88.
    - Image patches: blanking the 8 patches of 128 with the largest integrated shares changes dz by 0.076, 8 random
      ones by 0.011, all by 0.15 (20 frames; gradient x input finds patches worth 0.035, and misses nearly all of the
      change). No object stands out: the 8 % of patches that show the target bowl hold 9 % of the shares.

    python experiments/analysis/attribution.py
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from scenes import TARGET, Scene, asked, begin, scenes

from mist_interp import HookedVLA
from mist_interp.analysis.attention.pictures import patch_shares, policy_pictures
from mist_interp.analysis.attribution import ActionAttribution, direct_action_attribution
from mist_interp.analysis.figures import STYLE, heat_map
from mist_interp.analysis.gradients import TokenAttribution, gradient_attribution
from mist_interp.analysis.head import action_weights, read_states, target_value
from mist_interp.core.inputs import PolicyInputs


@dataclass(frozen=True)
class Settings:
    """Attribution of one action number on real frames, and what ablation says about it."""

    policy: str = "mini"
    """Policy to look into."""

    target: str = "t0.dz"
    """Action number."""

    per_task: int = 6
    """Start states per task."""

    every: int = 16
    """Control steps between two frames of an episode."""

    until: int = 96
    """Control step before which frames are taken."""

    frames: int = 60
    """Frames that are looked at, drawn from those."""

    pictures: int = 20
    """Frames whose image patches are attributed (64 passes each)."""

    patches: int = 8
    """Image patches that are blanked, of both cameras."""

    out: Path = Path("results/analysis/attribution")
    """Folder of figures and numbers."""


def main(settings: Settings) -> None:
    """Write the figures and print what they show."""
    vla = begin(settings.policy, settings.out)
    shots = scenes(settings.per_task, steps=tuple(range(0, settings.until, settings.every)))
    chosen = np.random.default_rng(0).permutation(len(shots))[: settings.frames]
    shots = [shots[k] for k in sorted(chosen)]
    inputs = asked(vla, shots)

    parts = direct_action_attribution(vla, inputs, settings.target)
    parts.plot().savefig(settings.out / "parts.png", dpi=150)
    print(f"{len(shots)} frames, {settings.target}")
    off = np.abs(parts.total.values.values - answer(vla, inputs, settings.target)).max()
    error = np.abs(parts.error.values.values).max()
    print(f"without a baseline: rows sum to the action to {off:.0e}, linearization error at most {error:.0e}")
    check_heads(vla, inputs, settings)
    check_difference(vla, inputs, settings)
    some = slice(None, None, max(1, len(shots) // settings.pictures))
    check_patches(vla, inputs[some], shots[some], settings)


def answer(vla: HookedVLA, inputs: PolicyInputs, target: str) -> np.ndarray:
    """The action number of every frame."""
    return (vla(inputs).values * action_weights(vla, target)).sum((1, 2)).numpy()


def check_heads(vla: HookedVLA, inputs: PolicyInputs, settings: Settings) -> None:
    """Shares of all heads against what replacing them by their mean does."""
    action = answer(vla, inputs, settings.target)
    total, direct = ablate_heads(vla, inputs, settings.target, action)
    shares: dict[str, ActionAttribution] = {
        how: direct_action_attribution(vla, inputs, settings.target, "head", "mean", how)  # type: ignore[arg-type]
        for how in ("frozen", "live", "path")
    }
    print(
        f"spread of {settings.target} over the frames: {action.std():.3f}; correlation over {total.size} (frame, head):"
    )
    for how, result in shares.items():
        grid = result.grid().values.values
        error = np.abs(result.error.values.values).mean() / np.abs(result.total.values.values).mean()
        per_layer = [round(correlation(grid[:, layer], total[:, layer]), 2) for layer in range(grid.shape[1])]
        print(
            f"  {how:6s} with the direct effect {correlation(grid, direct):.2f}, with the effect of ablation "
            f"{correlation(grid, total):.2f} (layers {per_layer}); linearization error {error:.0%} of the difference"
        )
    size = np.abs(shares["path"].grid().values.values).mean(0)
    effect = np.abs(total).mean(0)
    layers = np.argsort(-size.max(1))[:3]
    for layer in layers:
        best = int(size[layer].argmax())
        others = [head for head in range(size.shape[1]) if head != best]
        print(
            f"  L{layer}H{best}: mean |share| {size[layer, best]:.3f}; ablating it changes the number by "
            f"{effect[layer, best]:.3f}, the other heads of its layer by {effect[layer, others].mean():.3f} "
            f"({effect[layer, others].min():.3f} to {effect[layer, others].max():.3f})"
        )
    rank = correlation(np.argsort(np.argsort(size.ravel())), np.argsort(np.argsort(effect.ravel())))
    print(f"  rank correlation of mean |share| and mean |effect| over the {size.size} heads: {rank:.2f}")
    heads_picture(size, effect, shares["path"].grid().values.values, total, settings).savefig(
        settings.out / "heads.png", dpi=150
    )


def ablate_heads(
    vla: HookedVLA, inputs: PolicyInputs, target: str, action: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Action minus action without the head (at its mean over the frames): through the network, and directly."""
    cfg = vla.cfg
    last = vla.site(("resid_post", -1))
    _, states = read_states(vla, inputs, ["z", last])
    total = np.zeros((len(inputs), cfg.n_layers, cfg.n_heads))
    direct = np.zeros_like(total)
    for layer in range(cfg.n_layers):
        z = states[vla.site(("z", layer))]
        weight = vla.policy.language_model.model.layers[layer].self_attn.o_proj.weight
        for head in range(cfg.n_heads):

            def ablate(values: torch.Tensor, site: object, head: int = head, z: torch.Tensor = z) -> torch.Tensor:
                new = values.clone()
                new[:, :, head] = z.mean(0)[:, head]
                return new

            with vla.hooks((("z", layer), ablate, "action_read")):
                total[:, layer, head] = action - answer(vla, inputs, target)
            columns = weight[:, head * cfg.d_head : (head + 1) * cfg.d_head]
            written = (z - z.mean(0))[:, :, head] @ columns.T
            direct[:, layer, head] = action - target_value(vla, states[last] - written, target).numpy()
    return total, direct


def check_difference(vla: HookedVLA, inputs: PolicyInputs, settings: Settings) -> None:
    """Two frames of the most different answers: which parts make the difference."""
    action = answer(vla, inputs, settings.target)
    high, low = int(action.argmax()), int(action.argmin())
    shares = direct_action_attribution(vla, inputs[high], settings.target, "component", inputs[low])
    shares.plot(title=f"{settings.target}: {action[high]:.2f} against {action[low]:.2f}").savefig(
        settings.out / "difference.png", dpi=150
    )
    top = shares.top(3)
    print(
        f"two frames, {action[high]:.3f} and {action[low]:.3f}: rows sum to {shares.total.values.item():.3f}, "
        f"linearization error {shares.error.values.item():.3f}; largest: "
        + ", ".join(f"{row} {value:.2f}" for row, value in zip(top["row"], top["value"], strict=True))
    )


def check_patches(vla: HookedVLA, inputs: PolicyInputs, shots: list[Scene], settings: Settings) -> None:
    """Blank the patches with the largest shares, against random patches and against the gradient's own maps."""
    action = answer(vla, inputs, settings.target)
    found: dict[str, TokenAttribution] = {
        method: gradient_attribution(vla, inputs, settings.target, "projector.hook_out", method, batch=len(inputs))  # type: ignore[arg-type]
        for method in ("integrated", "gradient x input")
    }
    rng = np.random.default_rng(0)
    whole = np.abs(found["integrated"].groups.values.sum("group")).mean().item()
    for method, result in found.items():
        change = np.abs(action - blanked(vla, inputs, settings, result.tokens.abs()))
        error = np.abs(result.error.values.values).mean()
        print(
            f"{method}: blanking the {settings.patches} patches with the largest shares changes the number by "
            f"{change.mean():.3f}; completeness error {error:.3f} of {whole:.3f}, what blanking all patches does"
        )
    noise = torch.from_numpy(rng.random(tuple(found["integrated"].tokens.shape)))
    change = np.abs(action - blanked(vla, inputs, settings, noise))
    print(f"{settings.patches} random patches: {change.mean():.3f}")
    covered = patch_shares(vla, {TARGET: [{c: shot.mask(c, TARGET) for c in shot.masks} for shot in shots]})
    bowl = covered.values.values[:, 0].reshape(len(shots), -1)
    size = found["integrated"].tokens.abs().numpy()
    on = (size * (bowl >= 0.25)).sum(1) / size.sum(1)
    print(
        f"patches with the bowl: {100 * (bowl >= 0.25).mean():.1f} % of all, {100 * on.mean():.1f} % of the "
        "magnitude of the integrated shares"
    )
    sample = int(np.abs(action - action.mean()).argmax())
    pictures = {camera: values[sample] for camera, values in policy_pictures(vla, inputs).items()}
    found["integrated"].plot(sample, pictures).savefig(settings.out / "patches.png", dpi=150)


def blanked(vla: HookedVLA, inputs: PolicyInputs, settings: Settings, size: torch.Tensor) -> np.ndarray:
    """The action number when the patches of the largest size are the mean patch of their camera."""
    chosen = torch.zeros_like(size, dtype=torch.bool).scatter(1, size.topk(settings.patches).indices, True)

    def blank(values: torch.Tensor, site: object) -> torch.Tensor:
        cameras = values.unflatten(1, (2, -1))
        means = cameras.mean(2, keepdim=True).expand_as(cameras).flatten(1, 2)
        return torch.where(chosen[..., None], means, values)

    with vla.hooks(("projector.hook_out", blank)):
        return answer(vla, inputs, settings.target)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r over all numbers."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def heads_picture(size: np.ndarray, effect: np.ndarray, shares: np.ndarray, total: np.ndarray, s: Settings) -> Figure:
    """Two grids of heads, and every (frame, head) as a dot."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.4))
        left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.2])
        for axes, values, title in (
            (left, size, "mean |direct share|"),
            (middle, effect, "mean |change| when ablated"),
        ):
            image = heat_map(axes, values, *(list(range(size)) for size in values.shape), 0.0, values.max())
            axes.set(xlabel="head", ylabel="layer", title=title)
            figure.colorbar(image, ax=axes, shrink=0.8)
        for layer in range(shares.shape[1]):
            right.plot(shares[:, layer].ravel(), total[:, layer].ravel(), ".", ms=2, label=f"layer {layer}")
        right.axline((0, 0), slope=1, color="0.7", lw=0.8)
        right.set(xlabel=f"direct share in {s.target}", ylabel="change when ablated", title="each frame and head")
        right.legend(markerscale=4, fontsize=6)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Settings))
