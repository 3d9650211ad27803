"""What does a reader see of a run? One self-contained page with tables, figures and films."""

from mist_interp.core.lazy import lazy_exports

_HOMES = {"write_report": "page", "load_run": "run"}
__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
