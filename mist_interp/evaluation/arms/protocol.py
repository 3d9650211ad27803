"""What is done to the policy at a query?

An arm sees the query (observation, tensors, the detector's score) and answers with a chunk of actions; in
between it may edit activations, replace the chunk, or leave everything alone. It reports the edit that was
live, *measured* at its site during that very forward pass, because an edit that silently stopped is the one
fault that no success rate would reveal.

An arm keeps nothing between queries: what it must remember within an episode it writes into `query.memory`, which
every episode begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from mist_interp.core.actions import ActionChunk
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import SiteKey
from mist_interp.data.records import Unit
from mist_interp.tracing.interventions import Intervention

WHEN = ("always", "fired", "triggered")


@dataclass(frozen=True)
class Query:
    """What an arm may know when the policy looks at the world.

    Attributes:
        unit: what is being run.
        index: number of the query in the episode, from 0.
        step: control steps executed so far.
        observation: the LIBERO dictionary of this moment.
        instruction: the sentence that the policy is given.
        score: the detector's score, None without a detector.
        fired: the score exceeds the threshold now.
        triggered: it does now or did at an earlier query of this episode.
        clean: what the untouched policy answers to this query, where the detector's forward pass gave it.
        risk: score of each output of the detector (a dimension, or `risk`); empty if it has none.
        flagged: outputs whose alarm is on now.
        nearest: the output that is furthest above its limit, or least below it; empty without a gate.
        cache: activations of the untouched pass at the arm's `sites`, where the detector captured them.
        memory: what this arm remembers within this episode; shared by all its queries, empty at the first.
        length: Euclidean norm that a placebo's edit is to have; None: that of the edit which it stands for.
        last_action: (7,) what was commanded last, in the environment's convention; None at the start of an episode.
    """

    unit: Unit
    index: int
    step: int
    observation: Mapping[str, Any]
    instruction: str
    _: KW_ONLY
    score: float | None = None
    fired: bool = False
    triggered: bool = False
    clean: ActionChunk | None = None
    risk: Mapping[str, float] = field(default_factory=dict)
    flagged: tuple[str, ...] = ()
    nearest: str = ""
    cache: Any = None
    memory: MutableMapping[str, Any] = field(default_factory=dict)
    length: float | None = None
    last_action: np.ndarray | None = None


@dataclass(frozen=True)
class ArmLog:
    """What an arm did at one query.

    Attributes:
        edit: name of the live edit, empty when the policy was left alone.
        edit_norm: Euclidean norm of the change, over all tokens and edited sites, as measured; 0 without an edit.
        details: anything else worth a column of JSON.
    """

    edit: str = ""
    edit_norm: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)


class Arm(Protocol):
    """One intervention condition. `act` is called once per query; state within an episode lives in `query.memory`.

    An arm that was fitted on data may also have `check_units(units)`, which raises if it is to be judged on them; one
    whose edits are the same at every query may have `edits()`; one that looks at activations of the untouched pass may
    name them in `sites`, and then finds them in `query.cache` if a detector has made that pass.
    """

    @property
    def name(self) -> str:
        """Name in tables and folders."""
        ...

    @property
    def gated(self) -> bool:
        """Whether the arm leaves the policy alone until the detector has fired in this episode."""
        ...

    def config(self) -> dict[str, Any]:
        """Everything that defines the arm, as JSON; two arms with equal config act alike."""
        ...

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """Answer one query (batch of one)."""
        ...


def check_when(name: str, when: str) -> None:
    """Refuse a word that is no time to act.

    Raises:
        UnknownName: it is not one of `WHEN`.
    """
    if when not in WHEN:
        raise UnknownName(f"value of when of arm {name!r}", when, WHEN)


def is_live(when: str, query: Query) -> bool:
    """Whether an arm with this `when` acts at this query."""
    return {"always": True, "fired": query.fired, "triggered": query.triggered}[when]


def clean_answer(vla: Any, inputs: PolicyInputs, query: Query) -> ActionChunk:
    """What the untouched policy answers: the detector's pass, or a forward pass of its own."""
    if query.clean is not None:
        return query.clean
    with torch.no_grad():
        chunk: ActionChunk = vla(inputs)
    return chunk


def clean_cache(vla: Any, inputs: PolicyInputs, query: Query, sites: Sequence[SiteKey]) -> Any:
    """Activations of the untouched pass at these sites: the detector's pass, or a forward pass of its own."""
    if query.cache is not None and all(vla.site(site) in query.cache for site in sites):
        return query.cache
    with torch.no_grad():
        _, cache = vla.run_with_cache(inputs, names=list(sites))
    return cache


def edited(vla: Any, inputs: PolicyInputs, edits: Sequence[Intervention], name: str) -> tuple[ActionChunk, ArmLog]:
    """The answer under edits, and what each of them really changed, measured in the same forward pass."""
    outer = len(vla.edits())
    with vla.hooks(*edits), torch.no_grad():
        chunk: ActionChunk = vla(inputs)
        changes = vla.changes()[outer:]
    norm = sum(change.total**2 for change in changes) ** 0.5
    return chunk, ArmLog(name, norm, {"changes": [change.to_dict() for change in changes]})
