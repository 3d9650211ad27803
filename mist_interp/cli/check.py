"""`mist check`: can this policy be trusted on this machine?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro


@dataclass(frozen=True)
class Command:
    """Load a policy and verify what raises no error anywhere when it is wrong.

    Its attention is bidirectional or causal as its variant needs, reading activations leaves the actions bit-identical,
    the token layout fits the sequence, and the head reads the positions that are called action_read.
    """

    model: tyro.conf.Positional[str] = "mini"
    """Policy: "mini" or "mini-base" (in the package), a folder with the published files, or a Hub id."""

    attn_implementation: Literal["sdpa", "eager"] | None = None
    """How attention is computed; both have to pass."""

    device: str | None = None
    """Where, for example cuda; default: the CPU."""

    def run(self) -> int:
        """Check, and print what was found."""
        from mist_interp import HookedVLA

        vla = HookedVLA.from_pretrained(self.model, attn_implementation=self.attn_implementation, device=self.device)
        print(vla)
        print(vla.check())
        return 0
