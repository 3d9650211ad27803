"""How is one query corrected: the smallest change of the stream that moves some action numbers and holds the others?

    J = d (mean over the chosen chunk steps of the seven numbers) / d (stream at their read positions)
    edit = J^+ delta                                                                      one round
    edit <- edit + J(edit)^+ (delta - what the edit does so far), at most `stride` long    further rounds

in normalised units, in which the dimensions share a scale. One forward and a backward pass per dimension through what
lies behind the site, at the read positions only (`mist_interp.models.read_rest`). The mean over the steps is what the
robot moves in one chunk; that the single steps share it evenly is not asked for. Cut into segments, each part of the
chunk has a mean and a change of its own: what comes first (down) and what comes then (close) can differ.

Where it misleads: see `mist_interp.steering.jacobian`, whose pseudo-inverse this uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mist_interp.core.actions import ACTION_NAMES, ActionChunk
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site, SiteKey
from mist_interp.models.read_rest import numbers_of_steps
from mist_interp.steering.gradient import refuse_without_gradient
from mist_interp.steering.jacobian import minimum_norm_edit
from mist_interp.tracing.rest import RestOfForward

if TYPE_CHECKING:
    from mist_interp.tracing.hooked import HookedVLA

WELL_CONDITIONED = 1e6
DIMENSIONS = len(ACTION_NAMES)
# Of the wanted change: what is left then is not worth another derivative.
CLOSE = 0.05


@dataclass(frozen=True, eq=False)
class Correctable:
    """One query, ready to be corrected.

    Attributes:
        states: (token, d_model) of the stream at the site, before any correction.
        positions: read positions of the chosen steps, step after step.
        steps: chunk steps.
        jacobian: (number, position, d_model), normalised action per unit of the stream; NaN where it was not taken.
        numbers: (number,) mean normalised action over the steps of each segment, segment after segment: 7 numbers of
            the whole chunk, or 7 of each of its parts.
        dims: dimensions whose derivative was taken.
    """

    states: Float[Tensor, "token d_model"]
    positions: Int[Tensor, " position"]
    steps: tuple[int, ...]
    jacobian: Float[Tensor, "number position d_model"]
    numbers: Float[Tensor, " number"]
    dims: tuple[str, ...] = ACTION_NAMES

    @property
    def segments(self) -> int:
        """Parts of the chunk that are moved on their own."""
        return len(self.numbers) // DIMENSIONS

    def edit(self, delta: Float[Tensor, " number"], hold: bool = True) -> Float[Tensor, "position d_model"]:
        """The smallest change at the positions that moves the mean action by `delta` (normalised), to first order.

        Raises:
            FloatingPointError: the derivative is not finite.
            ValueError: no edit does that, see `minimum_norm_edit`; or a dimension is moved or held whose derivative was
                not taken.
        """
        moved = [name for name, change in zip(ACTION_NAMES * self.segments, delta.tolist(), strict=True) if change]
        missing = set(ACTION_NAMES if hold else moved) - set(self.dims)
        if missing:
            raise ValueError(f"the derivative of {', '.join(sorted(missing))} was not taken at this query")
        needed = self.jacobian if hold else self.jacobian[(delta != 0).to(self.jacobian.device)]
        if not bool(torch.isfinite(needed).all()):
            raise FloatingPointError("the derivative of the action at this query is not finite, so no edit follows")
        rows = self.jacobian.flatten(1).double()
        lengths = rows.norm(dim=1)
        gram = rows @ rows.T / lengths.outer(lengths)
        # The inverse of a 7 x 7 matrix is far cheaper than a pseudo-inverse, and as good where no dimensions are tied.
        if (
            hold
            and bool((lengths > 0).all())
            and float(torch.linalg.cond(gram)) < WELL_CONDITIONED
            and bool(delta.any())
        ):
            parts = torch.linalg.solve(gram, delta.to(rows) / lengths) / lengths
            return (parts @ rows).unflatten(0, self.jacobian.shape[1:])
        return minimum_norm_edit(self.jacobian.double(), delta, hold, ACTION_NAMES * self.segments)

    def predicted(self, edit: Float[Tensor, "position d_model"]) -> Float[Tensor, " number"]:
        """What a change at the positions does to the mean action, to first order; NaN where no derivative was taken."""
        return torch.einsum("dpw,pw->d", self.jacobian, edit.to(self.jacobian))


def segment_means(values: Float[Tensor, "step dim"], segments: int) -> Float[Tensor, "segment dim"]:
    """Means over equal parts of the steps."""
    return values.unflatten(0, (segments, -1)).mean(1)


def stream_site(vla: HookedVLA, site: SiteKey) -> Site:
    """The site, if it is one of the residual stream from which the rest of the network can run.

    Raises:
        UnknownName: no such site.
        ValueError: it is no site of the stream between blocks, or the policy's actions have no gradient.
    """
    refuse_without_gradient(vla)
    return RestOfForward(vla, site).after


def chunk_steps(vla: HookedVLA, steps: Sequence[int] | None) -> tuple[int, ...]:
    """Checked chunk steps; None means all.

    Raises:
        UnknownName: no such step.
    """
    chosen = tuple(range(vla.cfg.chunk)) if steps is None else tuple(steps)
    for step in chosen:
        if not 0 <= step < vla.cfg.chunk:
            raise UnknownName("chunk step", f"t{step}", [f"t{k}" for k in range(vla.cfg.chunk)])
    if not chosen:
        raise ValueError("no chunk step is named")
    return chosen


def correctable(
    rest: RestOfForward,
    inputs: PolicyInputs,
    states: Float[Tensor, "batch token d_model"],
    steps: Sequence[int] | None = None,
    segments: int = 1,
    dims: Sequence[str] = ACTION_NAMES,
) -> Correctable:
    """Take the derivative of one query's action.

    Args:
        rest: the network behind the site.
        inputs: one query.
        states: what the site holds there, all tokens (`cache[site]`).
        steps: chunk steps; None for all.
        segments: into how many equal parts the steps are cut, each with means of its own.
        dims: dimensions whose derivative is taken; each costs a backward pass, and an edit that holds nothing needs
            only those that it moves.

    Raises:
        UnknownName: no such step or dimension.
        ValueError: parts of unequal length, several queries at once, or a policy without such a derivative.
    """
    vla = rest.vla
    refuse_without_gradient(vla)
    for name in dims:
        if name not in ACTION_NAMES:
            raise UnknownName("action dimension", name, ACTION_NAMES)
    chosen, layout = chunk_steps(vla, steps), vla.layout(inputs)
    if segments < 1 or len(chosen) % segments:
        raise ValueError(f"{len(chosen)} chunk steps cannot be cut into {segments} equal segments")
    if inputs.batch_size != 1 or layout.length != states.shape[1]:
        raise ValueError(f"one query at a time, with all of its {layout.length} tokens; got {tuple(states.shape)}")
    stream = states[0].detach().as_subclass(Tensor)
    index = layout.select([f"action_read.t{step}" for step in chosen]).index[0].to(stream.device)
    with torch.enable_grad():
        leaf = stream[index].clone().requires_grad_()
        numbers = numbers_of_steps(vla.policy, rest.layer, stream, index, chosen)(leaf)
        numbers = segment_means(numbers, segments).flatten()
        taken = torch.tensor([name in dims for name in ACTION_NAMES] * segments, device=numbers.device)
        each = torch.eye(len(numbers), dtype=numbers.dtype, device=numbers.device)[taken]
        (rows,) = torch.autograd.grad(numbers, leaf, each, is_grads_batched=True)
    jacobian = torch.full((len(numbers), *leaf.shape), math.nan, dtype=rows.dtype, device=rows.device)
    jacobian[taken] = rows
    return Correctable(stream, index, chosen, jacobian, numbers.detach().double(), tuple(dims))


def reached(
    rest: RestOfForward,
    inputs: PolicyInputs,
    at: Correctable,
    delta: Float[Tensor, " number"],
    *,
    hold: bool = True,
    rounds: int = 1,
    stride: float = math.inf,
) -> Float[Tensor, "position d_model"]:
    """The edit that moves the mean action by `delta`, with the derivative taken anew at every round (Gauss-Newton).

    An answer that is saturated, such as a gripper's, has next to no derivative where it stands, and what holds to first
    order does not hold for a large change.

    Args:
        rest: the network behind the site.
        inputs: one query.
        at: its derivative.
        delta: wanted change, normalised; the dimensions with 0 are held if `hold`, else they go where they go.
        hold: see there.
        rounds: derivatives taken at most, `at` included.
        stride: longest step of a round, as a share of the norm of the states at the positions.

    Raises:
        FloatingPointError, ValueError: see `Correctable.edit`.
    """
    named = delta != 0
    goal, longest = at.numbers + delta.to(at.numbers), stride * float(at.states[at.positions].double().norm())
    edit = torch.zeros(at.jacobian.shape[1:], dtype=torch.float64, device=at.jacobian.device)
    here = at
    for number in range(rounds):
        if number:
            states = at.states.index_add(0, at.positions, edit.to(at.states))
            here = correctable(rest, inputs, states[None], at.steps, at.segments, at.dims)
        left = goal - here.numbers
        if not hold:
            left = torch.where(named.to(left.device), left, 0.0)
        if number and float(left.norm()) <= CLOSE * float(delta.norm()):
            break
        step = here.edit(left, hold)
        edit = edit + step * min(1.0, longest / float(step.norm()))
    return edit


def corrected(rest: RestOfForward, inputs: PolicyInputs, at: Correctable, edit: Tensor) -> tuple[ActionChunk, float]:
    """The policy's answer with `edit` added at the positions, and the norm of what was really changed.

    Raises:
        FloatingPointError: the edit is not finite.
    """
    if not bool(torch.isfinite(edit).all()):
        raise FloatingPointError("the edit holds NaN or infinite values; nothing was answered")
    states = at.states.index_add(0, at.positions, edit.to(at.states))
    with torch.no_grad():
        chunk = rest(states[None], inputs)
    return chunk, float((states - at.states).double().norm())
