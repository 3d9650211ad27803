"""How long does an edit live, and whose is it?

An edit lives from entering its scope to leaving it, and leaving removes exactly the edits that this scope added, in
whatever order scopes end. Three mistakes would otherwise pass without a word, each of them a rollout that is not
steered: a scope that is made and never entered, a scope that is entered again after it has ended, and a thread that
runs the policy under the edits of another thread. The first is warned of, the other two are errors.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Generic, TypeVar

from mist_interp.tracing.edits import Edit

Owner = TypeVar("Owner")


class LiveEdits:
    """The edits that are live on one view of a policy, all of them made by one thread."""

    def __init__(self) -> None:
        self._edits: tuple[Edit, ...] = ()
        self._thread: int | None = None
        self._lock = threading.Lock()

    @property
    def all(self) -> tuple[Edit, ...]:
        """In the order in which they apply where they meet."""
        return self._edits

    def here(self) -> tuple[Edit, ...]:
        """The same, for a forward of the calling thread.

        Raises:
            RuntimeError: they belong to another thread.
        """
        edits, thread = self._edits, self._thread
        if edits and thread != threading.get_ident():
            raise RuntimeError(
                f"{len(edits)} edits of another thread are live on this object; give each thread a view of its own: "
                "HookedVLA(vla.policy)"
            )
        return edits

    def add(self, edits: Sequence[Edit]) -> None:
        """Make edits live.

        Raises:
            RuntimeError: edits of another thread are live.
        """
        with self._lock:
            self.here()
            self._thread = threading.get_ident()
            self._edits = (*self._edits, *edits)

    def remove(self, edits: Sequence[Edit]) -> None:
        """End these very edits; equal ones of other scopes stay."""
        with self._lock:
            self._edits = tuple(edit for edit in self._edits if not any(edit is mine for mine in edits))


class EditScope(Generic[Owner]):
    """A `with` block in which edits are live; made by `HookedVLA.hooks`, entered once."""

    def __init__(self, owner: Owner, live: LiveEdits, edits: Sequence[Edit]):
        self._owner, self._live, self._edits = owner, live, tuple(edits)
        self._state = "new"

    def __enter__(self) -> Owner:
        if self._state != "new":
            ended = "has ended" if self._state == "ended" else "is entered already"
            raise RuntimeError(f"this scope of {len(self._edits)} edits {ended}; a scope is used once, make a new one")
        self._state = "ended"  # also if entering fails
        self._live.add(self._edits)
        self._state = "entered"
        return self._owner

    def __exit__(self, *exception: object) -> None:
        self._live.remove(self._edits)
        self._state = "ended"

    def __del__(self) -> None:
        if getattr(self, "_state", "") == "new" and self._edits:
            message = (
                f"a scope of {len(self._edits)} edits was never entered, so they did nothing: with vla.hooks(...):"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=2)
