"""How does a package export names without importing the modules that define them?

    _HOMES = {"HookedVLA": "hooked"}            # name -> module, relative to the package
    __all__ = list(_HOMES)
    __getattr__, __dir__ = lazy_exports(__name__, _HOMES)

A module is imported when a name of its is first asked for (PEP 562). No export may be called like a module of its own
package: importing that module would put it in the place of the export.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from mist_interp.core.errors import suggest


def lazy_exports(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        homes: exported name -> module that defines it, relative to the package.
    """

    def get(name: str) -> Any:
        if name not in homes:
            hint = "" if name.startswith("__") else suggest(name, homes)
            raise AttributeError("; ".join(filter(None, [f"module {package!r} has no attribute {name!r}", hint])))
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
