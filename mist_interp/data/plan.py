"""Which episodes are collected, with which policy, and under which settings?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mist_interp.core.errors import UnknownName
from mist_interp.data.records import Unit


@dataclass(frozen=True)
class Protocol:
    """Settings of the episodes.

    Attributes:
        profile: render profile, `fast` or `faithful`.
        resolution: side of the camera images in pixels.
        max_steps: step limit without the settling steps; None takes the suite's.
        open_loop_steps: actions executed per query; None executes the whole chunk.
    """

    profile: str = "fast"
    resolution: int = 256
    max_steps: int | None = None
    open_loop_steps: int | None = None


def plan_units(suite: Any, tasks: Sequence[int] | str, inits: Sequence[int], seeds: Sequence[int]) -> list[Unit]:
    """All units, task by task.

    Raises:
        UnknownName: a task that the suite does not have.
        ValueError: a start state that a task does not have, or nothing to run.
    """
    if isinstance(tasks, str) and tasks != "all":
        raise UnknownName("value of tasks", tasks, ["all"])
    indices = range(len(suite.tasks)) if isinstance(tasks, str) else tasks
    for task in indices:
        if task not in range(len(suite.tasks)):
            raise UnknownName(f"task of {suite.name}", task, [str(index) for index in range(len(suite.tasks))])
        count = suite.tasks[task].n_init_states
        outside = [init for init in inits if not 0 <= init < count]
        if outside:
            raise ValueError(f"start state {outside[0]}: task {task} of {suite.name} has 0 to {count - 1}")
    if not (len(indices) and len(inits) and len(seeds)):
        raise ValueError(f"nothing to run: {len(indices)} tasks, {len(inits)} start states, {len(seeds)} seeds")
    return [Unit(suite.name, task, init, simulator_seed=seed) for task in indices for seed in seeds for init in inits]


def shard_units(units: Sequence[Unit], shard: str | None) -> list[Unit]:
    """Part `i/n` (i from 0) of the units; neighbours stay together, so that few environments are built.

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


def resolve_policy(vla: Any) -> Any:
    """A policy given by its name or folder is loaded."""
    if not isinstance(vla, str):
        return vla
    from mist_interp.tracing.hooked import HookedVLA

    return HookedVLA.from_pretrained(vla)


def policy_settings(vla: Any) -> dict[str, Any]:
    """What must be equal of the policy for activations to belong to one store, as plain values; live edits included."""
    facts = {
        "model": vla.policy.model_id,
        "variant": vla.policy.variant,
        "weights": weights_fingerprint(vla.policy),
    }
    edits = [edit.fn.to_dict() if edit.is_data else str(edit) for edit in vla.edits()]
    # An edit that is data stands at several sites and is written once.
    return facts | ({"edits": [edit for i, edit in enumerate(edits) if edit not in edits[:i]]} if edits else {})


def run_settings(vla: Any, suite: Any, protocol: Protocol) -> dict[str, Any]:
    """What must be equal for episodes to belong to one store, as plain values."""
    return policy_settings(vla) | {
        "suite": suite.name,
        "profile": protocol.profile,
        "resolution": protocol.resolution,
        "max_steps": protocol.max_steps or suite.max_steps,
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
