"""What can be done to a policy at a query: the arms of a comparison, each an object that says what it is."""

from mist_interp.evaluation.arms.activations import (
    ConceptNeurons,
    Intervene,
    NoEdit,
    Steer,
    fingerprint,
    random_direction,
)
from mist_interp.evaluation.arms.chosen import Chosen
from mist_interp.evaluation.arms.learned import LearnedDirections
from mist_interp.evaluation.arms.mist import ActionCorrection, Mist, placebo
from mist_interp.evaluation.arms.motion import FailsafeStyle, GenericSlow, SafeStop
from mist_interp.evaluation.arms.protocol import WHEN, Arm, ArmLog, Query
from mist_interp.evaluation.arms.shams import ShamTriggers

__all__ = [
    "WHEN",
    "ActionCorrection",
    "Arm",
    "ArmLog",
    "Chosen",
    "ConceptNeurons",
    "FailsafeStyle",
    "GenericSlow",
    "Intervene",
    "LearnedDirections",
    "Mist",
    "NoEdit",
    "Query",
    "SafeStop",
    "ShamTriggers",
    "Steer",
    "fingerprint",
    "placebo",
    "random_direction",
]
