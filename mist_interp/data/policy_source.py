"""How does a run come by its policy, here or in another process?

A policy that is yet to be loaded is a `PolicySource`: plain values that a command line can fill in and that can be
sent to workers, each of which then loads the same policy in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mist_interp.core.errors import listing

if TYPE_CHECKING:
    from mist_interp.tracing.hooked import HookedVLA


@dataclass(frozen=True)
class PolicySource:
    """Where a policy lies and how it is to be loaded; None leaves a choice to `mist_interp.models.load_policy`.

    Attributes:
        path_or_id: "mini", "mini-base", a folder, or "owner/name" on the Hugging Face Hub.
        device: such as `cuda`.
        dtype: `float32`, `bfloat16` or `float16`.
        attn_implementation: `sdpa`, `eager` or `flash_attention_2`.
        unnorm_key: data set whose statistics turn actions into robot units. None takes the only one, or of several the
            one that belongs to the suite in which the policy is to act, see `suite_keys`.
    """

    path_or_id: str
    device: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    unnorm_key: str | None = None

    def check(self) -> None:
        """Refuse at once, without a download, what cannot be the name of a policy.

        Raises:
            UnknownName: it is neither a shipped policy ("mini", "mini-base") nor a folder, and no repository can be
                called so.
        """
        if self.path_or_id.count("/") != 1:
            _folder(self.path_or_id)

    def load(self, suite: str | None = None) -> HookedVLA:
        """Load the policy.

        Args:
            suite: name of the suite in which it is to act; chooses the statistics where there are several.

        Raises:
            ValueError: none of several statistics belongs to the suite; the message lists them. See `load_policy` for
                further errors.
        """
        from mist_interp.tracing.hooked import HookedVLA

        return HookedVLA.from_pretrained(
            self.path_or_id,
            dtype=self.dtype,
            device=self.device,
            attn_implementation=self.attn_implementation,
            unnorm_key=self._key_for(suite) if self.unnorm_key is None and suite else self.unnorm_key,
        )

    def _key_for(self, suite: str) -> str | None:
        from mist_interp.models.checkpoint import read_statistics
        from mist_interp.models.folder import read_json

        folder = _folder(self.path_or_id)
        possible = read_statistics(folder, read_json(folder / "config.json"))
        if len(possible) == 1:
            return None
        for key in suite_keys(suite):
            if key in possible:
                return key
        raise ValueError(
            f"{self.path_or_id} has statistics of {len(possible)} data sets, none of which is that of {suite}; "
            f"say which with unnorm_key (--unnorm-key): {listing(possible)}"
        )


def suite_keys(suite: str) -> tuple[str, str]:
    """Names under which a checkpoint may hold the statistics of a LIBERO suite, the published one first."""
    return f"{suite}_no_noops", suite


def named_policy(vla: Any) -> Any:
    """A name or a folder becomes a `PolicySource`, checked before anything else is loaded; all else stays as it is.

    Raises:
        UnknownName: there can be no such policy.
    """
    if isinstance(vla, str | Path):
        vla = PolicySource(str(vla))
    if isinstance(vla, PolicySource):
        vla.check()
    return vla


def resolve_policy(vla: Any, suite: str | None = None) -> Any:
    """The policy itself.

    Args:
        vla: the policy, a name, a folder, a `PolicySource`, or a function without arguments that gives the policy.
        suite: see `PolicySource.load`.
    """
    vla = named_policy(vla)
    if isinstance(vla, PolicySource):
        return vla.load(suite)
    return vla() if callable(vla) and not hasattr(vla, "prepare") else vla


def _folder(path_or_id: str) -> Path:
    from mist_interp.models.folder import resolve

    return resolve(path_or_id)
