"""How does one go on from the middle of a forward pass, under edits?

`RestOfForward(vla, after)` runs what comes after one site of the residual stream, from states that the caller gives.
A sweep that changes something at block 20 of 32 so pays for 12 blocks and for no camera. Edits that are live on `vla`
and lie behind `after` apply as in a whole forward; those before it cannot, so the states must already hold them, as the
values of `run_with_cache` do.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site, SiteKey
from mist_interp.models.rest import rest_of
from mist_interp.tracing.changes import Ledger
from mist_interp.tracing.edits import edits_of
from mist_interp.tracing.hooked import HookedVLA
from mist_interp.tracing.plan import edit_workers

# The states that enter a block, as several names know them.
STREAMS = ("hook_embed", "blocks.{i}.hook_resid_pre", "blocks.{i}.hook_resid_post")


class RestOfForward:
    """The network behind one site of the residual stream.

    Attributes:
        after: the site whose values the caller gives.
        layer: first block of the language model that runs.
    """

    def __init__(self, vla: HookedVLA, after: SiteKey):
        self.vla = vla
        self.after = after = vla.site(after)
        if after.hook.pattern not in STREAMS:
            raise ValueError(f"a forward can go on after hook_embed, resid_pre or resid_post, not after {after}")
        self.layer = (after.layer or 0) + after.hook.pattern.endswith("resid_post")
        self._run = rest_of(vla.policy, self.layer)

    def __call__(self, states: torch.Tensor, inputs: PolicyInputs, hooks: Iterable[Any] = ()) -> ActionChunk:
        """Answer a batch from given states; `vla.changes()` then tells what the edits did here.

        Args:
            states: (batch, token, d_model), values of the site `after`.
            inputs: the queries they belong to; only their prompts matter.
            hooks: more edits for this run, as `HookedVLA.hooks` takes them; they apply after the live ones.

        Raises:
            ValueError: a hook at a site that this run does not reach, or states of another shape than the queries have.
            RuntimeError: edits of another thread are live.
        """
        vla, expected = self.vla, (inputs.batch_size, self.vla.cfg.d_model)
        if states.ndim != 3 or (states.shape[0], states.shape[2]) != expected:
            raise ValueError(
                f"states of shape {tuple(states.shape)}: these queries need (batch, token, d_model) with "
                f"batch = {expected[0]} and d_model = {expected[1]}"
            )
        asked = edits_of(hooks, vla.catalogue, vla.policy)
        early = [edit for edit in asked if not self._reaches(edit.site)]
        if early:
            raise ValueError(f"{early[0].site} is not computed after {self.after}, where this run starts")
        edits = [edit for edit in vla._live.here() if self._reaches(edit.site)] + asked
        ledger, vla._changes = Ledger(inputs.batch_size, vla.check_finite), ()
        call = partial(self._run, states, inputs)
        if not edits:
            return vla._engine.plain(call)
        out = vla._engine.traced(call, edit_workers(edits, vla.policy, inputs, ledger), inputs.batch_size)
        vla._changes = ledger.changes(edits)
        return out

    def _reaches(self, site: Site) -> bool:
        return site.order > self.after.order
