"""Does a policy still act the same on what a sparse autoencoder keeps of its activations?

The activations of one site are replaced during the forward pass, in the arms

    sae          by the reconstruction x'
    sae + error  by x' + (x - x'): nothing is lost, so nothing may change but rounding; the ground for editing features
    pca          by the projection on as many principal components of the training rows as features are active
    mean         by the mean of the training rows: everything about this query is lost

and the change of the actions is measured in standard deviations of the unedited actions over the queries given:

    change[arm, dim] = sqrt(mean over queries and chunk steps of (a_arm - a)^2) / sd(a)
    recovered[arm]   = 1 - change[arm] / change[mean]        both as root mean square over the dimensions

Where it misleads: a site whose mean is as good as itself gives a `recovered` of nothing by nothing, so read `change`
first; a standard deviation over few or similar queries is small and makes every change look large; the gripper jumps
between two values, so its standard deviation says little of a typical change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.sae.autoencoder import SparseAutoencoder, site_of
from mist_interp.analysis.sae.quality import principal_components
from mist_interp.analysis.several import Several
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site

Change = Callable[[Tensor], Tensor]
Function = Callable[[Tensor, Site], Tensor]
BATCH = 16
ACTION_SD = "standard deviations of the action"


@dataclass(frozen=True, eq=False)
class Splice(Several):
    """Change of the actions when a site is replaced.

    Attributes:
        change: (arm, dim) root mean square change, in standard deviations of the unedited action.
        recovered: (arm,) share of what the mean destroys that is not destroyed.
        action_sd: (dim,) the unit, in normalised actions.
    """

    main = "change"

    change: Result
    recovered: Result
    action_sd: Result


def splice(
    vla: Any,
    inputs: PolicyInputs,
    sae: SparseAutoencoder,
    *,
    arms: Iterable[str] | None = None,
    components: int | None = None,
    batch_size: int = BATCH,
) -> Splice:
    """Replace the site of an autoencoder by what it keeps, and compare the actions.

    Args:
        vla: the policy; edits that are live stay live in all arms.
        inputs: queries, best from episodes that were not trained on.
        sae: fitted on rows of a site of this policy.
        arms: some of `sae`, `sae + error`, `pca`, `mean`; all by default.
        components: of the `pca` arm; k by default.
        batch_size: queries per forward pass.

    Raises:
        UnknownName: an arm that there is not.
        ValueError: the actions of these queries do not vary, or the autoencoder has no site.
    """
    site = site_of(sae)
    edits = replacements(sae, components)
    names = list(edits) if arms is None else list(arms)
    for name in names:
        if name not in edits:
            raise UnknownName("arm", name, edits)
    plain = actions(vla, inputs, (), batch_size)
    sd = action_sd(plain, vla)
    rows = {
        name: rms(actions(vla, inputs, [(site, edits[name], sae.tokens_)], batch_size) - plain) / sd
        for name in dict.fromkeys([*names, "mean"])
    }
    whole = {name: float(row.square().mean().sqrt()) for name, row in rows.items()}
    dims, facts = list(vla.cfg.action_names), {**sae.source_, "site": str(site), "queries": inputs.batch_size}
    shares = [1 - whole[name] / whole["mean"] if whole["mean"] else float("nan") for name in names]
    return Splice(
        change=Result(
            labelled(torch.stack([rows[name] for name in names]), arm=names, dim=dims),
            unit=ACTION_SD,
            what="root mean square change of the action when the site is replaced",
            source=facts,
        ),
        recovered=Result(
            labelled(shares, arm=names), unit="share", what="change of the mean arm that is avoided", source=facts
        ),
        action_sd=Result(
            labelled(sd, dim=dims), unit="normalised action", what="standard deviation over queries and steps"
        ),
    )


def replacements(sae: SparseAutoencoder, components: int | None = None) -> Mapping[str, Function]:
    """The functions of the arms, as hooks."""
    basis = principal_components(sae)[: sae.k if components is None else components]

    def reconstruction(x: Tensor, site: Site) -> Tensor:
        return sae.decode(sae.encode(x)).to(x)

    def reconstruction_and_error(x: Tensor, site: Site) -> Tensor:
        kept = sae.decode(sae.encode(x))
        return (kept + (x.float() - kept)).to(x)

    def projection(x: Tensor, site: Site) -> Tensor:
        mean, rows = sae.mean_.to(x.device), basis.to(x.device)
        return (mean + (x.float() - mean) @ rows.T @ rows).to(x)

    def average(x: Tensor, site: Site) -> Tensor:
        return sae.mean_.to(x).expand_as(x)

    return {"sae": reconstruction, "sae + error": reconstruction_and_error, "pca": projection, "mean": average}


def editing(sae: SparseAutoencoder, change: Change) -> Function:
    """A hook that changes codes and keeps the error: x + D (change(z) - z).

    `change` gets codes (batch, tokens, features) and returns as many; where it leaves them alone, the activation stays
    as it is, bit for bit.
    """

    def edit(x: Tensor, site: Site) -> Tensor:
        codes = sae.encode(x)
        moved = (change(codes.clone()) - codes) @ sae.decoder_.to(codes)
        return (x.float() + moved).to(x)

    return edit


def ablating(sae: SparseAutoencoder, *features: int) -> Function:
    """A hook that takes features out wherever they are active, and leaves everything else.

    Raises:
        IndexError: there is no such feature.
    """
    sae.check_feature(*features)

    def without(codes: Tensor) -> Tensor:
        codes[..., list(features)] = 0
        return codes

    return editing(sae, without)


def actions(
    vla: Any, inputs: PolicyInputs, hooks: Iterable[Any], batch_size: int = BATCH
) -> Float[Tensor, "n chunk d"]:
    """Normalised actions under some hooks, float64 on the CPU, a batch at a time."""
    hooks = list(hooks)
    parts = []
    with torch.no_grad():
        for start in range(0, inputs.batch_size, batch_size):
            batch = inputs[start : start + batch_size]
            chunk = vla.run_with_hooks(batch, hooks) if hooks else vla(batch)
            parts.append(chunk.normalized.double().cpu())
    return torch.cat(parts)


def action_sd(plain: Float[Tensor, "n chunk d"], vla: Any) -> Float[Tensor, " d"]:
    """Standard deviation of actions over queries and chunk steps.

    Raises:
        ValueError: a dimension does not vary: it gives no unit.
    """
    sd = plain.flatten(0, 1).std(0, correction=0)
    still = [name for name, value in zip(vla.cfg.action_names, sd.tolist(), strict=True) if not value > 1e-9]
    if still:
        raise ValueError(
            f"{', '.join(still)} of the {len(plain)} queries do not vary, so there is no standard deviation to measure "
            "in; give queries of different scenes"
        )
    return sd


def rms(change: Float[Tensor, "n chunk d"]) -> Float[Tensor, " d"]:
    """Root mean square over queries and chunk steps."""
    return change.square().flatten(0, 1).mean(0).sqrt()
