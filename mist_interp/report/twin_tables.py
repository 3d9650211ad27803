"""How is written what the arms' twins say?

One table and one matrix of tests per kind of bad outcome, one table for how the pairs came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from mist_interp.evaluation.twin_metrics import PAIRS
from mist_interp.report.figures import arm_colours
from mist_interp.report.tables import (
    DASH,
    TEST_FACTS,
    Comparison,
    arm_label,
    html_table,
    percent,
    signed_percent,
    write_comparisons,
)

OUTCOME_LABELS = {"failure": "failure", "event": "contact after the trigger"}


def twin_section(summary: Mapping[str, Any]) -> str:
    """The part of a report about twins; empty where no detector ran or the reference is missing."""
    twins = summary["twins"]
    if not twins or not twins["arms"]:
        return ""
    tables = "".join(
        f"<p class='note'>{escape(definition[0].upper() + definition[1:])}.</p>{twin_table(summary, outcome)}"
        for outcome, definition in twins["outcomes"].items()
    )
    reference, spontaneous = escape(twins["reference"]), twins["spontaneous_recovery_rate"]["value"]
    false = twins["false_trigger_rate"]
    return (
        f"<h2>Twin worlds</h2><p class='note'>Each unit beside its own twin under {reference}, where the detector runs "
        f"and nothing is done. It fires in {twins['triggered']} units, of which {percent(spontaneous)} % succeed all "
        f"the same: spontaneous recovery. Of the {false['n']} units that go well and touch nothing it fires in "
        f"{percent(false['value'])} %: false triggers.</p>{tables}{twin_comparison_tables(summary)}"
        "<p class='note'>Exact McNemar test on the units whose outcome differs, Holm-corrected over all comparisons of "
        f"an outcome. How the pairs came about:</p>{pair_table(summary)}<p class='note'>Forked: begun at the trigger "
        f"of {reference}. Matched: run from the start and equal until the trigger, state by state. Untriggered: the "
        "same episode for an arm that waits for the trigger. Lost: not equal until the trigger, as with an arm that "
        "acts from the start; such pairs compare units (intention to treat) and are no twins.</p>"
    )


def twin_table(summary: Mapping[str, Any], outcome: str) -> str:
    """One row per arm: causal recovery, harm, net benefit over triggered and over all units."""
    twins, colours = summary["twins"], arm_colours(list(summary["arms"]))
    heads = "".join(
        f'<th title="{escape(twins["definitions"][m])}">{escape(twins["labels"][m])}</th>' for m in _METRICS
    )
    rows = []
    for arm, facts in twins["arms"].items():
        numbers = facts[outcome]
        counted = {
            "causal_recovery": f"{numbers['recovered']} of {numbers['bad_under_reference']}",
            "harm_rate": f"{numbers['harmed']} of {numbers['good_under_reference']}",
        }
        cells = "".join(_cell(numbers[m], counted.get(m), signed=m.startswith("net")) for m in _METRICS)
        lost = facts["pairs"]["lost"]
        doubt = f"<small class='bad'>{lost} of {twins['triggered']} no twins</small>" if lost else ""
        rows.append(f"<tr><td>{arm_label(arm, colours)}{doubt}</td>{cells}</tr>")
    return html_table(f"<th>arm</th>{heads}", rows)


def pair_table(summary: Mapping[str, Any]) -> str:
    """How the twins of each arm came about, in units and per cent of all units."""
    colours = arm_colours(list(summary["arms"]))
    rows = []
    for arm, facts in summary["twins"]["arms"].items():
        total = sum(facts["pairs"].values())
        cells = "".join(
            f"<td>{facts['pairs'][kind]}<small>{percent(facts['pairs'][kind] / total)} %</small></td>" for kind in PAIRS
        )
        rows.append(f"<tr><td>{arm_label(arm, colours)}</td>{cells}</tr>")
    return html_table("<th>arm</th>" + "".join(f"<th>{kind}</th>" for kind in PAIRS), rows)


def twin_comparison_tables(summary: Mapping[str, Any]) -> str:
    """Tests on the twins: against the reference what was rescued and spoilt, against placebos the causal RR."""
    labels = summary["twins"]["labels"]
    comparisons = [
        Comparison(
            arm=entry["arm"],
            reference=entry["reference"],
            outcome=OUTCOME_LABELS[entry["outcome"]],
            of=labels[entry["of"]],
            units=entry["units"],
            difference=entry["difference"],
            better_here=entry["better_here"],
            better_there=entry["better_there"],
            **{name: entry[name] for name in TEST_FACTS},
        )
        for entry in summary["twins"]["comparisons"]
    ]
    return write_comparisons(comparisons, summary)


_METRICS = ("causal_recovery", "harm_rate", "net_benefit", "net_benefit_all")


def _cell(estimate: Mapping[str, Any], counted: str | None, *, signed: bool) -> str:
    if estimate["value"] is None:
        return f'<td class="muted">{DASH}<small>n = 0</small></td>'
    write = signed_percent if signed else percent
    value, low, high = (write(estimate[end]) for end in ("value", "low", "high"))
    interval = "no interval" if estimate["low"] is None else f"{low} – {high}"
    hint = escape(f"{estimate['method']}, n = {estimate['n']}")
    count = f"<small>{counted}</small>" if counted else f"<small>n = {estimate['n']}</small>"
    return f'<td title="{hint}">{value}<small>{interval}</small>{count}</td>'
