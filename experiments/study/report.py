"""Bring the study's tables and figures into its page.

Reads what the other scripts of this folder have written, fills the marked places of README.md and copies the figures
beside it, so that no number of the page is older than its table.

    python experiments/study/report.py --results results/study
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "mini"))
import card

HERE = Path(__file__).parent
FIGURES = (
    "actions",
    "failures",
    "audit",
    "risk_map",
    "risk_readers",
    "risk_early",
    "policies_clouds",
    "policies_cka_mini-base",
    "transfer",
)
CONTRASTS = ("detection", "attribution", "episode")


@dataclass(frozen=True)
class Settings:
    """Fill the page of the study."""

    results: Path = Path("results/study")
    """Folder of the tables and figures."""

    page: Path = HERE / "README.md"
    """The page; figures go into figures/ beside it."""


def main(settings: Settings) -> None:
    """Tables, figures, and what is still open."""
    folder = settings.page.parent / "figures"
    folder.mkdir(exist_ok=True)
    for name in FIGURES:
        source = settings.results / f"{name}.png"
        if source.exists():
            shutil.copy(source, folder / source.name)
    measured = {}
    for name, (file, make) in TABLES.items():
        source = settings.results / f"{file}.csv"
        if source.exists():
            measured[name] = make(pd.read_csv(source))
    card.fill(settings.page, measured)
    for name, text in card.places(settings.page).items():
        print(f"{name}: {'open' if text == card.OPEN else f'{text.count(chr(10)) + 1} lines'}")


def kappa(table: pd.DataFrame) -> str:
    """Agreement of geometry and knockout."""
    rows = [
        (r.dimension, r.rows, r.geometric, r.necessary, r.both, f"{r.agreement:.2f}", f"{r.kappa:.2f}", r.label)
        for r in table.itertuples()
    ]
    heads = ("dimension", "pairs", "to blame by geometry", "necessary", "both", "agreement", "kappa", "label used")
    return card.table(heads, rows)


def risk(table: pd.DataFrame) -> str:
    """AUC and margin of every reader, dimension and question."""
    rows = []
    for reader, part in table.groupby("reader", sort=False):
        for contrast in CONTRASTS:
            found = part[part["contrast"] == contrast].set_index("dimension")
            mean = f"{found['AUC'].mean():.2f}, {signed(found['margin'].mean())}"
            rows.append((reader, contrast, *(_auc(found.loc[name]) for name in found.index), mean))
    return card.table(("reader", "question", *table["dimension"].unique(), "mean"), rows)


def _auc(row: Any) -> str:
    """`0.71 (0.65–0.75), +0.03 (−0.06 to +0.12)`: AUC and margin."""
    if pd.isna(row["AUC"]):
        return "–"
    margin = f"{signed(row['margin'])} ({signed(row['margin low'])} to {signed(row['margin high'])})"
    return f"{row['AUC']:.2f} ({row['low']:.2f}–{row['high']:.2f}), {margin}"


def signed(value: float) -> str:
    """`+0.03`."""
    return f"{value:+.2f}".replace("-", "−")


def calibration(table: pd.DataFrame) -> str:
    """Brier score beside that of the base rate, and the calibration error, of detection."""
    rows = []
    for reader, part in table[table["contrast"] == "detection"].groupby("reader", sort=False):
        cells = [
            f"{r['Brier']:.3f} / {r['Brier of the base rate']:.3f}, {r['ECE']:.3f}"
            for _, r in part.set_index("dimension").iterrows()
        ]
        rows.append((reader, *cells))
    return card.table(("reader", *table["dimension"].unique()), rows)


def risk_early(table: pd.DataFrame) -> str:
    """Alarms that one in ten safe episodes may raise."""
    rows = [
        (
            row["dimension"],
            f"{row['false alarms, other safe episodes']:.2f}",
            f"{row['foreseen']:.2f} of {row['events']:.0f}",
            f"{row['median lead (control steps)']:.0f}",
        )
        for _, row in table.iterrows()
    ]
    return card.table(("dimension", "false alarms in other safe episodes", "events foreseen", "median lead"), rows)


def failure(table: pd.DataFrame) -> str:
    """Will the episode fail?"""
    rows = [
        (row["reader"], row["contrast"], _auc(row), row["control"], f"{row['Brier']:.3f}, {row['ECE']:.3f}")
        if row["contrast"] == "detection"
        else (row["reader"], row["contrast"], _auc(row), row["control"], "")
        for _, row in table.iterrows()
    ]
    return card.table(("reader", "question", "AUC, margin", "best control", "Brier score, calibration error"), rows)


def transfer(table: pd.DataFrame) -> str:
    """Labels of one policy, read in another."""
    rows = []
    for (target, way, output), part in table.groupby(["target", "way", "output"], sort=False):
        if part["auc"].isna().all():
            rows.append((target, way, output, "any", "any", "– (fewer than 20 episodes of a kind)"))
            continue
        for row in part.itertuples():
            rows.append(
                (target, way, output, row.trained_on, row.judged_on, f"{row.auc:.2f} ({row.low:.2f}–{row.high:.2f})")
            )
    return card.table(("target", "features", "output", "labels of", "judged on", "AUC"), rows)


TABLES = {
    "kappa": ("kappa", kappa),
    "risk": ("risk", risk),
    "calibration": ("risk", calibration),
    "early": ("risk_early", risk_early),
    "failure": ("failure", failure),
    "transfer": ("transfer", transfer),
}


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
