"""Would acting at other times have helped as much, or doing something else at the very same times?

The same arm, but its queries are drawn at random: in each unit as many as another arm acted at, among those that both
that arm and `none` lived to see, for a time behind the end of the sham's own episode would be lost. If the other arm
prolonged its episode and acted at more than `none` has, all of its queries are drawn from. By default the other arm is
`none`, which would have acted where the gate was open. The counts come from a results folder, which may be that of the
very run if the other arm stands before this one; without one, each query is drawn with the same probability `rate`.
What is drawn depends on the unit and the seed alone. Such a sham may act before the trigger, so it is not gated and
runs from the start.

With `exact` nothing is drawn: the arm acts at the very queries at which the other one did (*yoked*), a placebo by edits
as long as the other's were. A placebo that follows the gate instead acts at fewer of them once it has left the other
arm's path. Yoked to an arm that waits for the trigger it waits as well.

A choice among arms (`chosen`) is made anew, by heads that know triggers alone: at a random query it may be another
edit, or none, so such a sham acts a little less often.

Which dimensions are flagged at a random time is the detector's business: if none is, the one nearest to
its alarm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.data.records import Unit
from mist_interp.evaluation.arms.protocol import Arm, ArmLog, Query
from mist_interp.evaluation.folder import ResultsFolder
from mist_interp.evaluation.plan import REFERENCE_ARM, PlannedEpisode

LONGEST = 1000  # queries of an episode, far above every step limit
SHARED = "queries of both, or of the longer if they are too few"


@dataclass(frozen=True)
class ShamTriggers:
    """An arm at random times.

    Attributes:
        arm: what is done.
        of: results folder in which the arm `like` has run; None: `rate`.
        like: whose queries are counted, or taken; `none`: those at which the gate was open.
        exact: take the very queries instead of as many others.
        rate: probability of each query, if there is no folder.
        seed: of the draw, beside the unit.
        name: name in tables and folders.
    """

    arm: Arm
    of: Path | None = None
    like: str = REFERENCE_ARM
    exact: bool = False
    rate: float = 0.1
    seed: int = 0
    name: str = "sham-triggers"

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"arm {self.name!r}: rate={self.rate}; give a probability")
        if self.exact and self.of is None:
            raise ValueError(f"arm {self.name!r}: exact=true needs of=RUN, in which {self.like} has run")

    @property
    def gated(self) -> bool:
        """See `Arm`."""
        return self.exact

    @property
    def sites(self) -> tuple[Any, ...]:
        """See `Arm`."""
        return tuple(getattr(self.arm, "sites", ()))

    def config(self) -> dict[str, Any]:
        """See `Arm`."""
        taken = (
            {"queries": f"of {self.like}", "lengths": f"of {self.like}"}
            if self.exact
            else {"counts": f"as {self.like}", "among": SHARED}
        )
        counted = taken if self.of else {"rate": float(self.rate)}
        return {"kind": "sham-triggers", "placebo": True, "arm": self.arm.config(), "seed": self.seed, **counted}

    def check_units(self, units: Iterable[Unit]) -> None:
        """Refuse what the arm inside refuses."""
        if hasattr(self.arm, "check_units"):
            self.arm.check_units(units)

    def act(self, vla: Any, inputs: PolicyInputs, query: Query) -> tuple[ActionChunk, ArmLog]:
        """See `Arm`.

        Raises:
            ValueError: the folder has no finished episode of the other arm in this unit, or that acted before the
                trigger and is to be yoked to.
        """
        if "times" not in query.memory:
            query.memory["times"] = self.times(query.unit)
            query.memory["lengths"] = self.lengths(query.unit) if self.exact else {}
            query.memory["inner"] = {}
        times = query.memory["times"]
        fired = query.index in times
        flagged = query.flagged
        if fired and not flagged and query.nearest:
            flagged = (query.nearest,)
        triggered = any(time <= query.index for time in times)
        length = query.memory["lengths"].get(query.index)
        instead = {"fired": fired, "triggered": triggered, "flagged": flagged, "length": length}
        return self.arm.act(vla, inputs, replace(query, **instead, memory=query.memory["inner"]))

    def lengths(self, unit: Unit) -> dict[int, float]:
        """Norm of the other arm's edit at each of its queries that had one."""
        queries = self._queries(unit, self.like)
        norms = queries.set_index("query")["edit_norm"]
        return {int(query): float(norm) for query, norm in norms[norms > 0].items()}

    def times(self, unit: Unit) -> frozenset[int]:
        """The queries at which the arm acts in a unit."""
        digest = hashlib.sha256(f"sham:{self.seed}:{unit.key}".encode()).digest()
        draw = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        if self.of is None:
            return frozenset(np.flatnonzero(draw.random(LONGEST) < self.rate).tolist())
        queries = self._queries(unit, self.like)
        live = queries["fired"] if self.like == REFERENCE_ARM else queries["edit"] != ""
        if not self.exact:
            lived = min(len(queries), len(self._queries(unit, REFERENCE_ARM)))
            among = lived if live.sum() <= lived else len(queries)
            return frozenset(draw.permutation(among)[: live.sum()].tolist())
        if (live & ~queries["triggered"]).any():
            raise ValueError(f"arm {self.name!r}: {self.like} acts before the trigger, so nothing can be yoked to it")
        return frozenset(queries.loc[live, "query"].tolist())

    def _queries(self, unit: Unit, arm: str) -> pd.DataFrame:
        """Of another arm's episode: its own file, for the list of all episodes grows with the run."""
        assert self.of is not None
        planned = PlannedEpisode(unit, arm)
        try:
            return ResultsFolder(self.of).queries(planned)
        except FileNotFoundError as error:
            raise ValueError(
                f"{self.of} has no finished episode {planned.key}: run the arm {arm} first, or give rate="
            ) from error
