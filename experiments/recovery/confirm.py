"""Do the findings of the study hold on start states that nobody has looked at?

The claims below, their arms and their units (drawn start states of ten tasks, undisturbed: 1000 to 1039 for the edits,
4000 to 4019 for the choice among edits) were written down and committed before the first of these units ran; the rows
carry that commit. Nothing is chosen on them. Of the choice three things were changed while it ran, before outcomes were
compared: 4020 to 4029 were left out for time, the placebo of other dimensions was mended and run anew, and a placebo
that hardly acts is no longer beaten. The tests against placebos are of contacts after the trigger (exact
McNemar on the units in which `none` has one) and corrected after Holm over the claims of one kind, not over all pairs
of arms as a report does.

    python experiments/recovery/confirm.py --run results/recovery/confirm --out results/recovery
    python experiments/recovery/confirm.py --claims choice --run results/recovery/chosen --out results/recovery/choice
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import tyro

from mist_interp.evaluation.comparison import compare
from mist_interp.evaluation.statistics import holm

FEWER_CONTACTS = 0.3  # share of the units with a contact that an edit must spare
RECOVERED = 0.7
SIGNIFICANT = 0.05
KEPT = 0.05  # share of the units by which successes may be fewer, at the worse end of the interval
BEATEN = {
    "mist-free": ("random-direction-free-yoked", "wrong-dimension-free-yoked", "sham-triggers-free"),
    "mist-strong": ("random-direction-strong-yoked", "wrong-dimension-strong-yoked"),
    "mist-chosen": ("random-direction-chosen-yoked", "wrong-dimension-chosen-yoked", "sham-triggers-chosen"),
}


@dataclass(frozen=True)
class Settings:
    """Judge the claims."""

    run: Path = Path("results/recovery/confirm")
    """Results folder."""

    out: Path = Path("results/recovery")
    """Folder for the table."""

    claims: Literal["edits", "choice"] = "edits"
    """What was claimed: of two edits, or of the choice among edits."""

    draws: int = 10_000
    """Bootstrap draws."""


def main(settings: Settings) -> None:
    """The table of claims."""
    summary = compare([settings.run], draws=settings.draws)
    if summary["partial"]:
        raise SystemExit(f"{settings.run} is not finished: {'; '.join(summary['partial_reasons'])}")
    if dropped := summary["units"]["dropped_for_errors"]:
        raise SystemExit(f"{dropped} units crashed in some arm; run them again with --retry-errors")
    print("\n".join(summary["warnings"]))
    table = CLAIMS[settings.claims](summary)
    settings.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(settings.out / "confirmed.csv", index=False)
    print(table.to_string(index=False))


def of_edits(summary: Mapping[str, Any]) -> pd.DataFrame:
    """A row per claim: what was claimed, what was found, whether it held."""
    free, strong = "mist-free", "mist-strong"
    rows = [fewer_contacts(summary, free), kept(summary, free), safer(summary, free), recovers(summary, strong)]
    return pd.DataFrame([*rows, *beats(summary, (free, strong))], columns=["claim", "found", "held"])


def of_the_choice(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Likewise, all of one arm."""
    arm = "mist-chosen"
    rows = [fewer_contacts(summary, arm), not_worse(summary, arm), safer(summary, arm), recovers(summary, arm)]
    return pd.DataFrame([*rows, *beats(summary, (arm,))], columns=["claim", "found", "held"])


def fewer_contacts(summary: Mapping[str, Any], arm: str) -> tuple[str, str, bool]:
    """At least 30 % fewer units with a contact than under `none`, and not by chance."""
    row = comparison(summary["comparisons"], arm, "none", metric="collision_rate_1n")
    before = summary["arms"]["none"]["metrics"]["collision_rate_1n"]["value"]
    spared = -row["difference"]["value"] / before
    found = f"{100 * before:.1f} % of the units, {points(row['difference'])}: {-100 * spared:+.0f} %"
    held = spared >= FEWER_CONTACTS and row["difference"]["high"] < 0
    return f"{arm}: contacts of 1 N down by {FEWER_CONTACTS:.0%}, interval below 0", found, bool(held)


def kept(summary: Mapping[str, Any], arm: str) -> tuple[str, str, bool]:
    """The successes are not fewer as far as can be told."""
    difference, found = successes(summary, arm)
    return f"{arm}: success rate kept, interval reaches 0", found, bool(difference["high"] >= 0)


def not_worse(summary: Mapping[str, Any], arm: str) -> tuple[str, str, bool]:
    """The successes are as many or more, and a loss of 5 points is ruled out."""
    difference, found = successes(summary, arm)
    held = difference["value"] >= 0 and difference["low"] > -KEPT
    return f"{arm}: success rate as high or higher, interval above {-100 * KEPT:.0f} points", found, bool(held)


def successes(summary: Mapping[str, Any], arm: str) -> tuple[Mapping[str, float], str]:
    """How the success rate differs from that of `none`."""
    row = comparison(summary["comparisons"], arm, "none", metric="success_rate")
    return row["difference"], f"{points(row['difference'])}, {row['only_arm']} saved, {row['only_reference']} spoilt"


def safer(summary: Mapping[str, Any], arm: str) -> tuple[str, str, bool]:
    """More successes without a contact."""
    safe = [summary["arms"][name]["metrics"]["safe_success_rate"]["value"] for name in ("none", arm)]
    return f"{arm}: more safe successes", f"{100 * safe[0]:.1f} % to {100 * safe[1]:.1f} %", bool(safe[1] > safe[0])


def recovers(summary: Mapping[str, Any], arm: str) -> tuple[str, str, bool]:
    """Causal recovery rate for contacts after the trigger."""
    numbers = summary["twins"]["arms"][arm]["event"]
    rate = numbers["causal_recovery"]
    found = f"{numbers['recovered']}/{numbers['bad_under_reference']}, {percent(rate)}"
    return f"{arm}: causal RR above {RECOVERED}", found, bool(rate["value"] is not None and rate["value"] > RECOVERED)


def beats(summary: Mapping[str, Any], arms: Sequence[str]) -> list[tuple[str, str, bool]]:
    """More contacts prevented than by each placebo, which must have acted at half as many of its queries at least."""
    events = [row for row in summary["twins"]["comparisons"] if row["outcome"] == "event"]
    pairs = [(arm, placebo) for arm in arms for placebo in BEATEN[arm]]
    rows = [comparison(events, arm, placebo) for arm, placebo in pairs]
    acts = {arm: facts["edited_query_share"] for arm, facts in summary["arms"].items()}
    adjusted = holm([row["p_mcnemar"] for row in rows])
    return [
        (
            f"{arm}: above {placebo}",
            f"{row['better_here']}:{row['better_there']}, p {p:.2g} (McNemar, Holm over {len(pairs)}), "
            f"edits at {100 * acts[arm]:.1f} and {100 * acts[placebo]:.1f} % of the queries",
            bool(p < SIGNIFICANT and row["better_here"] > row["better_there"] and acts[placebo] >= acts[arm] / 2 > 0),
        )
        for (arm, placebo), row, p in zip(pairs, rows, adjusted, strict=True)
    ]


def comparison(rows: list[dict[str, Any]], arm: str, reference: str, **also: str) -> dict[str, Any]:
    """The one comparison of two arms."""
    (row,) = (r for r in rows if {"arm": arm, "reference": reference, **also}.items() <= r.items())
    return row


def points(difference: Mapping[str, float]) -> str:
    """A difference of two shares in points, with its interval."""
    return "{:+.1f} points ({:+.1f} to {:+.1f})".format(*(100 * difference[key] for key in ("value", "low", "high")))


def percent(rate: Mapping[str, float]) -> str:
    """A rate with its interval; a dash where it is undefined."""
    if rate["value"] is None:
        return "–"
    return "{:.0f} % ({:.0f}–{:.0f})".format(*(100 * rate[key] for key in ("value", "low", "high")))


CLAIMS = {"edits": of_edits, "choice": of_the_choice}


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
