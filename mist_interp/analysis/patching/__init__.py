"""Which activations cause what the policy does: patching grids, exact and by gradient."""

from mist_interp.analysis.patching.folder import OtherSweep
from mist_interp.analysis.patching.gradient import agreement, attribution_patch
from mist_interp.analysis.patching.grid import PatchGrid
from mist_interp.analysis.patching.runs import MeanActivations, Run, averaged, mean_of, noised, swapped
from mist_interp.analysis.patching.sweep import patch

__all__ = [
    "MeanActivations",
    "OtherSweep",
    "PatchGrid",
    "Run",
    "agreement",
    "attribution_patch",
    "averaged",
    "mean_of",
    "noised",
    "patch",
    "swapped",
]
