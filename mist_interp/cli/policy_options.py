"""Which policy does a command run, and how is it loaded? The options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mist_interp.data.policy_source import PolicySource


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """Options of a command that runs a policy; a command inherits them and puts its own after."""

    model: str = "mini"
    """Policy: "mini" or "mini-base" (in the package), a folder, or a Hub id."""

    device: str | None = None
    """Where the policy runs, for example cuda; default: the CPU."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; default: float32 below a billion parameters, bfloat16 above."""

    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """How attention is computed; default: sdpa."""

    unnorm_key: str | None = None
    """Data set whose statistics turn actions into robot units; default: the only one of the checkpoint, or of several
    the suite's."""

    def policy(self) -> PolicySource:
        """What is asked for, checked as far as that needs neither imports that take seconds nor a download.

        Raises:
            UnknownName: there can be no such policy.
        """
        source = PolicySource(self.model, self.device, self.dtype, self.attn_implementation, self.unnorm_key)
        source.check()
        return source
