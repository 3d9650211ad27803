"""Does an intervention help? Paired arms on the same units in the real simulator, resumable, with intervals."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "evaluate": "runner",
    "Evaluation": "runner",
    "Protocol": "execute",
    "Detector": "detector",
    "Arm": "arms",
    "ArmLog": "arms",
    "NoEdit": "arms",
    "Query": "arms",
    "Steer": "arms",
    "random_direction": "arms",
    "ResultsFolder": "folder",
    "SettingsDiffer": "folder",
    "METRICS": "metrics",
    "summarize": "summary",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; possible: {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
