"""When would an intervention be triggered?

A detector looks at the *unedited* forward pass of a query and gives one score; the trigger is the first query
whose score reaches the threshold. It runs in every arm, also in `none` (in shadow), so that the units that
would have been triggered are known for all of them. Its forward pass is not wasted: an arm that leaves the
policy alone returns its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs

Score = Callable[[Any, PolicyInputs], "float | tuple[float, ActionChunk]"]


@dataclass(frozen=True)
class Detector:
    """A score and the threshold from which it counts as a trigger.

    Attributes:
        score: `score(vla, inputs)` -> the score of a batch of one, or that and the untouched policy's answer.
        threshold: the detector fires when score >= threshold; infinity never fires.
        name: name in settings and figures.
    """

    score: Score
    threshold: float
    name: str = "detector"

    def config(self) -> dict[str, Any]:
        """What defines the detector in a results folder; a score object may describe itself by `config()`."""
        own = self.score.config() if hasattr(self.score, "config") else {}
        return {"name": self.name, "threshold": repr(float(self.threshold)), **own}

    def look(self, vla: Any, inputs: PolicyInputs) -> tuple[float, bool, ActionChunk | None]:
        """Score, whether it fires, and the untouched answer where the score needed it.

        Raises:
            ValueError: the score is not a number.
        """
        with torch.no_grad():
            seen = self.score(vla, inputs)
        score, clean = seen if isinstance(seen, tuple) else (seen, None)
        score = float(score)
        if score != score:
            raise ValueError(f"detector {self.name!r} returned NaN as score")
        return score, score >= self.threshold, clean
