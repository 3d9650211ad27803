"""LIBERO, bit for bit, without a prompt, a print or a picture that nobody looks at.

Importing a name from here starts the simulator's packages; `import mist_interp.libero` alone does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mist_interp.core.lazy import lazy_exports

if TYPE_CHECKING:
    from mist_interp.libero.contact_events import ContactEvent as ContactEvent
    from mist_interp.libero.env import LiberoEnv as LiberoEnv
    from mist_interp.libero.env import Step as Step
    from mist_interp.libero.expert import Expert as Expert
    from mist_interp.libero.fork import Fork as Fork
    from mist_interp.libero.suite import LiberoSuite as LiberoSuite
    from mist_interp.libero.suite import Task as Task

_HOMES = {
    "LiberoSuite": "suite",
    "Task": "suite",
    "LiberoEnv": "env",
    "Step": "env",
    "Fork": "fork",
    "ContactEvent": "contact_events",
    "Expert": "expert",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
