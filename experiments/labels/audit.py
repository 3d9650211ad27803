"""Do the geometric risk labels agree with what the simulator says?

Every event of the recorded episodes, from every query that sees it coming: fork there, run the same actions again
without one dimension (7 replays), or with every subset of dimensions (128, on the first `--subsets` of them).
Writes a line per query and event to audit.jsonl in the rollouts' folder, the table to <out>/kappa.csv and a figure.
Run it again and it goes on where it stopped; several processes may share the folder with --shard i/n.

    python experiments/labels/audit.py --rollouts results/rollouts --out results/labels
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data import RolloutStore
from mist_interp.data.replay import Environments
from mist_interp.probing.audit import TRUSTED_KAPPA, Audit, append_finding
from mist_interp.probing.audit_run import audit_episode
from mist_interp.probing.risk import Risk


@dataclass(frozen=True)
class Settings:
    """Audit risk labels with simulator forks."""

    rollouts: Path = Path("results/quickstart/rollouts")
    """Recorded rollouts, of the present layout."""

    out: Path = Path("results/labels")
    """Folder for the tables and the figure."""

    episodes: int = 8
    """Audit at most this many episodes with events, spread over the store."""

    subsets: int = 2
    """Run all 128 subsets in this many of them (the first ones), for Shapley values."""

    force: float = 1.0
    """An event counts from this peak force (N) on."""

    horizon: int = 10
    """Control steps beyond the end of the chunk."""

    shard: str = "0/1"
    """i/n: this process audits every n-th of the episodes, from the i-th."""


def main(settings: Settings) -> None:
    """Audit, resumably, and show what was found."""
    risk = Risk(horizon=settings.horizon, force=settings.force)
    store = RolloutStore.open(settings.rollouts)
    known = Audit.of(store) if store.audit_path.is_file() else Audit(())
    chosen = with_events(store, settings)
    whole = set(chosen[: settings.subsets])
    index, count = (int(part) for part in settings.shard.split("/"))
    with Environments() as environments:
        for key in sorted(chosen)[index::count]:  # a task's scene is built once
            start, found = time.perf_counter(), 0
            episode = store.episode(key)
            for finding in audit_episode(environments.of(episode), episode, risk, subsets=key in whole, skip=known):
                append_finding(store, finding)
                found += 1
            print(f"{episode.key}: {found} findings, {time.perf_counter() - start:.0f} s", flush=True)
    if store.audit_path.is_file():
        show(Audit.of(store), settings.out)


def with_events(store: RolloutStore, settings: Settings) -> list[str]:
    """Keys of episodes with events, task by task in turn, so that a small number sees many tasks."""
    rows = store.episodes()
    touched = rows[[any(c["peak_force"] >= settings.force for c in contacts) for contacts in rows["contacts"]]]
    order = touched.groupby("task").cumcount().sort_values(kind="stable").index
    return list(touched.loc[order, "episode"][: settings.episodes])


def show(audit: Audit, out: Path) -> None:
    """Print and store the kappa table; draw it beside the mean Shapley values."""
    out.mkdir(parents=True, exist_ok=True)
    table = audit.table()
    table.to_csv(out / "kappa.csv", index=False)
    lost = sum(not finding.reproduced for finding in audit.findings)
    print(f"\n{len(audit.findings)} pairs of query and event, {lost} of them not reproduced and left out\n")
    print(table.round(2).to_string(index=False))
    weak = [name for name, weak in zip(ACTION_NAMES, audit.replaced(), strict=True) if weak]
    said = f"kappa below {TRUSTED_KAPPA}: {', '.join(weak)}; there Risk(audit=True) takes the knockout's label"
    print(f"\n{said if weak else f'no dimension has a kappa below {TRUSTED_KAPPA}'}")
    played = [finding for finding in audit.findings if finding.shapley is not None]
    if played:
        values = pd.DataFrame([finding.shapley for finding in played], columns=ACTION_NAMES)
        shares = pd.DataFrame([finding.shares for finding in played], columns=ACTION_NAMES[:6])
        both = pd.DataFrame({"Shapley": values.mean(), "share": shares.mean()})
        both.to_csv(out / "shapley.csv")
        print(f"\nmean over {len(played)} pairs with all 128 subsets:\n{both.round(3).T.to_string()}")
    draw(table, audit).savefig(out / "audit.png", dpi=150)


def draw(table: pd.DataFrame, audit: Audit) -> Figure:
    """How often each side blames a dimension, and Shapley values against shares."""
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    y = np.arange(len(table))
    left.barh(y - 0.2, table["geometric"], 0.36, color="#1f6f9f", label="geometry: share of 0.2 or more")
    left.barh(y + 0.2, table["necessary"], 0.36, color="#c2862a", label="knockout: necessary")
    left.set_yticks(
        y, [f"{r.dimension}   κ {'–' if np.isnan(r.kappa) else f'{r.kappa:.2f}'}" for r in table.itertuples()]
    )
    left.invert_yaxis()
    left.set_xlabel(f"pairs of query and event to blame, of {int(table['rows'].max())}")
    left.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.5))
    for place, name in enumerate(ACTION_NAMES[:6]):
        pairs = [
            (finding.shares[place], finding.shapley[place])
            for finding in audit.findings
            if finding.shapley is not None and finding.shares[place] is not None
        ]
        if pairs:
            right.scatter(*np.array(pairs, dtype=float).T, s=18, label=name, alpha=0.8)
    right.axline((0, 0), slope=1, color="#d9dce1", zorder=0)
    right.set(xlabel="geometric share", ylabel="Shapley value of the event", xlim=(-0.05, 1.05))
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
