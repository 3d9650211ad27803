"""How does a running evaluation look in a terminal, and in a log file?

In a terminal one line per arm, redrawn: done of all, running success rate with its interval, seconds per
episode, time left. Not in a terminal a plain line at most every half minute, so that a job's log stays
readable.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from mist_interp.evaluation.progress import ArmProgress, Progress

PLAIN_EVERY_SECONDS = 30.0
# What fits into 80 columns; the report has all of them.
TERMINAL_METRICS = ("success_rate", "safe_success_rate", "collision_rate_1n", "collision_rate_10n", "raw_recovery_rate")


class ProgressDisplay:
    """Shows progress while its scope lasts; `show` is the callback of `evaluate`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._last_line = -float("inf")

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """Draw the state of a run."""
        if self._live is not None:
            self._live.update(_table(progress))
            return
        finished = progress.done == progress.total
        if finished or time.monotonic() - self._last_line >= PLAIN_EVERY_SECONDS:
            self._last_line = time.monotonic()
            print(plain_line(progress), file=sys.stderr, flush=True)


def plain_line(progress: Progress) -> str:
    """One line with everything, for a log."""
    arms = "; ".join(f"{arm.arm} {_rate(arm)}" for arm in progress.arms)
    return f"{progress.done}/{progress.total} episodes | SR {arms} | {_pace(progress)}"


def duration(seconds: float | None) -> str:
    """`3725` -> `1 h 02 min`; None -> `?`."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the main table of a run."""
    console = console or Console()
    units = summary["units"]
    if summary["partial"]:
        console.print(f"[yellow]partial, not a result:[/] {escape('; '.join(summary['partial_reasons']))}")
    for warning in summary["warnings"]:
        console.print(f"[yellow]mind:[/] {escape(warning)}")
    if not summary["arms"]:
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("arm", no_wrap=True)
    labels = summary["labels"]
    shown = [name for name in labels if name in TERMINAL_METRICS]
    for name in shown:
        table.add_column(labels[name], justify="right", no_wrap=True)
    for arm, facts in summary["arms"].items():
        table.add_row(arm, *(_cell(facts["metrics"][name]) for name in shown))
    console.print(table)
    console.print(
        f"[dim]per cent, 95 % intervals; {units['compared']} units in every arm, "
        f"{units['dropped_for_errors']} dropped for errors; raw RR is uncontrolled[/]"
    )
    for entry in summary["comparisons"]:
        value, low, high = (100 * entry["difference"][end] for end in ("value", "low", "high"))
        console.print(
            f"[dim]{entry['arm']} against {entry['reference']}, {labels[entry['metric']]}:[/] "
            f"{value:+.1f} points ({low:+.1f} to {high:+.1f}), p {_p_value(entry['p_holm'])} (McNemar, Holm)"
        )


def _table(progress: Progress) -> Table:
    table = Table.grid(padding=(0, 2))
    for arm in progress.arms:
        bar = _bar(arm.done / arm.total if arm.total else 1.0)
        errors = f"[red]{arm.errors} errors[/]" if arm.errors else ""
        table.add_row(arm.arm, bar, f"{arm.done}/{arm.total}", f"SR {_rate(arm)}", errors)
    table.add_row("[dim]all[/]", "", f"{progress.done}/{progress.total}", f"[dim]{_pace(progress)}[/]", "")
    return table


def _bar(share: float, width: int = 24) -> str:
    full = round(share * width)
    return f"[cyan]{'━' * full}[/][dim]{'━' * (width - full)}[/]"


def _rate(arm: ArmProgress) -> str:
    if arm.success_rate is None:
        return "–"
    low, high = arm.interval
    return f"{100 * arm.success_rate:.0f} % ({100 * low:.0f}–{100 * high:.0f})"


def _pace(progress: Progress) -> str:
    if progress.seconds_per_episode is None:
        return "starting"
    return f"{progress.seconds_per_episode:.1f} s/episode, {duration(progress.seconds_left)} left"


def _cell(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "–"
    value, low, high = (100 * estimate[end] for end in ("value", "low", "high"))
    return f"{value:.0f} [dim]({low:.0f}–{high:.0f})[/]"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
