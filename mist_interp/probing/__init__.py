"""What can be read off the activations, and is it more than the controls know?"""

from mist_interp.probing.advice import Advice
from mist_interp.probing.benefit import Benefit
from mist_interp.probing.conformal import ConformalAlarm
from mist_interp.probing.contrasts import contrast_sets
from mist_interp.probing.deviation import Deviation
from mist_interp.probing.evaluation import cross_validate
from mist_interp.probing.explanation import Explanation, explain
from mist_interp.probing.folds import Fold, check_folds, make_folds
from mist_interp.probing.foresight import LeadTime
from mist_interp.probing.layer_sweep import LayerSweep
from mist_interp.probing.networks import LSTM, MLP
from mist_interp.probing.networks_classifier import NetworkClassifier
from mist_interp.probing.networks_fitted import Training
from mist_interp.probing.predictor import RiskPredictor
from mist_interp.probing.predictor_policies import PolicyPredictor
from mist_interp.probing.predictor_transfer import Transfer, transfer
from mist_interp.probing.probe import Probe
from mist_interp.probing.risk import Risk
from mist_interp.probing.score_table import Margin, ProbeReport, Score
from mist_interp.probing.scored import ScoredEpisodes
from mist_interp.probing.sweep import fit_layers
from mist_interp.probing.targets import TARGETS, ContactAhead, Failure, FailureWithin, Labels, Target, time_to_failure
from mist_interp.probing.temporal import ExponentialAverage, RunningMaximum, RunningSum

__all__ = [
    "LSTM",
    "MLP",
    "TARGETS",
    "Advice",
    "Benefit",
    "ConformalAlarm",
    "ContactAhead",
    "Deviation",
    "Explanation",
    "ExponentialAverage",
    "Failure",
    "FailureWithin",
    "Fold",
    "Labels",
    "LayerSweep",
    "LeadTime",
    "Margin",
    "NetworkClassifier",
    "PolicyPredictor",
    "Probe",
    "ProbeReport",
    "Risk",
    "RiskPredictor",
    "RunningMaximum",
    "RunningSum",
    "Score",
    "ScoredEpisodes",
    "Target",
    "Training",
    "Transfer",
    "check_folds",
    "contrast_sets",
    "cross_validate",
    "explain",
    "fit_layers",
    "make_folds",
    "time_to_failure",
    "transfer",
]
