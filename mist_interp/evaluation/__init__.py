"""Does an intervention help? Paired arms on the same units in the real simulator, resumable, with intervals."""

from mist_interp.core.lazy import lazy_exports

_HOMES = {
    "evaluate": "runner",
    "Evaluation": "runner",
    "Protocol": "execute",
    "Detector": "detector",
    "Gate": "gate",
    "read_gate": "gate_files",
    "Mist": "arms",
    "SafeStop": "arms",
    "parse_arms": "arm_texts",
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
__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
