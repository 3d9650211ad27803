"""Which numbers stand in the report, and how are they written?

Shares are printed in per cent with their interval below; an undefined number is a dash, never 0 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from mist_interp.evaluation.metrics import METRICS, Metric
from mist_interp.report.figures import arm_colours

DASH = "–"
LEVEL = 0.05
TASKS_ABREAST = 10
# Metrics that not every run counts.
NOT_ALWAYS = ("collision_rate_1n_full", "collision_rate_10n_full", "disturbance_rate")
TEST_FACTS = ("p_mcnemar", "p_holm", "smallest_detectable")
_OUTCOMES = {"success_rate": "success", "collision_rate_1n": "collision, 1 N"}
_READING = (
    "Change in points and its 95 % interval; units that end better here : better there; p after Holm's correction. "
    "Bold where p &lt; 0.05, green for better, red for worse. The tooltip of a cell has the method, the units, the "
    "uncorrected p and the smallest detectable change."
)


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
    shown = [m for m in METRICS if m.name not in NOT_ALWAYS or _is_known(summary, m.name)]
    heads = "".join(f'<th title="{escape(m.definition)}">{escape(m.label)}</th>' for m in shown)
    parity = summary["parity"]
    doubt = "<small class='bad'>baseline not reproduced</small>" if parity and not parity["reproduced"] else ""
    rows = []
    for arm, facts in summary["arms"].items():
        cells = "".join(_estimate_cell(m, facts["metrics"][m.name]) for m in shown)
        rows.append(f"<tr><td>{arm_label(arm, colours)}{doubt}</td><td>{facts['units']}</td>{cells}</tr>")
    return html_table(f"<th>arm</th><th>units</th>{heads}", rows)


def risk_table(summary: Mapping[str, Any]) -> str:
    """One row per arm, two columns per dimension whose risk was read: detection and attribution."""
    arms, colours = summary["risk_auc"]["arms"], arm_colours(list(summary["arms"]))
    columns = [(dim, contrast) for dim, facts in next(filter(None, arms.values())).items() for contrast in facts]
    heads = "".join(f"<th>{escape(dim)}<small>{escape(contrast)}</small></th>" for dim, contrast in columns)
    rows = []
    for arm, facts in arms.items():
        cells = "".join(_auc_cell(facts.get(dim, {}).get(contrast)) for dim, contrast in columns)
        rows.append(f"<tr><td>{arm_label(arm, colours)}</td>{cells}</tr>")
    return html_table(f"<th>arm</th>{heads}", rows, "matrix")


def _auc_cell(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return '<td class="muted"></td>'
    count = f"<small>{estimate['positive_episodes']} against {estimate['negative_episodes']}</small>"
    if estimate["value"] is None:
        return f'<td class="muted">{DASH}{count}</td>'
    interval = "no interval" if estimate["low"] is None else f"{plain(estimate['low'])} – {plain(estimate['high'])}"
    hint = f"{estimate['queries']} queries; intervals resample tasks and then episodes"
    control, best = max(estimate["controls"].items(), key=lambda item: item[1])
    rival = f"<small>{escape(control)}: {plain(best)}</small>"
    return f'<td title="{hint}">{plain(estimate["value"])}<small>{interval}</small>{rival}{count}</td>'


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


@dataclass(frozen=True)
class Comparison:
    """A paired test of two arms, as the report writes it.

    Attributes:
        arm: whose change it is.
        reference: what it is compared with.
        outcome: in words; comparisons of one outcome share a matrix and Holm's correction.
        of: label of the quantity that changes.
        units: how many the test rests on.
        difference: `value`, `low`, `high` as shares, None where undefined, and `method`.
        better_here: units whose outcome is better under the arm.
        better_there: units whose outcome is better under the reference.
        p_mcnemar: exact test on the units whose outcome differs.
        p_holm: the same, corrected.
        smallest_detectable: share that this many units find with 80 % power.
    """

    arm: str
    reference: str
    outcome: str
    of: str
    units: int
    difference: Mapping[str, Any]
    better_here: int
    better_there: int
    p_mcnemar: float
    p_holm: float
    smallest_detectable: float | None


def comparison_tables(summary: Mapping[str, Any]) -> str:
    """Paired differences against the reference arm and against placebos, with their tests."""
    return write_comparisons([_paired_comparison(entry, summary) for entry in summary["comparisons"]], summary)


def _paired_comparison(entry: Mapping[str, Any], summary: Mapping[str, Any]) -> Comparison:
    # The summary counts where a metric's event happens; a collision is one that had better not.
    here, there = entry["only_arm"], entry["only_reference"]
    if entry["metric"] != "success_rate":
        here, there = there, here
    return Comparison(
        arm=entry["arm"],
        reference=entry["reference"],
        outcome=_OUTCOMES[entry["metric"]],
        of=summary["labels"][entry["metric"]],
        units=entry["difference"]["n"],
        difference=entry["difference"],
        better_here=here,
        better_there=there,
        **{name: entry[name] for name in TEST_FACTS},
    )


def write_comparisons(comparisons: Sequence[Comparison], summary: Mapping[str, Any]) -> str:
    """Per outcome a matrix of arms by what they are compared with; folded below, every comparison with all its facts.

    Args:
        comparisons: in the order in which arms, references and outcomes are to appear.
        summary: of the run, for the colours of its arms.
    """
    colours = arm_colours(list(summary["arms"]))
    outcomes = dict.fromkeys(c.outcome for c in comparisons)
    matrices = "".join(_matrix([c for c in comparisons if c.outcome == name], colours) for name in outcomes)
    return (
        f'<div class="matrices">{matrices}</div><p class="note">{_READING}</p>'
        f'<details class="full"><summary>All {len(comparisons)} comparisons with both p values and the smallest '
        f"detectable change</summary>{_long_table(comparisons, colours)}</details>"
    )


def _matrix(comparisons: Sequence[Comparison], colours: Mapping[str, str]) -> str:
    """One row per arm, one column per reference."""
    known = {(c.arm, c.reference): c for c in comparisons}
    columns = {c.reference: c.of for c in comparisons}
    heads = "".join(f"<th>against {escape(name)}<small>{escape(of)}</small></th>" for name, of in columns.items())
    rows = []
    for arm in dict.fromkeys(c.arm for c in comparisons):
        cells = "".join(_matrix_cell(known.get((arm, name))) for name in columns)
        rows.append(f"<tr><td>{arm_label(arm, colours)}</td>{cells}</tr>")
    title, content = comparisons[0].outcome, html_table(f"<th>arm</th>{heads}", rows, "matrix")
    return f"<div><h3>{escape(title[0].upper() + title[1:])}</h3>{content}</div>"


def _matrix_cell(comparison: Comparison | None) -> str:
    if comparison is None:
        return '<td title="not tested"></td>'
    here, there, p = comparison.better_here, comparison.better_there, p_value(comparison.p_holm)
    kind = ("better" if here > there else "worse") if comparison.p_holm < LEVEL else ""
    return (
        f'<td class="{kind}" title="{escape(_facts(comparison))}">{_change(comparison)}'
        f"<small>{here} : {there}, p {escape(p if p.startswith('<') else f'= {p}')}</small></td>"
    )


def _change(comparison: Comparison) -> str:
    """Change in points above its interval."""
    value, low, high = (signed_percent(comparison.difference[end]) for end in ("value", "low", "high"))
    if comparison.difference["value"] is None:
        return f"{DASH}<small>n = {comparison.units}</small>"
    return f"{value}<small>{'no interval' if comparison.difference['low'] is None else f'{low} – {high}'}</small>"


def _facts(comparison: Comparison) -> str:
    """All that is known of a comparison, in one line."""
    value, low, high = (signed_percent(comparison.difference[end]) for end in ("value", "low", "high"))
    return (
        f"{comparison.arm} against {comparison.reference}, {comparison.of}: {value} points, interval {low} to {high} "
        f"({comparison.difference['method']}); {comparison.units} units, {comparison.better_here} better here, "
        f"{comparison.better_there} better there; p {p_value(comparison.p_mcnemar)} (McNemar), "
        f"{p_value(comparison.p_holm)} (Holm); smallest detectable {percent(comparison.smallest_detectable)} points"
    )


def _long_table(comparisons: Sequence[Comparison], colours: Mapping[str, str]) -> str:
    """One row per comparison."""
    rows = [
        f"<tr><td>{arm_label(c.arm, colours)}</td><td class='text'>{arm_label(c.reference, colours)}</td>"
        f"<td class='text'>{escape(c.outcome)}</td><td class='text'>{escape(c.of)}</td><td>{c.units}</td>"
        f"<td title='{escape(c.difference['method'])}'>{_change(c)}</td><td>{c.better_here} : {c.better_there}</td>"
        f"<td>{escape(p_value(c.p_mcnemar))}</td><td>{escape(p_value(c.p_holm))}</td>"
        f"<td>{percent(c.smallest_detectable)}</td></tr>"
        for c in comparisons
    ]
    heads = (
        "<th>arm</th><th class='text'>against</th><th class='text'>outcome</th><th class='text'>of</th>"
        "<th>units</th><th>change,<br>points</th><th>better<br>here : there</th><th>p,<br>McNemar</th>"
        "<th>p,<br>Holm</th><th>smallest<br>detectable</th>"
    )
    return html_table(heads, rows)


def task_table(summary: Mapping[str, Any]) -> str:
    """Successes per arm and task, shaded by the success rate, collisions below; the tasks in words under them."""
    by_task: dict[int, dict[str, Mapping[str, Any]]] = {}
    for entry in summary["tasks"]:
        by_task.setdefault(entry["task"], {})[entry["arm"]] = entry
    tasks = list(by_task.items())
    arms = list(summary["arms"])
    return "".join(
        _tasks_abreast(dict(tasks[first : first + TASKS_ABREAST]), arms)
        for first in range(0, len(tasks), TASKS_ABREAST)
    )


def _tasks_abreast(by_task: Mapping[int, Mapping[str, Mapping[str, Any]]], arms: Sequence[str]) -> str:
    """One row per arm, one column per task."""
    colours = arm_colours(arms)
    instructions = {task: escape(next(iter(entries.values()))["instruction"]) for task, entries in by_task.items()}
    heads = "".join(f'<th class="cell" title="{text}">task {task}</th>' for task, text in instructions.items())
    rows = []
    for arm in arms:
        cells = "".join(_task_cell(entries[arm]) if arm in entries else "<td></td>" for entries in by_task.values())
        rows.append(f"<tr><td>{arm_label(arm, colours)}</td>{cells}</tr>")
    words = "".join(f"<dt>task {task}</dt><dd>{text}</dd>" for task, text in instructions.items())
    return f"{html_table(f'<th>arm</th>{heads}', rows, 'tasks')}<dl>{words}</dl>"


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
