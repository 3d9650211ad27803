"""Which of our keywords means what a user of TransformerLens wrote?

A keyword that a method does not have is a TypeError anyway; this one says what to write instead.
"""

from __future__ import annotations

from collections.abc import Mapping

OURS = {
    "names_filter": "names=, with names, patterns, or a function of the full name",
    "pos_slice": "tokens=, with names of tokens (mist_interp.core.selectors)",
    "incl_bwd": "vla.run_with_gradients(inputs, metric, names)",
    "bwd_hooks": "vla.run_with_gradients(inputs, metric, names); gradients are read, not hooked",
    "fwd_hooks": "with vla.hooks(...): vla.run_with_cache(...)",
    "remove_batch_dim": "cache[name][0]; every activation has a batch axis",
    "reset_hooks_end": "nothing: edits end with their scope",
    "clear_contexts": "nothing: edits end with their scope",
    "return_type": "nothing: the answer is the action chunk; names='logits' keeps the logits of base OpenVLA",
    "return_cache_object": "nothing: a cache is always an ActivationCache",
}


def refuse(method: str, given: Mapping[str, object]) -> None:
    """Refuse keywords that a method does not have, with what to write instead.

    Raises:
        TypeError: there are some.
    """
    for name in given:
        instead = f"; here that is {OURS[name]}" if name in OURS else ""
        raise TypeError(f"{method}() takes no keyword {name!r}{instead}")
