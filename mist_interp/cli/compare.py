"""`mist compare`: do arms differ, within one run or across several?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True)
class Command:
    """Compare arms of one or several results folders on the units that they share.

    Prints the main table, what the arms' twins under the reference say (causal recovery, harm, net benefit), and the
    paired tests. An arm that several folders have is called arm@folder. Examples:

    mist compare results/steer

    mist compare results/base results/steer --arms steer --against none@base
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Results folders of `mist eval`."""

    arms: tuple[str, ...] = ()
    """Only these arms, named as in the table."""

    against: str | None = None
    """The arm that others are compared with; default: none, of the first folder."""

    out: Path | None = None
    """Also write everything as JSON into this file."""

    def run(self) -> int:
        """Compare and print."""
        from mist_interp.cli.progress import print_summary
        from mist_interp.core.files import write_atomic
        from mist_interp.evaluation.comparison import compare

        summary = compare(self.folders, arms=self.arms, reference=self.against)
        print_summary(summary)
        print("\n".join(twin_lines(summary)))
        if self.out is not None:
            write_atomic(self.out, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        return 0


def twin_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the twins say, for a terminal: one line per arm and bad outcome, one per test."""
    twins = summary["twins"]
    if not twins or not twins["arms"]:
        return ["no trigger was logged, so there are no twins to compare"]
    labels = twins["labels"]
    lines = [
        f"twins under {twins['reference']}: {twins['triggered']} units with a trigger; false triggers, "
        f"of units that go well and touch nothing: {_number(twins['false_trigger_rate'])}"
    ]
    for outcome in twins["outcomes"]:
        for arm, facts in twins["arms"].items():
            numbers = ", ".join(f"{labels[name]} {_number(facts[outcome][name])}" for name in labels)
            lines.append(f"  {outcome}: {arm}: {numbers}")
    for test in twins["comparisons"]:
        lines.append(
            f"  {test['outcome']}: {test['arm']} against {test['reference']}, {labels[test['of']]} "
            f"{_number(test['difference'])}, better {test['better_here']} : {test['better_there']}, "
            f"p {test['p_holm']:.3f} (McNemar, Holm)"
        )
    return lines


def _number(estimate: Mapping[str, Any]) -> str:
    """Per cent with interval and n; a dash where nothing was at stake."""
    if estimate["value"] is None:
        return "– (n = 0)"
    value = f"{100 * estimate['value']:.1f}"
    if estimate["low"] is None:
        return f"{value} (n = {estimate['n']})"
    return f"{value} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}, n = {estimate['n']})"
