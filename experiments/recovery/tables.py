"""What did the arms of the study do: which bad ends did they prevent or cause, and in which kind of episode?

Writes the main table (a row per arm: SR, Safe-SR, CR, and for failures and for contacts after the trigger the causal
RR and the harm rate with intervals), the tests against the placebos, a figure, and per way of failing how many of the
triggered episodes that `none` loses the arms save.

    python experiments/recovery/tables.py --run results/recovery/main --out results/recovery
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

from mist_interp.analysis.figures import STYLE
from mist_interp.evaluation.comparison import compare
from mist_interp.evaluation.failures import by_failure
from mist_interp.evaluation.folder import ResultsFolder

SHOWN = (
    "success_rate",
    "safe_success_rate",
    "collision_rate_1n",
    "collision_rate_10n",
    "collision_rate_1n_full",
    "disturbance_rate",
    "raw_recovery_rate",
)
OUTCOMES = {"event": "contact after the trigger", "failure": "failure"}
RATES = {"causal_recovery": "causal RR", "harm_rate": "harm rate"}
COLOURS = {"causal_recovery": "#1f6f9f", "harm_rate": "#b3443d"}


@dataclass(frozen=True)
class Settings:
    """Tables and figure of a study of arms."""

    run: Path = Path("results/recovery/main")
    """Results folder."""

    out: Path = Path("results/recovery")
    """Folder for the tables and the figure."""

    tested: tuple[str, ...] = ("mist", "mist-free", "mist-strong")
    """Arms whose tests are listed."""

    draws: int = 10_000
    """Bootstrap draws."""


def main(settings: Settings) -> None:
    """All tables."""
    summary = compare([settings.run], draws=settings.draws)
    twins = summary["twins"]
    write(settings.out / "arms.csv", main_table(summary))
    tests = pd.DataFrame([flat_test(row) for row in twins["comparisons"] if row["arm"] in settings.tested])
    write(settings.out / "tests.csv", tests.set_index(["arm", "outcome", "reference"]))
    draw(twins).savefig(settings.out / "arms.png", dpi=150)
    write(settings.out / "by_failure.csv", by_failure(ResultsFolder(settings.run).rows()))


def main_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """A row per arm; rates in per cent with 95 % intervals, counts behind causal RR and harm."""
    rows: dict[str, dict[str, str]] = {}
    for arm, facts in summary["arms"].items():
        rows[arm] = {summary["labels"].get(name, name): interval(facts["metrics"][name]) for name in SHOWN}
        rows[arm]["active queries"] = f"{100 * facts['edited_query_share']:.0f}"
    for arm, dims in ((summary["risk_auc"] or {}).get("arms") or {}).items():
        for dim, contrasts in dims.items():
            for contrast, found in contrasts.items():
                rows[arm][f"AUC {dim}, {contrast}"] = area(found)
    for arm, facts in summary["twins"]["arms"].items():
        rows[arm]["lost pairs"] = f"{facts['pairs']['lost']} of {summary['twins']['triggered']}"
        for outcome, label in OUTCOMES.items():
            numbers = facts[outcome]
            saved, lost = numbers["recovered"], numbers["bad_under_reference"]
            harmed, well = numbers["harmed"], numbers["good_under_reference"]
            rows[arm][f"{label}: causal RR"] = f"{saved}/{lost} {interval(numbers['causal_recovery'])}"
            rows[arm][f"{label}: harm"] = f"{harmed}/{well} {interval(numbers['harm_rate'])}"
    return pd.DataFrame.from_dict(rows, orient="index").fillna("–")


def flat_test(row: Mapping[str, Any]) -> dict[str, Any]:
    """One comparison in one line."""
    names = (
        "arm",
        "outcome",
        "reference",
        "of",
        "better_here",
        "better_there",
        "p_mcnemar",
        "p_holm",
        "smallest_detectable",
    )
    return {name: row[name] for name in names} | {"difference": row["difference"]["value"]}


def interval(estimate: Mapping[str, Any]) -> str:
    """Per cent with its interval; a dash where it is undefined."""
    if estimate["value"] is None:
        return "–"
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.0f} ({low:.0f}–{high:.0f})"


def area(found: Mapping[str, Any]) -> str:
    """AUC with its interval and the better control; where it is undefined, the number of positive episodes."""
    if found["value"] is None:
        return f"– ({found['positive_episodes']} episodes)"
    value, low, high = (f"{found[key]:.2f}" for key in ("value", "low", "high"))
    control, best = max(found["controls"].items(), key=lambda item: item[1])
    return f"{value} ({low}–{high}); {control} {best:.2f}"


def draw(twins: Mapping[str, Any]) -> Figure:
    """Causal RR and harm rate of each arm, with intervals; one panel per kind of bad outcome."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 0.36 * len(twins["arms"]) + 1.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        y = np.arange(len(twins["arms"]))
        for axis, (outcome, label) in zip(panels, OUTCOMES.items(), strict=True):
            for shift, (rate, name) in zip((-0.16, 0.16), RATES.items(), strict=True):
                points(axis, y + shift, [facts[outcome][rate] for facts in twins["arms"].values()], rate, name)
            axis.set(title=f"bad is a {label}", xlabel="share of the triggered units", xlim=(-0.02, 1.02))
            axis.set_yticks(y, list(twins["arms"]))
            axis.grid(axis="x", color="#e6e8ec")
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower right", fontsize=8)
    return figure


def points(axis: Any, y: np.ndarray, estimates: Sequence[Mapping[str, Any]], rate: str, name: str) -> None:
    """Estimates with their intervals; nothing where one is undefined."""
    known = [(place, e) for place, e in zip(y, estimates, strict=True) if e["value"] is not None]
    if known:
        at, values = np.array([place for place, _ in known]), np.array([e["value"] for _, e in known])
        spans = np.abs(np.array([[e["low"], e["high"]] for _, e in known]).T - values)
        axis.errorbar(values, at, xerr=spans, fmt="o", ms=4, lw=1.2, color=COLOURS[rate], label=name)


def write(path: Path, table: pd.DataFrame) -> None:
    """Keep a table and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path)
    print(f"{path.stem}\n{table.round(4).to_string()}\n", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
