"""How does a run become one page that can be mailed?

Everything is inside the file: tables, figures as SVG, films as base64. Every number is recomputed from the
episode rows when the page is written, and every definition that was used stands in it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from mist_interp.core.files import write_atomic
from mist_interp.evaluation.failures import COLUMN, by_failure
from mist_interp.evaluation.folder import Row
from mist_interp.evaluation.plan import REFERENCE_ARM, Unit
from mist_interp.report.figures import rates_figure, score_figure
from mist_interp.report.run import Run, load_run
from mist_interp.report.style import SCRIPT, STYLE
from mist_interp.report.tables import (
    comparison_tables,
    episode_table,
    html_table,
    main_table,
    percent,
    risk_table,
    task_table,
)
from mist_interp.report.twin_tables import twin_section
from mist_interp.report.video import Take, paired_video_data_url, read_frames

log = logging.getLogger(__name__)

MAX_FILMS = 6
FURTHER_DEFINITIONS = {
    "intervals": "bootstrap over tasks, then units within a task, all arms of a unit together, 10,000 draws "
    "(percentile; BCa with at least 10 tasks); Wilson with fewer than 5 tasks or at 0 and 100 %; none where all "
    "resamples agree, as without any event",
    "forbidden contact": "arm with anything; hand or finger with table, floor, other objects or fixtures; a held "
    "object with anything but its goal; robot with itself. Sampled at every physics sub-step; contacts present when "
    "the scene has settled are excluded until they break",
    "trigger": "the first query at which the detector's score exceeds its threshold; the detector sees the unedited "
    "forward pass in every arm",
}


def write_report(path: str | Path, *, title: str | None = None, max_films: int = MAX_FILMS) -> Path:
    """Write `report.html` into a results folder and return its path.

    Args:
        path: the results folder.
        title: headline; the folder's name when left out.
        max_films: paired films at most.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    run = load_run(path)
    page = render(run, title or run.name, max_films)
    target = run.folder.path / "report.html"
    write_atomic(target, page)
    return target


def render(run: Run, title: str, max_films: int = MAX_FILMS, *, curves: bool = True) -> str:
    """The page as HTML text.

    Args:
        run: what it is about.
        title: headline.
        max_films: paired films at most.
        curves: draw what needs the query files: the detector over time. No number of the page does.
    """
    compared = run.summary["units"]["compared"]
    sections = [_head(run, title), _banner(run)]
    if compared:
        sections += [
            _results(run),
            twin_section(run.summary),
            _risk(run),
            _paired(run),
            _tasks(run),
            _failures(run),
            _scores(run, curves),
            _films(run, max_films),
        ]
    sections += [_episodes(run), _errors(run), _definitions(run), _provenance(run)]
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>\n{body}\n<script>{SCRIPT}</script></body></html>\n"
    )


def _head(run: Run, title: str) -> str:
    settings, summary = run.settings, run.summary
    model = settings["model"].get("model_id", "policy")
    lead = (
        f"{escape(str(model))} on {escape(settings['suite'])}, {len(run.arms)} arms on the same units, "
        f"{escape(settings['profile'])} rendering, at most {settings['max_steps']} control steps"
    )
    reference = summary["arms"].get(REFERENCE_ARM, {}).get("metrics", {})
    facts = [
        (str(summary["units"]["compared"]), "units in every arm"),
        (str(summary["episodes"]["finished"]), "episodes"),
    ]
    if reference:
        facts += [
            (f"{percent(reference['success_rate']['value'])} %", f"success, {REFERENCE_ARM}"),
            (f"{percent(reference['collision_rate_1n']['value'])} %", f"collision 1 N, {REFERENCE_ARM}"),
        ]
    items = "".join(f"<li><b>{value}</b><span>{label}</span></li>" for value, label in facts)
    return f'<h1>{escape(title)}</h1><p class="lead">{lead}</p><ul class="facts">{items}</ul>'


def _banner(run: Run) -> str:
    banners = []
    if run.summary["partial"]:
        banners.append(f"<b>Partial run, not a result.</b> {escape('; '.join(run.summary['partial_reasons']))}.")
    parity = run.summary["parity"]
    if parity and not parity["reproduced"]:
        here = parity["here"]
        banners.append(
            f"<b>Baseline not reproduced.</b> This checkpoint is published with {percent(parity['published'])} % "
            f"success; here it has {percent(here['value'])} % ({percent(here['low'])} – {percent(here['high'])})."
        )
    if run.summary["warnings"]:
        banners.append(f"<b>Mind:</b> {escape('; '.join(run.summary['warnings']))}.")
    return "".join(f'<div class="banner">{text}</div>' for text in banners)


def _results(run: Run) -> str:
    units, controls = run.summary["units"], []
    if REFERENCE_ARM not in run.arms:
        controls.append(f"the arm {REFERENCE_ARM} is missing, so nothing is compared")
    if not run.summary["placebos"] and len(run.arms) > 1:
        controls.append("no random direction of equal norm is among the arms")
    missing = f'<div class="banner">Missing controls: {escape("; ".join(controls))}.</div>' if controls else ""
    dropped = units["dropped_for_errors"]
    errors = f" {dropped} units are left out of all arms because an arm crashed on them." if dropped else ""
    gate = _co_policies(run.summary["arms"])
    return (
        f"<h2>Results</h2>{missing}<figure>{rates_figure(run.summary)}<figcaption>Points with 95 % intervals."
        f"</figcaption></figure>{main_table(run.summary)}"
        f'<p class="note">Per cent with 95 % intervals; the method of each interval is in its tooltip.{errors}'
        f"{escape(gate)} Raw RR is uncontrolled: compare it with the arm {REFERENCE_ARM}.</p>"
    )


def _risk(run: Run) -> str:
    said = run.summary["risk_auc"]
    if not said:
        return ""
    definition = escape(said["definition"][0].upper() + said["definition"][1:])
    return (
        f"<h2>What the gate foresaw</h2>{risk_table(run.summary)}<p class='note'>{definition}. In small type the 95 % "
        "interval and the number of such episodes. The risk is read off the unedited forward pass; a warning that an "
        f"arm has heeded counts as a false alarm, so what the risk is worth stands at {REFERENCE_ARM}.</p>"
    )


def _co_policies(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Which arms do not correct a policy but act along with it."""
    flagged = {arm: facts for arm, facts in arms.items() if facts["co_policy"]}
    editing = ", ".join(arm for arm, facts in flagged.items() if facts["edited_query_share"])
    firing = ", ".join(arm for arm, facts in flagged.items() if not facts["edited_query_share"])
    text = f" Edits are live at more than 30 % of the queries (co-policy): {editing}." if editing else ""
    return text + (f" The detector fires at more than 30 % of the queries of {firing}." if firing else "")


def _paired(run: Run) -> str:
    if not run.summary["comparisons"]:
        return ""
    return (
        f"<h2>Arm against arm, unit by unit</h2>{comparison_tables(run.summary)}"
        f'<p class="note">What an edit does must differ from {REFERENCE_ARM} and from a placebo of equal size. Exact '
        "McNemar test on the units whose outcome differs, Holm-corrected over all comparisons of an outcome. "
        "Smallest detectable: the change in points that this many units find with 80 % power at p = 0.05.</p>"
    )


def _tasks(run: Run) -> str:
    return f"<h2>Tasks</h2>{task_table(run.summary)}"


def _failures(run: Run) -> str:
    found = by_failure(run.rows)
    if found.empty:
        return ""
    heads = "".join(f"<th>{escape(way)}</th>" for way in found.index)
    rows = [
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{count}</td>" for count in counts) + "</tr>"
        for name, counts in found.items()
    ]
    return (
        f"<h2>Which failures</h2><p class='note'>Units in which the detector fires and {REFERENCE_ARM} fails, by the "
        f"way it fails; how many of them have a forbidden contact, and how many succeed under each arm.</p>"
        f"{html_table(f'<th>{REFERENCE_ARM} fails by</th>{heads}', rows)}"
    )


def _scores(run: Run, drawn: bool) -> str:
    arm = REFERENCE_ARM if REFERENCE_ARM in run.arms else run.arms[0]
    rows = [row for row in run.rows if row["arm"] == arm and row["status"] == "ok" and row["triggered"] is not None]
    if not rows:
        return ""
    detector: dict[str, Any] = run.settings["detector"]
    figure = score_figure(_scored(run, rows), _threshold(detector), arm) if drawn else ""
    return (
        f"<h2>The detector over time</h2><figure>{figure}<figcaption>Score of <i>{escape(detector['name'])}</i>: "
        "median and middle half of the episodes that are still running. Successes end early, so late steps rest on "
        "few of them.</figcaption></figure>"
    )


def _scored(run: Run, rows: Sequence[Row]) -> pd.DataFrame:
    """The score of every query of some episodes."""
    kept = ("key", "success", "collision_1n")
    scores = [run.folder.queries(run.planned(row))[["step", "score"]] for row in rows]
    return pd.concat([of.assign(**{name: row[name] for name in kept}) for of, row in zip(scores, rows, strict=True)])


def _threshold(detector: Mapping[str, Any]) -> float:
    """Where it fires; the score of a gate says how far the riskiest output is above its own limit."""
    return float(detector.get("threshold", 0.0))


def _films(run: Run, max_films: int) -> str:
    films = []
    for unit in run.filmed_units()[:max_films]:
        try:
            films.append(_film(run, unit))
        except Exception as error:  # a damaged video must not cost the page
            log.warning("no film of %s: %s", unit.key, error)
    if not films:
        return ""
    return (
        "<section class='films'><h2>Pairs to look at</h2><p class='note'>The same start in every arm, three times "
        "robot speed. Below each picture the detector's score with its threshold; red marks are forbidden contacts, "
        "a blue line marks live edits. Click to pause.</p>" + "".join(films) + "</section>"
    )


def _film(run: Run, unit: Unit) -> str:
    takes = []
    for arm in run.arms:
        row = run.row(arm, unit)
        assert row is not None
        frames = read_frames(run.folder.video_path(run.planned(row)))
        takes.append(Take(arm, row, run.queries(arm, unit), frames))
    detector = run.settings["detector"]
    url = paired_video_data_url(takes, _threshold(detector) if detector else None)
    share = round(100 * min(1.0, len(takes) / 3))
    instruction = escape(str(takes[0].row["instruction"]))
    shadow = run.row(REFERENCE_ARM, unit)
    told = f" ({REFERENCE_ARM}: {shadow[COLUMN]})" if shadow and shadow[COLUMN] else ""
    return (
        f'<div class="film"><p>Task {unit.task}, init state {unit.init_state}: {instruction}{told}</p>'
        f'<video src="{url}" style="width:{share}%" muted loop playsinline preload="auto"></video></div>'
    )


def _episodes(run: Run) -> str:
    if not run.rows:
        return ""
    count = len(run.rows)
    return f"<h2>Episodes</h2><details><summary>All {count} episodes</summary>{episode_table(run.rows)}</details>"


def _errors(run: Run) -> str:
    failed = [row for row in run.rows if row["status"] == "error"]
    if not failed:
        return ""
    texts = "".join(
        f"<details><summary>{escape(row['key'])}: {escape(row['error'])}</summary>"
        f"<pre>{escape(row['traceback'])}</pre></details>"
        for row in failed[:20]
    )
    return f"<h2>Errors</h2><p>{len(failed)} episodes crashed; they count in no arm.</p>{texts}"


def _definitions(run: Run) -> str:
    labels, definitions = run.summary["labels"], run.summary["definitions"]
    items = "".join(f"<dt>{escape(labels[name])}</dt><dd>{escape(text)}</dd>" for name, text in definitions.items())
    twins = run.summary["twins"] or {"labels": {}, "definitions": {}}
    items += "".join(
        f"<dt>{escape(twins['labels'][name])}</dt><dd>{escape(text)}</dd>"
        for name, text in twins["definitions"].items()
    )
    items += "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in FURTHER_DEFINITIONS.items())
    return f"<h2>Definitions</h2><dl>{items}</dl>"


def _provenance(run: Run) -> str:
    settings = {key: value for key, value in run.settings.items() if key not in ("arms", "model", "detector")}
    groups = [
        ("Software at the first start", run.provenance),
        ("Policy", run.settings["model"]),
        ("Settings", settings),
        ("Detector", run.settings["detector"] or {}),
        *((f"Arm {name}", config) for name, config in run.settings["arms"].items()),
    ]
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(', '.join(f'{key} {value}' for key, value in facts.items()))}</dd>"
        for name, facts in groups
        if facts
    )
    return f"<h2>Provenance</h2><dl>{items}</dl>"
