"""What does a reader see of a run? One self-contained page with tables, figures and films."""

from importlib import import_module
from typing import Any

_EXPORTS = {"write_report": "page", "load_run": "run"}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; possible: {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
