"""How does a running collection look in a terminal, and what has a store in the end?"""

from __future__ import annotations

import sys
import time

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mist_interp.cli.progress import PLAIN_EVERY_SECONDS, duration
from mist_interp.data.attempts import Progress
from mist_interp.data.manifest import BALANCED
from mist_interp.data.store import RolloutStore
from mist_interp.evaluation.statistics import wilson

CONTACT_FORCE = 1.0  # N, from which a contact counts; as in the evaluation


class CollectDisplay:
    """Shows progress while its scope lasts; `show` is the callback of `collect_rollouts`.

    The pace is that of this call alone. In a terminal one line, redrawn; else a line at most every half minute.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._last_line = -float("inf")
        self._first: tuple[float, Progress] | None = None
        self._now: Progress | None = None

    def __enter__(self) -> CollectDisplay:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def missing(self) -> int:
        """Episodes that are still to come; at the end of a call, because an attempt crashed."""
        return 0 if self._now is None else self._now.total - self._now.done

    def show(self, progress: Progress) -> None:
        """Draw the state of a collection."""
        self._now = progress
        self._first = self._first or (time.monotonic(), progress)
        text = self.line(progress)
        if self._live is not None:
            self._live.update(Text(text))
        elif progress.done == progress.total or time.monotonic() - self._last_line >= PLAIN_EVERY_SECONDS:
            self._last_line = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def line(self, progress: Progress) -> str:
        """Stored of planned, share of successes among all attempts, pace and time left."""
        parts = [f"{progress.done}/{progress.total} episodes"]
        if progress.attempts > progress.done:
            parts.append(f"{progress.attempts} attempts")
        if progress.attempts:
            low, high = wilson(progress.successes, progress.attempts)
            rate = progress.successes / progress.attempts
            parts.append(f"SR {100 * rate:.0f} % ({100 * low:.0f}–{100 * high:.0f})")
        return " | ".join([*parts, self._pace(progress)])

    def _pace(self, progress: Progress) -> str:
        begun, first = self._first or (time.monotonic(), progress)
        seconds = time.monotonic() - begun
        attempts, stored = progress.attempts - first.attempts, progress.done - first.done
        if not attempts:
            return "starting"
        # With quotas the last ones of the rarer outcome take longer than this says.
        left = seconds / stored * (progress.total - progress.done) if stored else None
        return f"{seconds / attempts:.1f} s/episode, {duration(left)} left"


def store_table(store: RolloutStore) -> pd.DataFrame:
    """One row per task and one for all: episodes, successes, contacts from 1 N on, queries.

    Of a balanced store also all attempts and the successes among them.
    """
    episodes = store.episodes(["episode", "suite", "task", "success", "n_queries", "contacts"])
    rows = []
    for task, group in [*episodes.groupby("task"), ("all", episodes)]:
        contacts = sum(event["peak_force"] >= CONTACT_FORCE for events in group["contacts"] for event in events)
        row = {"task": str(task), "episodes": len(group), "successes": int(group["success"].sum())}
        row |= {"contacts": contacts, "queries": int(group["n_queries"].sum())}
        if store.manifest.selection == BALANCED:
            counts = store.manifest.counts
            for name in ("attempts", "successes"):
                total = sum(count[name] for key, count in counts.items() if task in ("all", int(key)))
                row |= {name if name == "attempts" else "of them successful": total}
        rows.append(row)
    return pd.DataFrame(rows)


def print_store(store: RolloutStore, console: Console | None = None) -> None:
    """Print what a store has by now, from this call and from earlier ones."""
    console = console or Console()
    if not len(store):
        console.print(f"{store.folder}: no episode was stored", soft_wrap=True)
        return
    frame = store_table(store)
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in frame:
        table.add_column(str(name), justify="right", no_wrap=True)
    for row in frame.itertuples(index=False):
        table.add_row(*map(str, row))
    console.print(table)
    short = _short_of_quota(store)
    if short:
        console.print(f"out of attempts: {short}", soft_wrap=True)
    size = sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file()) / 1e6
    note = "; chosen by outcome, so no success rate follows from it"
    if store.manifest.selection != BALANCED:
        store.check_rates()
        successes = int(store.episodes(["success"])["success"].sum())
        low, high = wilson(successes, len(store))
        note = f", SR {100 * successes / len(store):.0f} % ({100 * low:.0f}–{100 * high:.0f}, Wilson 95 %)"
    console.print(f"{store.folder}: {size:.1f} MB, selection {store.manifest.selection}{note}", soft_wrap=True)


def _short_of_quota(store: RolloutStore) -> str:
    """Which tasks lack episodes that their quota asks for."""
    quota = store.manifest.settings.get("quota", {})
    lacking = []
    for task, group in store.episodes(["task", "success"]).groupby("task"):
        for name, stored in (("successes", group["success"].sum()), ("failures", (~group["success"]).sum())):
            if stored < quota.get(name, 0):
                lacking.append(f"task {task} has {stored} of {quota[name]} {name}")
    return "; ".join(lacking)
