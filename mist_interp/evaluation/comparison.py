"""Do arms differ on the units that they share, though several runs made them?

Rows of several results folders become one table. An arm that only one folder has keeps its name, others become
`arm@folder`; the first folder's `none` is the reference. Units that some arm lacks, or on which one crashed, are left
out of all. What the folders' settings and software differ in is said before the numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mist_interp.core.errors import UnknownName
from mist_interp.evaluation.caveats import partial_reasons, placebo_arms, published_rate, warnings_of
from mist_interp.evaluation.folder import ResultsFolder, flat
from mist_interp.evaluation.plan import REFERENCE_ARM
from mist_interp.evaluation.statistics import DRAWS
from mist_interp.evaluation.summary import summarize


def compare(
    paths: Sequence[str | Path], *, arms: Sequence[str] = (), reference: str | None = None, draws: int = DRAWS
) -> dict[str, Any]:
    """Summary (as `summary.json`) of the arms of one or several results folders on the units that all of them have.

    Args:
        paths: results folders.
        arms: names as in the answer; all arms when empty. The reference is always among them.
        reference: the arm that the others are compared with; default: `none`, of the first folder.
        draws: bootstrap draws.

    Raises:
        FileNotFoundError: a folder holds no run.
        UnknownName: no such arm.
        ValueError: no folder, one named twice, or no finished episode.
    """
    folders = [ResultsFolder(path) for path in paths]
    labels = _labels([folder.path for folder in folders])
    for folder in folders:
        folder.config()  # says so if there is no run
    owners = [tuple(dict.fromkeys(episode.arm for episode in folder.plan())) for folder in folders]
    counts = Counter(arm for names in owners for arm in names)
    named = [
        {arm: arm if counts[arm] == 1 else f"{arm}@{label}" for arm in names}
        for names, label in zip(owners, labels, strict=True)
    ]
    possible = [name for names in named for name in names.values()]
    base = reference or next((names[REFERENCE_ARM] for names in named if REFERENCE_ARM in names), possible[0])
    chosen = list(dict.fromkeys([base, *(arms or possible)]))
    for name in chosen:
        if name not in possible:
            raise UnknownName("arm", name, possible)
    rows, reasons, warnings, placebos = [], [], _differences(folders, labels), []
    published = None
    for folder, label, names in zip(folders, labels, named, strict=True):
        settings, finished, plan = folder.config()["settings"], folder.rows(), folder.plan()
        rows += [row | {"arm": names[row["arm"]]} for row in finished if names[row["arm"]] in chosen]
        prefix = f"{label}: " if len(folders) > 1 else ""
        reasons += [prefix + reason for reason in partial_reasons(settings)]
        if len(finished) < len(plan):
            reasons.append(f"{prefix}{len(finished)} of {len(plan)} planned episodes have run")
        warnings += [prefix + warning for warning in warnings_of(settings, finished)]
        placebos += [names[arm] for arm in placebo_arms(settings) if names[arm] in chosen]
        if base in names.values():
            published = published_rate(settings)
    if not rows:
        raise ValueError("none of these arms has a finished episode")
    return summarize(
        pd.DataFrame(rows),
        chosen,
        partial=reasons,
        warnings=warnings,
        placebos=placebos,
        published=published,
        reference=base,
        draws=draws,
    )


def _labels(paths: Sequence[Path]) -> list[str]:
    """A short name for every folder: its own, with those above it where two are alike."""
    resolved = [path.resolve() for path in paths]
    if not resolved or len(set(resolved)) < len(resolved):
        raise ValueError("name the results folders to compare, each once" if resolved else "name a results folder")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        labels = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(labels)) == len(labels):
            break
    return labels


def _differences(folders: Sequence[ResultsFolder], labels: Sequence[str]) -> list[str]:
    """A sentence for every setting in which the runs differ beside their arms, and for the simulator."""
    facts: list[Mapping[str, Any]] = []
    for folder in folders:
        config = folder.config()
        software = {key: config["provenance"].get(key) for key in ("mujoco", "robosuite", "libero")}
        facts.append(flat({key: value for key, value in config["settings"].items() if key != "arms"}) | software)
    sentences = []
    for key in sorted({key for fact in facts for key in fact}):
        values = [str(fact.get(key)) for fact in facts]
        if len(set(values)) > 1:
            listed = ", ".join(f"{value} ({label})" for value, label in zip(values, labels, strict=True))
            sentences.append(f"the runs differ in {key}: {listed}")
    return sentences
