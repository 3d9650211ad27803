"""What can be read off the activations, and is it more than the controls know?"""

from mist_interp.probing.conformal import ConformalAlarm
from mist_interp.probing.contrasts import contrast_sets
from mist_interp.probing.evaluation import cross_validate
from mist_interp.probing.explanation import Explanation, explain
from mist_interp.probing.folds import Fold, check_folds, make_folds
from mist_interp.probing.foresight import LeadTime
from mist_interp.probing.layer_sweep import LayerSweep
from mist_interp.probing.probe import Probe
from mist_interp.probing.risk import Risk
from mist_interp.probing.score_table import Margin, ProbeReport, Score
from mist_interp.probing.scored import ScoredEpisodes
from mist_interp.probing.sweep import fit_layers
from mist_interp.probing.targets import TARGETS, ContactAhead, Failure, FailureWithin, Labels, Target, time_to_failure

__all__ = [
    "TARGETS",
    "ConformalAlarm",
    "ContactAhead",
    "Explanation",
    "Failure",
    "FailureWithin",
    "Fold",
    "Labels",
    "LayerSweep",
    "LeadTime",
    "Margin",
    "Probe",
    "ProbeReport",
    "Risk",
    "Score",
    "ScoredEpisodes",
    "Target",
    "check_folds",
    "contrast_sets",
    "cross_validate",
    "explain",
    "fit_layers",
    "make_folds",
    "time_to_failure",
]
