"""Which numbers stand in the report, and how are they written?

Shares are printed in per cent with their interval below; an undefined number is a dash, never 0 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mist_interp.evaluation.metrics import METRICS, Metric
from mist_interp.report.figures import arm_colours

DASH = "–"


def percent(value: float | None, digits: int = 1) -> str:
    """`0.873` -> `87.3`; None -> a dash."""
    return DASH if value is None else f"{100 * value:.{digits}f}"


def plain(value: float | None) -> str:
    """`0.873` -> `0.87`; None -> a dash."""
    return DASH if value is None else f"{value:.2f}"


def signed_percent(value: float | None) -> str:
    """`0.05` -> `+5.0`; None -> a dash."""
    if value is None:
        return DASH
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def p_value(p: float) -> str:
    """Three digits; tiny ones as a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def arm_label(arm: str, colours: Mapping[str, str]) -> str:
    """Name of an arm with its colour."""
    return f'<span class="dot" style="background:{colours[arm]}"></span>{escape(arm)}'


def main_table(summary: Mapping[str, Any]) -> str:
    """One row per arm, one column per metric."""
    colours = arm_colours(list(summary["arms"]))
    shown = [m for m in METRICS if not m.name.endswith("_full") or _is_known(summary, m.name)]
    heads = "".join(f'<th title="{escape(m.definition)}">{escape(m.label)}</th>' for m in shown)
    parity = summary["parity"]
    doubt = "<small class='bad'>baseline not reproduced</small>" if parity and not parity["reproduced"] else ""
    rows = []
    for arm, facts in summary["arms"].items():
        cells = "".join(_estimate_cell(m, facts["metrics"][m.name]) for m in shown)
        rows.append(f"<tr><td>{arm_label(arm, colours)}{doubt}</td><td>{facts['units']}</td>{cells}</tr>")
    return html_table(f"<th>arm</th><th>units</th>{heads}", rows)


def _is_known(summary: Mapping[str, Any], name: str) -> bool:
    return any(facts["metrics"][name]["value"] is not None for facts in summary["arms"].values())


def _estimate_cell(of: Metric, estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return f'<td class="muted">{DASH}<small>n = 0</small></td>'
    if of.proportion:
        value, low, high = (percent(estimate[end]) for end in ("value", "low", "high"))
    else:
        value, low, high = (plain(estimate[end]) for end in ("value", "low", "high"))
    hint = escape(f"{estimate['method']}, n = {estimate['n']}")
    interval = "no interval" if estimate["low"] is None else f"{low} – {high}"
    return f'<td title="{hint}">{value}<small>{interval}</small></td>'


def comparison_table(summary: Mapping[str, Any]) -> str:
    """Paired differences against the reference arm and against placebos, with their tests."""
    colours = arm_colours(list(summary["arms"]))
    labels = {"success_rate": "success", "collision_rate_1n": "collision, 1 N"}
    rows = []
    for entry in summary["comparisons"]:
        difference = entry["difference"]
        low, high = signed_percent(difference["low"]), signed_percent(difference["high"])
        detectable = percent(entry["smallest_detectable"])
        rows.append(
            f"<tr><td>{arm_label(entry['arm'], colours)}</td>"
            f"<td class='text'>{arm_label(entry['reference'], colours)}</td>"
            f"<td class='text'>{labels[entry['metric']]}</td>"
            f"<td title='{escape(difference['method'])}'>{signed_percent(difference['value'])}"
            f"<small>{low} – {high}</small></td><td>{entry['only_arm']} : {entry['only_reference']}</td>"
            f"<td>{p_value(entry['p_mcnemar'])}</td><td>{p_value(entry['p_holm'])}</td><td>{detectable}</td></tr>"
        )
    heads = (
        "<th>arm</th><th class='text'>against</th><th class='text'>outcome</th><th>change, points</th>"
        "<th>only here : only there</th><th>p, McNemar</th><th>p, Holm</th><th>smallest detectable</th>"
    )
    return html_table(heads, rows)


def task_table(summary: Mapping[str, Any]) -> str:
    """Successes per task and arm, shaded by the success rate, collisions below."""
    arms = list(summary["arms"])
    colours = arm_colours(arms)
    by_task: dict[int, dict[str, Mapping[str, Any]]] = {}
    for entry in summary["tasks"]:
        by_task.setdefault(entry["task"], {})[entry["arm"]] = entry
    rows = []
    for task, entries in by_task.items():
        cells = "".join(_task_cell(entries[arm]) if arm in entries else "<td></td>" for arm in arms)
        instruction = next(iter(entries.values()))["instruction"]
        rows.append(f"<tr><td class='muted'>{task}</td><td class='text'>{escape(instruction)}</td>{cells}</tr>")
    heads = "".join(f"<th style='text-align:center'>{arm_label(arm, colours)}</th>" for arm in arms)
    return html_table(f"<th>task</th><th class='text'>instruction</th>{heads}", rows)


def _task_cell(entry: Mapping[str, Any]) -> str:
    share = entry["successes"] / entry["units"]
    low, high = entry["success_interval"]
    hint = (
        f"success {percent(share)} %, interval {percent(low)} to {percent(high)} %; collisions {entry['collisions_1n']}"
    )
    # From near white to the green of success; text stays dark on all of them.
    shade = f"rgba(47, 125, 91, {0.04 + 0.46 * share:.2f})"
    return (
        f"<td class='cell' style='background:{shade}' title='{hint}'>{entry['successes']} / {entry['units']}"
        f"<small>{entry['collisions_1n']} collided</small></td>"
    )


def episode_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every episode, sortable by any column."""
    lines = []
    for row in rows:
        unit = f"<td>{row['task']}</td><td>{row['init_state']}</td><td class='text'>{escape(row['arm'])}</td>"
        if row["status"] == "error":
            lines.append(f"<tr>{unit}<td class='text bad'>error</td><td></td><td></td><td></td><td></td></tr>")
            continue
        outcome = "<span class='good'>success</span>" if row["success"] else "<span class='bad'>failure</span>"
        trigger = DASH if row["trigger_query"] is None else row["trigger_query"]
        lines.append(
            f"<tr>{unit}<td class='text'>{outcome}</td><td>{row['steps']}</td><td>{row['events_1n']}</td>"
            f"<td>{row['peak_force']:.1f}</td><td>{trigger}</td></tr>"
        )
    heads = (
        "<th>task</th><th>init state</th><th class='text'>arm</th><th class='text'>outcome</th><th>steps</th>"
        "<th>contact events</th><th>peak force, N</th><th>trigger query</th>"
    )
    return html_table(heads, lines, "sortable")


def html_table(heads: str, rows: Sequence[str], kind: str = "") -> str:
    """A table that scrolls sideways; `kind` is its class."""
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )
