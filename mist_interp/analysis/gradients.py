"""Which tokens does an action number depend on, according to the gradient?

At one site, with the activations x of a query and a baseline x0 of the same shape, a token's share is

    gradient x input       (x - x0) . d action / d x                                    one backward pass
    integrated gradients   (x - x0) . mean over points on the line from x0 to x         `points` passes

summed over the width. Integrated shares sum to the action minus the action at the baseline, as far as the points are
dense; what is missing is a row of its own, for both methods.

Where it misleads. A gradient says what an infinitely small change does; where the softmax is saturated it says
"nothing", although removing the token would change everything. Integrated gradients cross activations that no picture
produces, and their answer is relative to the baseline: a token that equals it has no share. Zero is a bad baseline for
a residual stream: the norms undo its size, so all of the change happens next to zero, between the points, and the
completeness error says so. Beyond the first layers a
token's activation holds other tokens' information too, so a map at layer 4 does not show where in the picture anything
is. Patching (`mist_interp.analysis.patching`) replaces instead of extrapolating; compare.

Source: Sundararajan, Taly and Yan 2017 (integrated gradients); Shrikumar et al. 2016 (gradient x input).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.analysis.head import (
    ActionTarget,
    action_unit,
    action_weights,
    read_states,
    refuse_diffusion,
    source_of,
    speaks_tokens,
    target_value,
    top_bins,
)
from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.several import Several
from mist_interp.core.axes import PatchAxis, TokenAxis, axis_of
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Site, SiteKey
from mist_interp.tracing.hooked import HookedVLA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("integrated", "gradient x input")
BASELINES = ("group mean", "query mean", "zero")
ERROR = "completeness error"
Method = Literal["integrated", "gradient x input"]
Baseline = Literal["group mean", "query mean", "zero"] | PolicyInputs | Tensor


@dataclass(frozen=True, eq=False)
class TokenAttribution(Several):
    """Shares of tokens in an action number.

    Attributes:
        tokens: (batch, token); padding has none.
        axis: what the tokens are.
        groups: shares of token groups, and the completeness error; axes (sample, group), rows of a sample sum to the
            action minus the action at the baseline.
    """

    main = "groups"

    tokens: Float[Tensor, "batch token"]
    axis: TokenAxis
    groups: Result

    @property
    def error(self) -> Result:
        """What the shares do not account for, per sample."""
        values = self.groups.values.sel(group=ERROR, drop=True)
        return Result(values, self.groups.unit, "Completeness error", self.groups.source)

    def patches(self) -> Result:
        """Shares of image patches: (sample, camera, row, col), row 0 at the top.

        Raises:
            UnknownName: the site has no patches.
        """
        if not isinstance(self.axis, TokenLayout | PatchAxis):
            raise UnknownName("token segment", "vision", self.axis.segments)
        index, grid, cameras = self.axis.select("vision").index, self.axis.grid, self.axis.cameras
        values = self.tokens.gather(1, index.to(self.tokens.device)).reshape(-1, len(cameras), *grid)
        axes = {"sample": range(len(values)), "camera": cameras, "row": range(grid[0]), "col": range(grid[1])}
        return self._result(labelled(values, **axes))

    def words(self, sample: int = 0) -> Result:
        """Shares of the prompt tokens of one sample; repeated words are numbered.

        Raises:
            UnknownName: the site has no prompt.
        """
        selection = self.axis.select("text")
        index = selection.index[sample][selection.valid[sample]]
        labels = _distinct(self.axis.labels("text", sample))
        return self._result(labelled(self.tokens[sample, index.to(self.tokens.device)], token=labels))

    def to_frame(self) -> pd.DataFrame:
        """One row per sample and token: sample, token, value."""
        rows: list[dict[str, Any]] = []
        selection = self.axis.select("all")
        for sample, (index, valid) in enumerate(zip(selection.index, selection.valid, strict=True)):
            values = self.tokens[sample].cpu()[index[valid]].tolist()
            labels = self.axis.labels("all", sample)
            rows += [{"sample": sample, "token": k, "value": v} for k, v in zip(labels, values, strict=True)]
        return pd.DataFrame(rows)

    def top(self, k: int = 10) -> pd.DataFrame:
        """The k tokens with the largest magnitude, over all samples."""
        frame = self.to_frame()
        return frame.iloc[frame["value"].abs().argsort(kind="stable")[::-1][:k]].reset_index(drop=True)

    def plot(self, sample: int = 0, pictures: Mapping[str, np.ndarray] | None = None, title: str = "") -> Figure:
        """The groups as bars, and a map per camera, on the pictures if there are any.

        Args:
            sample: which.
            pictures: camera -> (size, size, 3), what the policy sees (`analysis.attention.policy_pictures`).
            title: above; by default what the numbers are.
        """
        import matplotlib as mpl
        from matplotlib.figure import Figure

        from mist_interp.analysis.figures import SIGNED, STYLE

        maps = dict(self._maps(sample)) if isinstance(self.axis, TokenLayout | PatchAxis) else {}
        groups = self.groups.values.isel(sample=sample)
        labels, widths = groups.group.values.tolist(), [1.3, *[1] * len(maps)]
        high = max((float(np.abs(values).max()) for values in maps.values()), default=0.0) or 1.0
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(3.4 + 2.4 * len(maps), 2.7))
            first, *others = np.atleast_1d(figure.subplots(1, len(widths), width_ratios=widths))
            first.barh(range(len(labels)), groups.values, color=["0.6" if x == ERROR else "C0" for x in labels])
            first.set_yticks(range(len(labels)), labels)
            first.invert_yaxis()
            first.set_xlabel(self.groups.unit)
            for (camera, values), axes in zip(maps.items(), others, strict=True):
                extent = (0, values.shape[1], values.shape[0], 0)
                if pictures is not None:
                    axes.imshow(pictures[camera], extent=extent)
                alpha = 1.0 if pictures is None else 0.6
                image = axes.imshow(values, cmap=SIGNED, vmin=-high, vmax=high, extent=extent, alpha=alpha)
                axes.set_title(camera)
                axes.set_xticks([])
                axes.set_yticks([])
            if maps:
                figure.colorbar(image, ax=others, shrink=0.8)
            figure.suptitle(title or self.groups.what, fontsize=9, x=0.01, ha="left")
        return figure

    def _maps(self, sample: int) -> list[tuple[str, np.ndarray]]:
        values = self.patches().values.isel(sample=sample)
        return [(camera, values.sel(camera=camera).values) for camera in values.camera.values.tolist()]

    def _result(self, values: Any) -> Result:
        return Result(values, self.groups.unit, self.groups.what, self.groups.source)


def gradient_attribution(
    vla: HookedVLA,
    inputs: PolicyInputs,
    target: ActionTarget = "t0.dz",
    site: SiteKey = "hook_embed",
    method: Method = "integrated",
    baseline: Baseline = "group mean",
    points: int = 64,
    batch: int = 16,
) -> TokenAttribution:
    """Shares of the tokens at one site in one action number; see the module's text, also for where it misleads.

    Only the way through this site counts: at "projector.hook_out" the prompt and the robot state are held fixed.

    Args:
        vla: the policy.
        inputs: queries.
        target: "t0.dz", "dz" (mean over the chunk) or numbers with weights.
        site: any site with tokens: "hook_embed", ("resid_pre", 2), "projector.hook_out", ("z", 3), ...
        method: "integrated" or "gradient x input" (the gradient at the input alone).
        baseline: "group mean", every token its group's mean (cameras that see nothing in particular; a group of one
            token, like the robot state, keeps it and gets no share); "query mean", the mean over `inputs` at every
            position; other queries, whose activations are taken; the activations themselves; or "zero".
        points: of the line, for "integrated"; more, if the completeness error is not small beside the shares (on
            `mini`'s image patches a third of the change is missing with 16 points, a hundredth with 128).
        batch: samples of one forward, which go through together.

    Returns:
        Shares in the unit of the demonstrations; of policies that speak in tokens, in logits: of the bin that the
        policy chose for `inputs`, above the mean of all bins.

    Raises:
        UnknownName: no such target, site, method or baseline.
        ValueError: a diffusion head, or base OpenVLA: there is no gradient through its chosen tokens; a site without
            tokens; a baseline of another shape.
    """
    refuse_diffusion(vla, "a gradient of the action")
    if vla.cfg.variant == "base":
        raise ValueError(
            "base OpenVLA says its action numbers one after the other, and a chosen token has no gradient: use "
            "patching, or direct_action_attribution"
        )
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    if points < 1 or batch < 1:
        raise ValueError(f"points and batch are at least 1, not {points} and {batch}")
    place = vla.site(site)
    if place.hook.axis == "pattern":
        raise ValueError(f"{place} has pairs of tokens, not tokens; take ('z', {place.layer}) or another site")
    if speaks_tokens(vla) and place.order > vla.site(("resid_post", -1)).order:
        raise ValueError(f"{place} comes after resid_post[-1], from which logits are computed here; take that site")
    action_weights(vla, target)
    x, bins, value = _answer(vla, inputs, target, place)
    axis = axis_of(place.hook.axis, vla.layout(inputs), x.shape[1])
    x0 = _baseline(vla, baseline, place, x, axis)
    shares = [1.0] if method == "gradient x input" else [(k + 0.5) / points for k in range(points)]
    slope = _mean_slope(vla, inputs, target, place, x, x0, shares, bins, max(1, batch // len(x)))
    tokens = ((x.double() - x0.double()) * slope).flatten(2).sum(-1)
    _, _, value0 = _answer(vla, inputs, target, place, x0, bins)
    text = target if isinstance(target, str) else dict(target)
    named = baseline if isinstance(baseline, str) else "given"
    source = source_of(vla, target=text, site=str(place), method=method, baseline=named, points=len(shares))
    groups = {name: _sum(tokens, axis, name) for name in _groups(axis)}
    groups[ERROR] = value - value0 - tokens.sum(1)
    array = labelled(torch.stack(list(groups.values()), 1), sample=range(len(x)), group=list(groups))
    what = f"Share of tokens at {place} in {text}, {method}, baseline {named}"
    return TokenAttribution(tokens, axis, Result(array, action_unit(vla), what, source))


def _answer(
    vla: HookedVLA,
    inputs: PolicyInputs,
    target: ActionTarget,
    site: Site,
    new: Tensor | None = None,
    bins: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Activations of the site (or `new` in their place), bins that the policy chose, and the target, per sample."""
    seen: list[Tensor] = []

    def at_site(values: Tensor, _: Site) -> Tensor | None:
        seen.append(values.detach().clone() if new is None else new)
        return new

    last = vla.site(("resid_post", -1))
    with vla.hooks((site, at_site)):
        action, states = read_states(vla, inputs, last, detach=False)
    if not speaks_tokens(vla):
        return seen[0], None, (action.values * action_weights(vla, target).to(action.values)).sum((1, 2))
    if bins is None:
        bins = top_bins(vla, vla.policy.language_model.model.norm(states[last].detach()))
    return seen[0], bins, target_value(vla, states[last], target, bins=bins)


def _mean_slope(
    vla: HookedVLA,
    inputs: PolicyInputs,
    target: ActionTarget,
    site: Site,
    x: Tensor,
    x0: Tensor,
    shares: list[float],
    bins: Tensor | None,
    together: int,
) -> Tensor:
    """Gradient at the site, averaged over places on the line from x0 to x; several places go through in one forward."""
    total = torch.zeros_like(x, dtype=torch.float64)
    for start in range(0, len(shares), together):
        some = shares[start : start + together]
        repeated = PolicyInputs.cat([inputs] * len(some))
        with torch.enable_grad():
            leaf = torch.cat([x0 + share * (x - x0) for share in some]).detach().requires_grad_()
            chosen = None if bins is None else bins.repeat(len(some), 1)
            _, _, value = _answer(vla, repeated, target, site, leaf, chosen)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        total += gradient.double().unflatten(0, (len(some), -1)).sum(0)
    return total / len(shares)


def _baseline(vla: HookedVLA, baseline: Any, site: Site, x: Tensor, axis: TokenAxis) -> Tensor:
    if isinstance(baseline, PolicyInputs):
        found, _, _ = _answer(vla, baseline, "t0." + vla.cfg.action_names[0], site)
        baseline = found.expand(len(x), *found.shape[1:]) if len(found) == 1 else found
    if isinstance(baseline, Tensor):
        if baseline.shape != x.shape:
            raise ValueError(
                f"the baseline has shape {tuple(baseline.shape)}, the activations at {site} {tuple(x.shape)}: queries "
                "with prompts of one length have activations of one shape"
            )
        return baseline.to(x)
    if baseline not in BASELINES:
        raise UnknownName("baseline", baseline, [*BASELINES, "other inputs"])
    if baseline == "zero":
        return torch.zeros_like(x)
    if baseline == "query mean":
        if len(x) < 2 or (isinstance(axis, TokenLayout) and len(set(axis.prompt_lengths)) > 1):
            raise ValueError("a mean over queries needs at least two, with prompts of one length")
        return x.mean(0, keepdim=True).expand_as(x)
    x0 = x.clone()
    for name in _groups(axis):
        mask = axis.select(name).mask(x.shape[1]).to(x.device)
        for sample, inside in enumerate(mask):
            x0[sample, inside] = x[sample, inside].mean(0, keepdim=True)
    return x0


def _groups(axis: TokenAxis) -> list[str]:
    """Segments that share no token and together hold all."""
    if isinstance(axis, TokenLayout):
        names = ["bos", *axis.cameras, "proprio", "timestep", "text", "action_slot", "stop"]
        return [name for name in names if name in axis.segments]
    if isinstance(axis, PatchAxis):
        return [*axis.cameras, *(["prefix"] if axis.prefix else [])]
    return [name for name in axis.segments if name != "all"]


def _sum(tokens: Tensor, axis: TokenAxis, name: str) -> Tensor:
    mask = axis.select(name).mask(tokens.shape[1]).to(tokens.device)
    return (tokens * mask).sum(1)


def _distinct(labels: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    found = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        found.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return found
