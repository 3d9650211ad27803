"""Which number of an action does a patch move?

A `Metric` turns a chunk of actions into one number per sample, or into several with names: all seven dimensions cost no
more forwards than one. Analyses subtract the run without the patch, so a metric is a plain reading of the action and
the result is its change.

    action_delta("dz")                   mean over the chunk of dz, in robot units
    action_delta()                       the same for every dimension: an axis "dim"
    action_delta(step="all")             every step of the chunk for itself: axes "step" and "dim"
    l1_to(actions)                       how far from a demonstration's actions, per dimension
    Metric("speed", "robot units", lambda chunk: chunk.values[..., :3].norm(dim=-1).mean(1))
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mist_interp.core.actions import ActionChunk
from mist_interp.core.errors import UnknownName

Labels = dict[str, list[Any]]


def _no_axes(chunk: ActionChunk) -> Labels:
    return {}


@dataclass(frozen=True)
class Metric:
    """One or several numbers per sample of a chunk of actions.

    Attributes:
        name: what is read, in words; part of the settings that a resumed run must share.
        unit: of the numbers.
        read: chunk -> (batch, ...) tensor; differentiable where gradients are wanted.
        labels: chunk -> name and labels of every axis after the batch.
        floor: a difference below this is none: shares of it are NaN.
    """

    name: str
    unit: str
    read: Callable[[ActionChunk], torch.Tensor]
    labels: Callable[[ActionChunk], Labels] = _no_axes
    floor: float = 1e-3

    def __call__(self, chunk: ActionChunk) -> torch.Tensor:
        """The numbers, (batch, ...), float64.

        Raises:
            ValueError: `read` gave another shape than `labels` says.
        """
        values = self.read(chunk)
        sizes = (len(chunk), *(len(labels) for labels in self.labels(chunk).values()))
        if not isinstance(values, torch.Tensor) or tuple(values.shape) != sizes:
            got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(f"the metric {self.name!r} gave {got}; with the axes it names it must give {sizes}")
        return values.double()


def action_delta(
    dims: str | Sequence[str] | None = None,
    step: int | Literal["mean", "all"] = "mean",
    normalized: bool = False,
) -> Metric:
    """Components of the action, whose change an analysis reports.

    Args:
        dims: one dimension ("dz": no axis), several, or None for all (axis "dim").
        step: one step of the chunk, their mean (a chunk is executed as a whole, so this is proportional to where it
            moves the arm), or "all" of them (axis "step").
        normalized: as the action head gives them, and not in robot units (1 is the controller's largest step; the
            gripper runs from 0, closed, to 1, open).

    Raises:
        ValueError: no dimension, or a step that cannot be. Unknown dimensions are found when the metric first sees an
            action of the policy.
    """
    if dims is not None and not isinstance(dims, str) and not list(dims):
        raise ValueError("an empty list of action dimensions measures nothing")
    if not isinstance(step, int) and step not in ("mean", "all"):
        raise ValueError(f'step is {step!r}; give the number of a chunk step, "mean" or "all"')

    def names(chunk: ActionChunk) -> list[str]:
        wanted = list(chunk.names) if dims is None else [dims] if isinstance(dims, str) else list(dims)
        for name in wanted:
            if name not in chunk.names:
                raise UnknownName("action dimension", name, chunk.names)
        return wanted

    def read(chunk: ActionChunk) -> torch.Tensor:
        values = chunk.normalized.double() if normalized else chunk.values
        values = values[..., [chunk.names.index(name) for name in names(chunk)]]
        values = values[..., 0] if isinstance(dims, str) else values
        if step == "all":
            return values
        if step == "mean":
            return values.mean(1)
        if not -values.shape[1] <= step < values.shape[1]:
            raise UnknownName("chunk step", step, map(str, range(values.shape[1])))
        return values[:, step]

    def labels(chunk: ActionChunk) -> Labels:
        found: Labels = {"step": [f"t{k}" for k in range(chunk.values.shape[1])]} if step == "all" else {}
        wanted = names(chunk)
        return found if isinstance(dims, str) else found | {"dim": wanted}

    which = "every dimension" if dims is None else dims if isinstance(dims, str) else ", ".join(dims)
    when = {"mean": "mean over the chunk", "all": "every chunk step"}.get(str(step), f"chunk step {step}")
    unit = "normalised action" if normalized else "robot units"
    return Metric(f"{which}, {when}", unit, read, labels)


def checked(metric: Any) -> Metric:
    """The metric that was given.

    Raises:
        TypeError: something else, such as a bare function.
    """
    if not isinstance(metric, Metric):
        kind = "a function without a name and a unit" if callable(metric) else f"a {type(metric).__name__}"
        raise TypeError(
            f"metric is {kind}; give action_delta('dz'), l1_to(actions), or "
            "Metric('speed', 'robot units', lambda chunk: ...)"
        )
    return metric


def l1_to(actions: Any) -> Metric:
    """How far the action is from given ones: per dimension the mean over the chunk of |action - given|.

    This is the loss of imitation in robot units, if the actions are what a demonstration did from the same state. An
    effect below zero brings the action nearer to the demonstration, which need not be the only way to do the task; a
    change that overshoots as far as the action fell short shows as none.

    Args:
        actions: (chunk, dim) in the unit of the demonstrations, as in `ActionChunk.values`; for all queries alike, so
            patch pairs with demonstrations of their own one by one.

    Raises:
        ValueError: another number of axes, or numbers that are not finite; when it runs, another chunk length or number
            of dimensions than the policy's.
    """
    wanted = torch.as_tensor(actions).detach().cpu().double().clone()
    if wanted.ndim != 2 or not bool(torch.isfinite(wanted).all()):
        raise ValueError(f"actions to compare with are finite and (chunk, dim); given shape {tuple(wanted.shape)}")

    def read(chunk: ActionChunk) -> torch.Tensor:
        if chunk.values.shape[1:] != wanted.shape:
            sizes = tuple(wanted.shape), tuple(chunk.values.shape[1:])
            raise ValueError(f"the actions to compare with have the shape {sizes[0]}, those of the policy {sizes[1]}")
        return (chunk.values.double() - wanted.to(chunk.values.device)).abs().mean(1)

    digest = hashlib.sha256(wanted.numpy().tobytes()).hexdigest()[:16]
    return Metric(f"l1_to(actions) of every dimension, sha256 {digest}", "robot units", read, _dims)


def _dims(chunk: ActionChunk) -> Labels:
    return {"dim": list(chunk.names)}
