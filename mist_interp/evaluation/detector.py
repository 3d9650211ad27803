"""When would an intervention be triggered?

A detector looks at the *unedited* forward pass of a query and gives one score; the trigger is the first query
whose score exceeds the threshold. It runs in every arm, also in `none` (in shadow), so that the units that
would have been triggered are known for all of them. Its forward pass is not wasted: an arm that leaves the
policy alone returns its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from mist_interp.core.actions import ActionChunk
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.data.activation_set import fingerprint, refuse_shared, start_states
from mist_interp.data.capture import pool_tokens
from mist_interp.data.records import Unit
from mist_interp.probing.probe import Probe

Score = Callable[[Any, PolicyInputs], "float | tuple[float, ActionChunk]"]


@dataclass(frozen=True)
class Detector:
    """A score and the threshold above which it counts as a trigger.

    Attributes:
        score: `score(vla, inputs)` -> the score of a batch of one, or that and the untouched policy's answer.
        threshold: the detector fires when score > threshold, so that a conformal limit (`probing/conformal.py`) keeps
            its promise with ties too; infinity never fires.
        name: name in settings and figures.
    """

    score: Score
    threshold: float
    name: str = "detector"

    def config(self) -> dict[str, Any]:
        """What defines the detector in a results folder; a score object may describe itself by `config()`."""
        own = self.score.config() if hasattr(self.score, "config") else {}
        return {"name": self.name, "threshold": repr(float(self.threshold)), **own}

    def check_units(self, units: Iterable[Unit]) -> None:
        """Refuse units that the score was fitted on, where it knows.

        Raises:
            ValueError: there is one; the message names it.
        """
        if hasattr(self.score, "check_units"):
            self.score.check_units(units)

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
        return score, score > self.threshold, clean


class ProbeScore:
    """The probability that a fitted probe gives one of its outputs, read where the probe was fitted.

    Args:
        probe: a fitted probe.
        output: which of its outputs; may be left out when there is only one.

    Raises:
        UnknownName: the probe has no such output.
        ValueError: it has several and none was named.
    """

    def __init__(self, probe: Probe, output: str | None = None) -> None:
        if output is None and len(probe.outputs_) > 1:
            raise ValueError(f"name one of the outputs {', '.join(probe.outputs_)}")
        self.output = output or probe.outputs_[0]
        if self.output not in probe.outputs_:
            raise UnknownName("output of this probe", self.output, probe.outputs_)
        self.probe = probe
        self._place = list(probe.outputs_).index(self.output)

    def __call__(self, vla: Any, inputs: PolicyInputs) -> tuple[float, ActionChunk]:
        """Score of a batch of one, and the untouched policy's answer."""
        chunk, cache = vla.run_with_cache(inputs, names=[self.probe.site_], tokens=self.probe.tokens)
        values = cache[self.probe.site_].detach().as_subclass(torch.Tensor)
        rows = pool_tokens(values.float(), self.probe.pool).cpu().numpy()
        return float(self.probe.predict_proba(rows)[0, self._place]), chunk

    def config(self) -> dict[str, Any]:
        """Everything that defines the score."""
        return {
            "site": str(self.probe.site_),
            "tokens": self.probe.tokens,
            "pool": self.probe.pool,
            "output": self.output,
            "trained_on": fingerprint(self.probe.trained_on_),
        }

    def check_units(self, units: Iterable[Unit]) -> None:
        """See `Detector.check_units`."""
        refuse_shared(self.probe.trained_on_, start_states(units))
