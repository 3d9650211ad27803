"""What do the weights of heads say: what they look for, what they write, and who reads it?"""

from mist_interp.analysis.weights.action import ActionReadout, action_directions, ov_toward_action
from mist_interp.analysis.weights.circuits import (
    Composition,
    composition,
    ov_between,
    ov_circuit,
    qk_between,
    qk_circuit,
    written_vectors,
)
from mist_interp.analysis.weights.factored import Factored

__all__ = [
    "ActionReadout",
    "Composition",
    "Factored",
    "action_directions",
    "composition",
    "ov_between",
    "ov_circuit",
    "ov_toward_action",
    "qk_between",
    "qk_circuit",
    "written_vectors",
]
