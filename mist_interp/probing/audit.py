"""Would the collision have happened without this dimension?

The geometry of a contact says who closed its gap; a *knockout* asks the simulator: from the state at the query the same
actions are executed again with one dimension set to zero, and the dimension is *necessary* if the event disappears
(`libero/knockout.py` runs the forks). Both are opinions on the same events, and Cohen's kappa says how far they agree
beyond chance (J. Cohen, "A coefficient of agreement for nominal scales", 1960). Below 0.4 the knockout's counts.

They answer different questions: a hand that is driven into a wall by dx and dy alike hits it without either (neither is
necessary), and a step to the side that only brought the hand in front of an obstacle is necessary without having closed
the gap. With all 128 subsets of dimensions the exact Shapley values divide the event fairly.

An audit is a file of JSON lines, one per query and event, in the folder of the rollouts that it audits
(`RolloutStore.audit_path`); it is published, compacted and fetched with them. Every finding carries a hash of what was
run again, so that an audit of other episodes, or one with another window or force, is not taken for this one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.metrics import cohen_kappa_score

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.files import append_json_line
from mist_interp.data.findings import AUDIT, read_findings
from mist_interp.data.records import Array
from mist_interp.data.store import RolloutStore

TRUSTED_KAPPA = 0.4
DIMENSIONS = len(ACTION_NAMES)
SUBSETS = 2**DIMENSIONS


@dataclass(frozen=True)
class Finding:
    """What was found for one event as seen from one query.

    Attributes:
        episode: key.
        query: number of the query.
        step: its control step.
        event: control step in which the event began.
        bodies: the pairs (robot, other) that touched then.
        geometric: (7,) 1 to blame by geometry, 0 not, None unattributed.
        shares: (6,) rho_d; None unattributed.
        reproduced: whether the event happens again when nothing is changed.
        rule: what the labels ask, see `Risk.asks`.
        asked: what was run again, see `asked`.
        necessary: (7,) whether it disappears without the dimension; None if it was not reproduced.
        shapley: (7,) exact Shapley values of the event's happening; None if the subsets were not run.
    """

    episode: str
    query: int
    step: int
    event: int
    bodies: tuple[tuple[str, str], ...]
    geometric: tuple[float | None, ...]
    shares: tuple[float | None, ...]
    reproduced: bool
    rule: str
    asked: str
    necessary: tuple[bool, ...] | None = None
    shapley: tuple[float, ...] | None = None

    @property
    def key(self) -> tuple[str, int, int]:
        """Episode, control step of the query, control step of the event."""
        return self.episode, self.step, self.event


@dataclass(frozen=True)
class Opinion:
    """What an audit says of the events of one query.

    Attributes:
        replaced: (7,) dimensions for which the audit counts and geometry does not.
        necessary: control step of the event -> (7,) 1 or 0.
    """

    replaced: Bool[np.ndarray, "7"]
    necessary: Mapping[int, Float[Array, "7"]]

    def instead_of(self, own: Float[Array, "7"], event: int) -> Float[Array, "7"]:
        """`own` with the audit's answer where that counts.

        NaN where it counts and the event was not audited, or where no single dimension is necessary: an event that
        happens without any one of them is nobody's.
        """
        said = self.necessary.get(event, np.full(DIMENSIONS, np.nan))
        return np.where(self.replaced, said if said.any() else np.nan, own)


@dataclass(frozen=True)
class Audit:
    """The findings of an audit."""

    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, store: RolloutStore) -> Audit:
        """The audit of a store, the whole of it if the store is a view of some episodes.

        A line cut short by a crash is left out; of several findings on one event the last one counts.

        Raises:
            FileNotFoundError: there is none.
            ValueError: its findings were made by several rules.
        """
        if not store.audit_path.is_file():
            raise FileNotFoundError(
                f"the rollouts in {store.folder} have no knockout audit ({AUDIT}); "
                f"experiments/labels/audit.py --rollouts {store.folder} makes one"
            )
        audit = cls(tuple(_finding(row) for row in read_findings(store.audit_path)))
        if len(audit.rules) > 1:
            raise ValueError(
                f"{store.audit_path} mixes audits: {'; '.join(audit.rules)}. Keep the lines of one of them"
            )
        return audit

    @cached_property
    def rules(self) -> tuple[str, ...]:
        """What the findings ask, see `Risk.asks`: one rule, unless two audits were mixed."""
        return tuple(sorted({each.rule for each in self.findings}))

    def kappas(self) -> Float[Array, "7"]:
        """Kappa of each dimension.

        NaN where both sides always say the same one thing, so that chance alone would agree as well. Where one side
        always says the same and the other does not, kappa is 0, however large the agreement.
        """
        values = np.full(DIMENSIONS, np.nan)
        for place in range(DIMENSIONS):
            geometric, necessary = self._pairs(place)
            if len({*geometric, *necessary}) == 2:
                values[place] = cohen_kappa_score(geometric, necessary)
        return values

    def replaced(self) -> Bool[np.ndarray, "7"]:
        """Dimensions for which the knockout's label is to be used: kappa below 0.4."""
        with np.errstate(invalid="ignore"):
            return self.kappas() < TRUSTED_KAPPA

    def opinion(self, episode: str, step: int, rule: str, asked: str) -> Opinion:
        """What the audit says of the query at a control step of an episode.

        Args:
            episode: key.
            step: control step of the query.
            rule: what the labels ask, see `Risk.asks`.
            asked: which actions they are about, see `asked`.

        Raises:
            ValueError: the audit asked something else.
        """
        again = f"or move {AUDIT} away and run experiments/labels/audit.py again"
        if self.findings and self.rules != (rule,):
            raise ValueError(
                f"the audit was made with {'; '.join(self.rules)}, and the labels ask with {rule}. Ask as the audit "
                f"did, {again}"
            )
        found = self._of_query.get((episode, step), ())
        if any(each.asked != asked for each in found):
            raise ValueError(
                f"the audit is of other episodes: at control step {step} of {episode} other actions were run again "
                f"than these labels are about. Give the audit of these rollouts, {again}"
            )
        judged = [each for each in found if each.necessary is not None]
        return Opinion(self._replaced, {each.event: np.array(each.necessary, dtype=np.float64) for each in judged})

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    @cached_property
    def _replaced(self) -> Bool[np.ndarray, "7"]:
        return self.replaced()

    @cached_property
    def _keys(self) -> frozenset[tuple[str, int, int]]:
        return frozenset(each.key for each in self.findings)

    @cached_property
    def _of_query(self) -> dict[tuple[str, int], list[Finding]]:
        index: dict[tuple[str, int], list[Finding]] = {}
        for each in self.findings:
            index.setdefault((each.episode, each.step), []).append(each)
        return index

    def table(self) -> pd.DataFrame:
        """One row per dimension: how many rows both judge, how often each says "to blame", agreement, kappa."""
        kappas, rows = self.kappas(), []
        for place, name in enumerate(ACTION_NAMES):
            geometric, necessary = self._pairs(place)
            both = np.array([geometric, necessary], dtype=bool).reshape(2, -1)
            rows.append(
                {
                    "dimension": name,
                    "rows": both.shape[1],
                    "geometric": int(both[0].sum()),
                    "necessary": int(both[1].sum()),
                    "both": int(both.all(0).sum()),
                    "agreement": float((both[0] == both[1]).mean()) if both.size else np.nan,
                    "kappa": kappas[place],
                    "label": "knockout" if kappas[place] < TRUSTED_KAPPA else "geometric",
                }
            )
        return pd.DataFrame(rows)

    def _pairs(self, place: int) -> tuple[list[bool], list[bool]]:
        judged = [
            (bool(each.geometric[place]), bool(each.necessary[place]))
            for each in self.findings
            if each.necessary is not None and each.geometric[place] is not None
        ]
        return [pair[0] for pair in judged], [pair[1] for pair in judged]


def append_finding(store: RolloutStore, finding: Finding) -> None:
    """Add one finding to the audit of a store; several processes may do so.

    Raises:
        ValueError: the store lies in the Hub's cache, whose files are those of what is published.
    """
    if (store.folder / "manifest.json").is_symlink():
        raise ValueError(f"{store.folder} is a copy of what is published; audit one of your own: mist compact FROM OUT")
    append_json_line(store.audit_path, asdict(finding))


def asked(actions: Float[Array, "steps 7"], force: float) -> str:
    """A hash of what an audit runs again, and of what labels are about.

    Args:
        actions: executed from the query to the end of its window (or of the episode).
        force: least peak force of an event, N.

    Returns:
        16 hexadecimal digits.
    """
    content = np.ascontiguousarray(actions, dtype="<f8")
    digest = hashlib.sha256(f"{float(force)!r} {content.shape}".encode())
    digest.update(content.tobytes())
    return digest.hexdigest()[:16]


def shapley(happens: Sequence[bool] | Float[Array, " subsets"]) -> Float[Array, " dims"]:
    """Exact Shapley values (L. Shapley, "A value for n-person games", 1953).

    Args:
        happens: value of every subset of n dimensions; bit d of the index says whether dimension d acts.

    Returns:
        (n,) their sum is the value of all dimensions minus that of none.

    Raises:
        ValueError: the number of subsets is not a power of two.
    """
    values = np.asarray(happens, dtype=np.float64)
    count = len(values).bit_length() - 1
    if len(values) != 2**count:
        raise ValueError(f"{len(values)} subsets are not all subsets of a set")
    sizes = np.array([bin(subset).count("1") for subset in range(len(values))])
    weights = np.array(
        [math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count) for size in range(count)]
    )
    result = np.zeros(count)
    for dim in range(count):
        without = np.array([subset for subset in range(len(values)) if not subset >> dim & 1], dtype=np.intp)
        result[dim] = np.sum(weights[sizes[without]] * (values[without | 1 << dim] - values[without]))
    return result


def _finding(row: Mapping[str, Any]) -> Finding:
    fields = {name: _tuples(value) for name, value in row.items()}
    return Finding(**fields)


def _tuples(value: Any) -> Any:
    return (
        tuple(_tuples(each) for each in value) if isinstance(value, Iterable) and not isinstance(value, str) else value
    )
