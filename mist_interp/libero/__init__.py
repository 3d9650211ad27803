"""LIBERO, bit for bit, without a prompt, a print or a picture that nobody looks at.

Importing a name from here starts the simulator's packages; `import mist_interp.libero` alone does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mist_interp.libero.contact_events import ContactEvent as ContactEvent
    from mist_interp.libero.env import LiberoEnv as LiberoEnv
    from mist_interp.libero.env import Step as Step
    from mist_interp.libero.expert import Expert as Expert
    from mist_interp.libero.fork import Fork as Fork
    from mist_interp.libero.suite import LiberoSuite as LiberoSuite
    from mist_interp.libero.suite import Task as Task

_HOMES = {
    "LiberoSuite": "mist_interp.libero.suite",
    "Task": "mist_interp.libero.suite",
    "LiberoEnv": "mist_interp.libero.env",
    "Step": "mist_interp.libero.env",
    "Fork": "mist_interp.libero.fork",
    "ContactEvent": "mist_interp.libero.contact_events",
    "Expert": "mist_interp.libero.expert",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
