"""What can be read off the activations, and is it more than the controls know?"""

from mist_interp.probing.evaluation import cross_validate
from mist_interp.probing.folds import Fold, check_folds, make_folds
from mist_interp.probing.probe import Probe
from mist_interp.probing.report import Margin, ProbeReport, Score
from mist_interp.probing.targets import TARGETS, ContactAhead, Failure, Labels, Target

__all__ = [
    "TARGETS",
    "ContactAhead",
    "Failure",
    "Fold",
    "Labels",
    "Margin",
    "Probe",
    "ProbeReport",
    "Score",
    "Target",
    "check_folds",
    "cross_validate",
    "make_folds",
]
