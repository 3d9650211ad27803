"""How are the dimensions that are about to go wrong moved, and no others, inside the network?

    wanted_d  = -size * sign(a_d)    `retreat`                                     for the flagged dimensions d, else 0
                -size * a_d          `brake`
                 size * shift_d      `shift`: always the same way; its dimensions are moved whichever are flagged
                 size * deviation_d  `learned`: what an expert would do otherwise, read off the same forward pass
    edit      = J^+ (gain * wanted)               smallest change of the stream at the read positions
    realised  = answer under the edit - clean answer
    gain     <- gain * |wanted|^2 / <realised, wanted>, within bounds: the next query's gain follows the measured effect

a is the mean motion of the chunk in normalised units, measured from standing still (for the gripper: from half open).
The risk of a dimension is the part of its own motion in closing a gap, so less of this motion is less risk. J is the
derivative of that mean (`mist_interp.steering.correction`).

The placebos make the same computation and then do something else at the same queries, of exactly the same norm; yoked
to another episode, of the norm that the edit had there. `random-direction` (one direction per episode), `noise` (drawn
anew at each query), `reversed`, `wrong-dimension` (the edit for as many dimensions that are not flagged).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.core.actions import ACTION_NAMES, ActionChunk
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import SiteKey
from mist_interp.data.records import Unit
from mist_interp.evaluation.arms.motion import action_scale, chunk_of
from mist_interp.evaluation.arms.protocol import ArmLog, Query, check_when, clean_answer, clean_cache, is_live
from mist_interp.probing.deviation import Deviation
from mist_interp.steering.correction import (
    Correctable,
    chunk_steps,
    correctable,
    corrected,
    reached,
    segment_means,
)
from mist_interp.tracing.rest import RestOfForward

WANTED = ("retreat", "brake", "shift", "learned")
PLACEBOS = ("random-direction", "noise", "reversed", "wrong-dimension")
GRIPPER_MIDDLE = 0.5
# One step of the gain, up or down: a measurement of one query is a poor guide to the next.
LARGEST_STEP = 1.5


@dataclass(frozen=True)
class Mist:
    """Per-dimension correction by the smallest edit, see the module's text.

    Attributes:
        site: of the residual stream between blocks, such as ("resid_post", 2).
        size: change of the mean normalised action that is wanted (`retreat`), or share of the motion (`brake`), of
            `shift` or of the deviation (`learned`).
        wanted: one of `WANTED`.
        shift: change of the mean normalised action per dimension, for `shift`.
        target: the deviation that `learned` reads.
        dims: dimensions that may be moved; a detector that does not speak of dimensions flags those of `otherwise`.
        otherwise: dimensions moved when the alarm is on and names none of `dims`.
        generic: move all of `dims` while the gate is open, flagged or not.
        steps: chunk steps that are corrected; None for all.
        hold: keep the other dimensions' means over the chunk where they are, to first order; single steps move, the
            gripper's included. Without it only the moved dimensions' derivative is taken, and the log's prediction of
            the others is None.
        rounds: derivatives taken per query, see `steering.correction.reached`.
        stride: longest step of one round, as a share of the norm of the edited states.
        adapt: let the gain follow the measured effect within the episode.
        gains: smallest and largest gain.
        placebo: empty, or one of `PLACEBOS`.
        seed: of what a placebo draws, beside the unit.
        when: as in `Steer`.
        name: name in tables and folders; empty for `mist` or the placebo's.
    """

    site: SiteKey = ("resid_post", -2)
    size: float = 0.2
    wanted: str = "retreat"
    shift: Mapping[str, float] = field(default_factory=dict)
    target: Deviation | None = None
    dims: tuple[str, ...] = ACTION_NAMES
    otherwise: tuple[str, ...] = ("dx", "dy", "dz")
    generic: bool = False
    steps: tuple[int, ...] | None = None
    hold: bool = True
    rounds: int = 1
    stride: float = math.inf
    adapt: bool = True
    gains: tuple[float, float] = (0.5, 2.0)
    placebo: str = ""
    seed: int = 0
    when: str = "fired"
    name: str = field(default="")

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.placebo or "mist")
        check_when(self.name, self.when)
        if self.placebo and self.placebo not in PLACEBOS:
            raise UnknownName("placebo of mist", self.placebo, PLACEBOS)
        if self.wanted not in WANTED:
            raise UnknownName("wanted change", self.wanted, WANTED)
        if (self.wanted == "learned") != (self.target is not None):
            raise ValueError(f"arm {self.name!r}: wanted=learned and target=FOLDER belong together")
        if (self.wanted == "shift") != bool(self.shift):
            raise ValueError(f"arm {self.name!r}: wanted=shift and shift=dx:0.3+dz:-0.1 belong together")
        if not np.isfinite(list(self.shift.values())).all():
            raise ValueError(f"arm {self.name!r}: shift={dict(self.shift)}; give finite numbers")
        if self.target and self.steps is not None:
            raise ValueError(f"arm {self.name!r}: a learned change is one of the whole chunk; leave steps out")
        for dim in (*self.dims, *self.otherwise, *self.shift):
            if dim not in ACTION_NAMES:
                raise UnknownName("action dimension", dim, ACTION_NAMES)
        if not np.isfinite(self.size) or self.size < 0:
            raise ValueError(f"arm {self.name!r}: size={self.size}; give a finite number, 0 or above")
        if self.rounds < 1 or not self.stride > 0:
            raise ValueError(f"arm {self.name!r}: rounds={self.rounds}, stride={self.stride}; give 1 or more, above 0")
        if not 0 < self.gains[0] <= 1 <= self.gains[1]:
            raise ValueError(f"arm {self.name!r}: gains={self.gains}; give bounds around 1")

    @property
    def gated(self) -> bool:
        """See `Arm`."""
        return self.when != "always"

    @property
    def sites(self) -> tuple[SiteKey, ...]:
        """See `Arm`."""
        return (self.site, *(self.target.sites if self.target else ()))

    def check_units(self, units: Iterable[Unit]) -> None:
        """Refuse units on whose start states the wanted change was learned."""
        if self.target:
            self.target.check_units(units)

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        kind = self.placebo or "mist"
        keys = ("size", "wanted", "generic", "hold", "rounds", "adapt", "seed", "when")
        facts: dict[str, Any] = {"kind": kind, "site": _text(self.site), **{key: getattr(self, key) for key in keys}}
        facts |= {"dims": list(self.dims), "otherwise": list(self.otherwise), "gains": list(self.gains)}
        facts["stride"] = None if math.isinf(self.stride) else self.stride
        facts["steps"] = None if self.steps is None else list(self.steps)
        if self.shift:
            facts["shift"] = dict(self.shift)
        if self.target:
            facts["target"] = self.target.config()
        if self.placebo:
            drawn = self.placebo in ("random-direction", "noise")
            facts |= {"placebo": True, "method": f"random, equal norm ({kind})" if drawn else kind}
        return facts

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`.

        Raises:
            FloatingPointError: the derivative or the edit is not finite.
        """
        clean = clean_answer(vla, inputs, query)
        if not is_live(self.when, query) or self.size == 0:
            return clean, ArmLog()
        flagged = self._flagged(query)
        rest, at, cache = self._look(vla, inputs, query, flagged)
        change = self._change(vla, clean, at, cache)
        wanted = _only(change, flagged)
        gain = float(query.memory.get("gain", 1.0)) if self.adapt else 1.0
        details: dict[str, Any] = {"flagged": list(flagged), "gain": gain, "wanted": _rounded(wanted)}
        if not bool(wanted.any()):
            return clean, ArmLog(details=details | {"refused": "nothing to change"})
        try:
            reach = partial(self._reached, rest, inputs, at)
            meant = reach(_only(gain * change, flagged))
            edit, moved = self._edit(meant, reach, gain * change, flagged, query)
        except ValueError as error:  # no edit of these positions does that
            return clean, ArmLog(details=details | {"refused": str(error)})

        def effect(of: ActionChunk) -> Float[Tensor, "segment dim"]:
            return segment_means((of.normalized - clean.normalized)[0, list(at.steps)].double().cpu(), at.segments)

        chunk, norm = corrected(rest, inputs, at, edit)
        realised = effect(chunk)
        predicted = at.predicted(edit).cpu().unflatten(0, realised.shape)
        details |= {"predicted": _rounded(predicted), "realised": _rounded(realised)}
        if moved != flagged:
            details["moved"] = list(moved)
        if self.adapt:
            # A placebo's gain follows what the edit that it stands for would have done: so both stay of equal norm.
            followed = effect(corrected(rest, inputs, at, meant)[0]) if self.placebo else realised
            query.memory["gain"] = self._next_gain(gain, wanted, followed)
        return chunk, ArmLog(self.name, norm, details)

    # -- parts

    def _look(
        self, vla: Any, inputs: PolicyInputs, query: Query, flagged: tuple[str, ...]
    ) -> tuple[RestOfForward, Correctable, Any]:
        rest = query.memory.get("rest")
        if rest is None or rest.vla is not vla:
            rest = query.memory["rest"] = RestOfForward(vla, self.site)
        cache = clean_cache(vla, inputs, query, self.sites)
        dims = ACTION_NAMES if self.hold or self.placebo == "wrong-dimension" else flagged
        steps = chunk_steps(vla, self.steps)
        return rest, correctable(rest, inputs, cache[rest.after], steps, self.segments, dims), cache

    def _flagged(self, query: Query) -> tuple[str, ...]:
        if self.shift:
            return tuple(self.shift)
        if self.generic:
            return self.dims
        return tuple(dim for dim in self.dims if dim in query.flagged) or self.otherwise

    @property
    def segments(self) -> int:
        """Parts of the chunk that are moved on their own."""
        return self.target.segments if self.target else 1

    def _change(self, vla: Any, clean: ActionChunk, at: Correctable, cache: Any) -> Float[Tensor, "segment dim"]:
        """The change of the mean normalised action that would be wanted of each dimension, were it flagged."""
        if self.target:
            return self.size * torch.from_numpy(self.target.predict(self.target.rows_of(cache))[0])
        if self.shift:
            return self.size * torch.tensor([[self.shift.get(name, 0.0) for name in ACTION_NAMES]], dtype=torch.float64)
        _, zero = action_scale(vla, clean)
        zero[ACTION_NAMES.index("gripper")] = GRIPPER_MIDDLE
        motion = segment_means(clean.normalized[0, list(at.steps)].double().cpu(), 1) - zero
        return -self.size * (motion if self.wanted == "brake" else motion.sign())

    def _reached(
        self, rest: RestOfForward, inputs: PolicyInputs, at: Correctable, wanted: Float[Tensor, "segment dim"]
    ) -> Float[Tensor, "position width"]:
        return reached(rest, inputs, at, wanted.flatten(), hold=self.hold, rounds=self.rounds, stride=self.stride)

    def _edit(
        self,
        meant: Float[Tensor, "position width"],
        reach: Callable[[Float[Tensor, "segment dim"]], Float[Tensor, "position width"]],
        change: Float[Tensor, "segment dim"],
        flagged: tuple[str, ...],
        query: Query,
    ) -> tuple[Float[Tensor, "position width"], tuple[str, ...]]:
        """The edit that is made in place of the one that is meant, and the dimensions that it is for."""
        if not self.placebo:
            return meant, flagged
        length = meant.norm() if query.length is None else query.length
        if self.placebo == "reversed":
            return -meant * (length / meant.norm()), flagged
        if self.placebo == "wrong-dimension":
            others = self._others(flagged, query)
            instead = reach(_dealt(change, flagged, others) if self.shift else _only(change, others))
            return instead * (length / instead.norm()), others
        instead = torch.randn(meant.shape, generator=self._generator(query), dtype=torch.float64).to(meant)
        return instead * (length / instead.norm()), ()

    def _others(self, flagged: tuple[str, ...], query: Query) -> tuple[str, ...]:
        free = [dim for dim in ACTION_NAMES if dim not in flagged and dim not in query.flagged]
        if not free:
            raise ValueError("every dimension is flagged, so none is wrong")
        order = torch.randperm(len(free), generator=self._generator(query)).tolist()
        return tuple(free[place] for place in order[: len(flagged)])

    def _generator(self, query: Query) -> torch.Generator:
        """Random numbers of this unit, and of this query where the placebo draws anew."""
        which = f"{self.placebo}:{self.seed}:{query.unit.key}" + (f":{query.index}" if self.placebo == "noise" else "")
        digest = hashlib.sha256(which.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _next_gain(self, gain: float, wanted: Tensor, realised: Tensor) -> float:
        share = float((realised * wanted).sum() / (wanted * wanted).sum())
        if not np.isfinite(share):
            return gain
        step = LARGEST_STEP if share <= 0 else float(np.clip(1 / share, 1 / LARGEST_STEP, LARGEST_STEP))
        return float(np.clip(gain * step, *self.gains))


@dataclass(frozen=True)
class ActionCorrection:
    """Move the action itself by as much as `mist` would have moved it through the network.

    The flagged dimensions of every corrected step are shifted by the mean change that the edit realises there, all of
    them where the edit holds none; the network is left alone. A mechanistic claim for `mist` has to beat this.

    Attributes:
        like: the arm whose displacement is taken.
        name: name in tables and folders.
    """

    like: Mist = Mist()
    name: str = "action-correction"

    @property
    def gated(self) -> bool:
        """See `Arm`."""
        return self.like.gated

    @property
    def sites(self) -> tuple[SiteKey, ...]:
        """See `Arm`."""
        return self.like.sites

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        return {**self.like.config(), "kind": "action-correction", "placebo": True}

    def check_units(self, units: Iterable[Unit]) -> None:
        """See `Mist`."""
        self.like.check_units(units)

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`."""
        clean = clean_answer(vla, inputs, query)
        _, log = self.like.act(vla, inputs, query)
        if not log.edit:
            return clean, log
        realised = torch.tensor(log.details["realised"], dtype=torch.float64)
        moved = torch.tensor([name in log.details["flagged"] or not self.like.hold for name in clean.names])
        scale, _ = action_scale(vla, clean)
        values = clean.values.clone()
        steps = list(chunk_steps(vla, self.like.steps))
        shift = torch.where(moved, realised * scale, 0.0).repeat_interleave(len(steps) // len(realised), dim=0)
        values[:, steps] += shift.to(values)
        return chunk_of(vla, clean, values), ArmLog(self.name, 0.0, log.details)


def _only(change: Float[Tensor, "segment dim"], dims: tuple[str, ...]) -> Float[Tensor, "segment dim"]:
    """The change of these dimensions, 0 of all others."""
    return torch.where(torch.tensor([name in dims for name in ACTION_NAMES]), change, 0.0)


def _dealt(
    change: Float[Tensor, "segment dim"], dims: tuple[str, ...], others: tuple[str, ...]
) -> Float[Tensor, "segment dim"]:
    """The changes of some dimensions made on others: a shift wants nothing of those that it does not name."""
    found = torch.zeros_like(change)
    for dim, other in zip(dims, others, strict=False):  # of fewer others, as many as there are
        found[:, ACTION_NAMES.index(other)] = change[:, ACTION_NAMES.index(dim)]
    return found


def _rounded(values: Float[Tensor, "segment dim"]) -> list[list[float | None]]:
    rows = values.detach().cpu().tolist()
    return [[None if math.isnan(value) else float(f"{value:.6g}") for value in row] for row in rows]


def _text(site: SiteKey) -> Any:
    return list(site) if isinstance(site, tuple) else str(site)


def placebo(like: Mist, kind: str, seed: int = 0, name: str = "") -> Mist:
    """The same arm as a placebo: same site, size and gate.

    Raises:
        UnknownName: no such placebo.
    """
    options: Mapping[str, Any] = {**like.__dict__, "placebo": kind, "seed": seed, "name": name or kind}
    return Mist(**options)
