"""How often does one query run the language model, and which of these runs is meant?

`step=` says it, for capture and for edits alike: a number, counted from either end, or of base OpenVLA the name of the
action number that the run generates.
"""

from __future__ import annotations

from typing import Any

from mist_interp.core.errors import UnknownName


def runs_per_query(policy: Any) -> int:
    """How often one query runs the language model."""
    if policy.variant == "base":
        return policy.config.action_slots
    return policy.config.diffusion_steps if policy.variant == "diffusion" else 1


def pick_run(policy: Any, step: int | str | None, stopped: bool = False) -> int:
    """Number of the run to capture: of base OpenVLA the prefill, of a diffusion head the last, unless `step` says so.

    A forward that is `stopped` before a layer is stopped in its first run, so then that one is the default.

    Raises:
        ValueError: another run of a forward that is stopped in the first.
        IndexError: the query has fewer runs.
        UnknownName: `step` is a word, and not the name of an action number that base OpenVLA generates.
    """
    if isinstance(step, str):
        names = list(policy.config.action_names) if policy.variant == "base" else []
        if step not in names:
            raise UnknownName(f"step of a {policy.variant} policy", step, names)
        step = names.index(step)
    runs = runs_per_query(policy)
    if step is None:
        return runs - 1 if policy.variant == "diffusion" and not stopped else 0
    if not -runs <= step < runs:
        raise IndexError(f"step {step}: one query of this {policy.variant} policy runs the language model {runs} times")
    if stopped and step % runs:
        raise ValueError(
            f"step {step}: stop_at_layer ends the query in its first run of the language model, so run {step % runs} "
            f"of 0..{runs - 1} is never reached; leave out one of the two"
        )
    return step % runs
