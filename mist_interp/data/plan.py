"""Which episodes are collected, with which policy, and under which settings?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, TypeVar

import torch

from mist_interp.core.errors import UnknownName
from mist_interp.data.perturbation import NONE, parse_perturbation
from mist_interp.data.policy_source import resolve_policy as resolve_policy
from mist_interp.data.records import Unit

T = TypeVar("T")

# As in `mist_interp.libero.render`, which loads the simulator.
PROFILES = ("fast", "faithful")


@dataclass(frozen=True)
class Protocol:
    """Settings of the episodes beside policy and plan, in collection and in evaluation alike.

    Attributes:
        profile: render profile, `fast` or `faithful` (pixel-equal to LIBERO's own observation).
        resolution: side of the camera images in pixels.
        max_steps: step limit without the 10 settling steps; None takes the suite's.
        open_loop_steps: actions executed per query; None executes the whole chunk.

    Raises:
        UnknownName: another profile.
        ValueError: a number that is not whole or below 1.
    """

    profile: str = "fast"
    resolution: int = 256
    max_steps: int | None = None
    open_loop_steps: int | None = None

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise UnknownName("render profile", self.profile, PROFILES)
        for name in ("resolution", "max_steps", "open_loop_steps"):
            value = getattr(self, name)
            if value is not None or name == "resolution":
                whole_numbers(name, [value], least=1)

    @property
    def render(self) -> dict[str, Any]:
        """What the environment's pictures depend on."""
        return {"profile": self.profile, "resolution": self.resolution}

    def step_limit(self, suite: Any) -> int:
        """The step limit in force: its own, or the suite's."""
        return int(suite.max_steps if self.max_steps is None else self.max_steps)


def whole_numbers(name: str, values: Iterable[Any], least: int = 0) -> list[int]:
    """The values as plain integers; those of numpy are welcome.

    Raises:
        ValueError: one is not whole, or below `least`; the message names it.
    """
    numbers = []
    for value in values:
        try:
            numbers.append(index(value))
        except TypeError:
            numbers.append(least - 1)
        if numbers[-1] < least:
            raise ValueError(f"{name}: {value!r} is not a whole number of at least {least}")
    return numbers


def check_workers(workers: int) -> None:
    """Refuse a number of processes that is none.

    Raises:
        ValueError: it is below 1 or not whole.
    """
    whole_numbers("workers", [workers], least=1)


def plan_units(
    suite: Any,
    tasks: Sequence[int] | str,
    inits: Sequence[int] | str,
    seeds: Sequence[int],
    policy_seeds: Sequence[int] = (0,),
    perturbations: Sequence[str] = (NONE,),
) -> list[Unit]:
    """All units, task by task; `tasks` and `inits` may be `all`.

    Raises:
        UnknownName: a task that the suite does not have, or a perturbation that there is not.
        ValueError: a start state that a task does not have, a number that is not whole, or nothing to run.
    """
    for name, value in (("tasks", tasks), ("inits", inits)):
        if isinstance(value, str) and value != "all":
            raise UnknownName(f"value of {name}", value, ["all"])
    indices = list(range(len(suite.tasks))) if isinstance(tasks, str) else whole_numbers("tasks", tasks)
    seeds, policy_seeds = whole_numbers("simulator_seeds", seeds), whole_numbers("policy_seeds", policy_seeds)
    chosen = None if isinstance(inits, str) else whole_numbers("inits", inits)
    for perturbation in perturbations:
        parse_perturbation(perturbation)
    units = []
    for task in indices:
        if task not in range(len(suite.tasks)):
            raise UnknownName(f"task of {suite.name}", task, [str(index) for index in range(len(suite.tasks))])
        states = range(suite.tasks[task].n_init_states) if chosen is None else chosen
        for init in states:
            suite.tasks[task].check_init_state(init)
        units += [
            Unit(suite.name, task, i, perturbation, s, p)
            for s in seeds
            for perturbation in perturbations
            for p in policy_seeds
            for i in states
        ]
    if not units:
        some = "all" if chosen is None else len(chosen)
        many = f"{len(indices)} tasks, {some} start states, {len(seeds)} and {len(policy_seeds)} seeds"
        raise ValueError(f"nothing to run: {many}")
    return units


def shard_units(units: Sequence[T], shard: str | None) -> list[T]:
    """Part `i/n` (i from 0) of the units (or tasks); neighbours stay together, so that few environments are built.

    Raises:
        ValueError: the text is not `i/n` with 0 <= i < n.
    """
    if shard is None:
        return list(units)
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"shard {shard!r}: write i/n with i from 0 to n-1, such as 0/4")
    i, n = int(index), int(count)
    return list(units[len(units) * i // n : len(units) * (i + 1) // n])


def resolve_suite(suite: Any) -> Any:
    """A suite given by its name is looked up."""
    if not isinstance(suite, str):
        return suite
    from mist_interp.libero.suite import LiberoSuite

    return LiberoSuite(suite)


def policy_settings(vla: Any) -> dict[str, Any]:
    """What must be equal of the policy for activations to belong to one store, as plain values; live edits included."""
    facts = {
        "model": vla.policy.model_id,
        "variant": vla.policy.variant,
        "weights": weights_fingerprint(vla.policy),
    }
    if len(vla.policy.config.norm_stats or {}) > 1:  # one alone is part of the checkpoint
        facts["unnorm_key"] = vla.policy.unnorm_key
    edits = [edit.fn.to_dict() if edit.is_data else str(edit) for edit in vla.edits()]
    # An edit that is data stands at several sites and is written once.
    return facts | ({"edits": [edit for i, edit in enumerate(edits) if edit not in edits[:i]]} if edits else {})


def run_settings(vla: Any, suite: Any, protocol: Protocol) -> dict[str, Any]:
    """What must be equal for episodes to belong to one store, as plain values."""
    return policy_settings(vla) | {
        "suite": suite.name,
        "profile": protocol.profile,
        "resolution": protocol.resolution,
        "max_steps": protocol.step_limit(suite),
        "open_loop_steps": protocol.open_loop_steps,
    }


def weights_fingerprint(module: torch.nn.Module) -> str:
    """Short hash of a few values of every parameter: a retrained checkpoint of the same name has another one."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        values = parameter.detach().reshape(-1)
        picked = values[:: max(1, len(values) // 64)][:64].float().cpu().numpy()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + picked.tobytes())
    return digest.hexdigest()[:16]
