"""`mist describe`: which activations have a name?"""

from __future__ import annotations

from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Command:
    """Print the names of a policy's activations, with the shape and the meaning of each.

    `mist describe "blocks.*.attn.*"` and `mist describe resid_post` print some of them.
    """

    names: tyro.conf.Positional[str] = "*"
    """A full name, a short form, or a pattern with * and ?."""

    model: str = "mini"
    """Policy: "mini" or "mini-base" (in the package), a folder, or a Hub id."""

    def run(self) -> int:
        """Print one entry per name."""
        from mist_interp import HookedVLA

        print(HookedVLA.from_pretrained(self.model, attn_implementation="eager").describe(self.names))
        return 0
