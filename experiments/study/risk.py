"""Can one read off the activations which dimension is about to cause a collision, in a task never seen?

Linear probes at every layer and token group, then the readers of the main table at places that are chosen without the
judged task: detection (to blame against no event), attribution (to blame against not, among events) and whole episodes,
each beside what the clock, the action, proprioception and the task alone allow. Then how early an alarm with a promised
rate of false alarms comes, and whether the probabilities mean what they say. Failure of the episode, the target of
SAFE's detectors, has a table of its own. Only dimensions with at least 20 positive episodes are asked.

    python experiments/study/risk.py --rollouts runs/study/mini --audit
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
import tyro
from matplotlib.figure import Figure

from mist_interp.analysis.figures import STYLE
from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data import RolloutStore
from mist_interp.probing import Probe, ProbeReport, Risk, RiskPredictor, cross_validate, fit_layers
from mist_interp.probing.conformal import ConformalAlarm
from mist_interp.probing.networks import LSTM, MLP
from mist_interp.probing.report import MIN_EPISODES
from mist_interp.probing.scored import ScoredEpisodes

ALPHA = 0.1
KNOWN_TASKS = "linear, known tasks, other start states"
# Fitting a network to every control takes an hour; these two are the best ones of the linear probes.
NETWORK_CONTROLS = ("proprio only", "action only")
COLOURS = {"probe": "#1f6f9f", "best control": "#c9ced6"}


@dataclass(frozen=True)
class Settings:
    """Foresee collisions per dimension."""

    rollouts: Path = Path("runs/study/mini")
    """Recorded rollouts."""

    audit: bool = False
    """Where the knockout audit of the rollouts disagrees with geometry, its labels count."""

    out: Path = Path("results/study")
    """Folder for tables and figures."""

    layers: tuple[int, ...] = (1, 2)
    """Layers that the networks read side by side."""

    inits: int | None = None
    """Only start states below this one, such as those that the audit has been through."""

    networks: bool = True
    """Also judge the networks; off: linear probes only."""


def main(settings: Settings) -> None:
    """Map, main table, lead times, calibration, failures."""
    torch.set_num_threads(1)
    settings.out.mkdir(parents=True, exist_ok=True)
    store = RolloutStore.open(settings.rollouts)
    if settings.inits is not None:
        inits = store.episodes(["init_state"])["init_state"].unique()
        store = store.where(inits=inits[inits < settings.inits])
    risk = Risk(audit=settings.audit, dimensions=asked(store, settings))
    sweep = fit_layers(
        Probe(("resid_post", 0), target=risk),
        store,
        tokens=[group.tokens for group in store.manifest.groups],
        nested=True,
        shuffles=1,
    )
    sweep.save(settings.out / "risk_sweep")
    draw_map(sweep).savefig(settings.out / "risk_map.png", dpi=150)
    assert sweep.nested is not None
    reports = {"linear, place chosen inside the folds": sweep.nested}
    sites = [("resid_post", layer) for layer in settings.layers]
    networks = {
        "MLP": RiskPredictor(sites, network=MLP((64,)), target=risk),
        "LSTM": RiskPredictor(sites, network=LSTM(64), target=risk),
    }
    reports[KNOWN_TASKS] = cross_validate(
        Probe(("resid_post", settings.layers[-1]), target=risk), store, "init_state", draws=2000
    )
    for name, reader in networks.items() if settings.networks else ():
        began = time.monotonic()
        reports[name] = cross_validate(reader, store, draws=2000, controls=NETWORK_CONTROLS)
        say(f"{name}: judged in {time.monotonic() - began:.0f} s")
    table = pd.concat({name: rows_of(report) for name, report in reports.items()}, names=["reader"])
    table.to_csv(settings.out / "risk.csv")
    say(f"risk, tasks left out in turn\n{table.round(3).to_string()}")
    for name, report in reports.items():
        say(f"{name}: mean over dimensions {mean(report)}; attribution {mean(report, 'attribution')}")
    # A place that is chosen inside the folds has no one probe, whose alarms could be set.
    readers = {"linear": cross_validate(Probe(("resid_post", settings.layers[-1]), target=risk), store, draws=500)}
    readers |= {name: report for name, report in reports.items() if name in ("MLP", "LSTM")}
    best = max(readers, key=lambda name: readers[name].macro_auc or 0.0)
    draw_readers(reports).savefig(settings.out / "risk_readers.png", dpi=150)
    early(store, readers[best], settings.out, best)
    if settings.networks:
        failure(store, settings.out)


def asked(store: RolloutStore, settings: Settings) -> tuple[str, ...]:
    """Dimensions with enough positive episodes; prints how many each has, with either kind of label."""
    kinds = {"geometry": False} | ({"with the audit": True} if settings.audit else {})
    counts: dict[str, dict[str, int]] = {}
    for kind, audit in kinds.items():
        labels = Risk(audit=audit).labels(store)
        hit = pd.DataFrame(labels.values == 1, columns=labels.outputs)
        counts[f"{kind}: queries"] = hit.sum().to_dict()
        counts[f"{kind}: episodes"] = hit.groupby(labels.episode).any().sum().to_dict()
        masked = dict(labels.masked)
    table = pd.DataFrame(counts)
    table.to_csv(settings.out / "risk_counts.csv")
    say(f"positives of {len(store)} episodes, {len(labels)} queries\n{table.to_string()}\nmasked: {masked}")
    last = table.iloc[:, -1]
    return tuple(name for name in ACTION_NAMES if last[name] >= MIN_EPISODES)


def rows_of(report: ProbeReport) -> pd.DataFrame:
    """A row per dimension and contrast: AUC, interval, best control, margin, Brier score, calibration error."""
    rows = []
    for contrast in report.contrasts:
        for output in report.outputs:
            score, margin = report.score(output, contrast=contrast), report.margin(output, contrast=contrast)
            rows.append(
                {
                    "contrast": contrast,
                    "dimension": output,
                    "AUC": score.auc,
                    "low": score.low,
                    "high": score.high,
                    "control": margin.best_control,
                    "margin": margin.value,
                    "margin low": margin.low,
                    "margin high": margin.high,
                    "Brier": score.brier,
                    "Brier of the base rate": score.base_rate * (1 - score.base_rate),
                    "base rate": score.base_rate,
                    "ECE": score.ece,
                    "positive episodes": score.positive_episodes,
                }
            )
    return pd.DataFrame(rows).set_index(["contrast", "dimension"])


def mean(report: ProbeReport, contrast: str | None = None) -> str:
    """Mean AUC and margin over the dimensions, in words."""
    macro = report.macro(contrast)
    return "–" if macro.auc is None else f"AUC {macro.auc:.3f}, margin {macro.margin or 0:+.3f} ({len(macro.counted)})"


def early(store: RolloutStore, report: ProbeReport, out: Path, name: str) -> None:
    """Lead times at a conformal threshold and calibration, of one reader.

    Every query was scored by a reader that saw neither it nor its task: no episode of the calibration was trained on.
    """
    assert report.queries is not None
    rows, pieces = [], {}
    for output in report.outputs:
        queries = report.queries[report.queries["output"] == output]
        episodes = scored(store, queries, output)
        first, second = episodes.safe().halves()
        alarm = ConformalAlarm.calibrate(first, ALPHA, trained_on=frozenset()).measured_on(second)
        lead = report.lead_time(float(alarm.limits[0]), output)
        rows.append(
            {
                "dimension": output,
                "threshold": lead.threshold,
                "false alarms, other safe episodes": None if alarm.measured is None else alarm.measured.rate,
                "foreseen": lead.foreseen,
                "events": lead.events,
                "median lead (control steps)": lead.median,
            }
        )
        pieces[output] = (lead.steps, report.reliability(output))
    table = pd.DataFrame(rows).set_index("dimension")
    table.to_csv(out / "risk_early.csv")
    say(f"{name}: alarms that {ALPHA:.0%} of safe episodes may raise\n{table.round(3).to_string()}")
    draw_early(pieces).savefig(out / "risk_early.png", dpi=150)


def scored(store: RolloutStore, queries: pd.DataFrame, output: str) -> ScoredEpisodes:
    """Probabilities of one output, episode by episode."""
    kept = store.only(queries["episode"].unique())
    order = kept.queries(["episode", "query"])
    values = queries.set_index(["episode", "query"])["probability"].loc[pd.MultiIndex.from_frame(order)]
    return ScoredEpisodes.of(kept, values.to_numpy()[:, None], outputs=(output,))


def failure(store: RolloutStore, out: Path) -> None:
    """The target of SAFE: will the episode fail?"""
    readers = {
        "linear": Probe(("resid_post", -1), target="failure"),
        "SAFE-MLP": RiskPredictor.safe_mlp(),
        "SAFE-LSTM": RiskPredictor.safe_lstm(),
    }
    kept = {"draws": 2000, "controls": ("step counter", "proprio only")}
    reports = {name: cross_validate(reader, store, **kept) for name, reader in readers.items()}  # type: ignore[arg-type]
    table = pd.concat({name: rows_of(report) for name, report in reports.items()}, names=["reader"])
    table.to_csv(out / "failure.csv")
    say(f"failure of the episode, last layer, tasks left out in turn\n{table.round(3).to_string()}")


def draw_map(sweep) -> Figure:  # type: ignore[no-untyped-def]
    """Detection above, attribution below: layers down, dimensions to the right, a map per token group."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.9 * len(sweep.tokens), 5.4))
        grid = figure.subplots(2, len(sweep.tokens), squeeze=False)
        for row, contrast in zip(grid, ("detection", "attribution"), strict=True):
            for axis, tokens in zip(row, sweep.tokens, strict=True):
                sweep.plot_map(contrast=contrast, tokens=tokens, ax=axis)
                axis.set_title(f"{tokens}: {contrast}")
    return figure


def draw_readers(reports: Mapping[str, ProbeReport]) -> Figure:
    """AUC of each reader with its interval, and of the best control of the first one."""
    first = next(iter(reports.values()))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        for axis, contrast in zip(figure.subplots(1, 2), ("detection", "attribution"), strict=True):
            y = np.arange(len(first.outputs))
            for place, (name, report) in enumerate(reports.items()):
                scores = [report.score(output, contrast=contrast) for output in report.outputs]
                known = [(k, s) for k, s in enumerate(scores) if s.auc is not None]
                at = np.array([k for k, _ in known]) + 0.16 * (place - (len(reports) - 1) / 2)
                values = np.array([s.auc for _, s in known])
                spans = np.abs(np.array([[s.low, s.high] for _, s in known]).T - values) if known else None
                axis.errorbar(values, at, xerr=spans, fmt="o", ms=4, lw=1.2, label=name)
            best = [
                (k, max(s.auc for s in first.scores if match(s, output, contrast)))
                for k, output in enumerate(first.outputs)
                if any(match(s, output, contrast) for s in first.scores)
            ]
            axis.plot(
                [v for _, v in best], [k for k, _ in best], "x", color="#777777", label="best control of the linear"
            )
            axis.axvline(0.5, color="#d9dce1", zorder=0)
            axis.set_yticks(y, first.outputs)
            axis.invert_yaxis()
            axis.set(title=contrast, xlabel="AUC; tasks left out in turn where nothing else is said")
        figure.legend(*axis.get_legend_handles_labels(), frameon=False, fontsize=7, ncols=3, loc="outside lower center")
    return figure


def match(score, output: str, contrast: str) -> bool:  # type: ignore[no-untyped-def]
    """Whether a row of the table is a control of this question, with a value."""
    return (score.output, score.contrast) == (output, contrast) and score.reader != "probe" and score.auc is not None


def draw_early(pieces: Mapping[str, tuple[tuple[int, ...], pd.DataFrame]]) -> Figure:
    """How early (share of foreseen events with at least so much lead) and how well calibrated."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.4))
        left, right = figure.subplots(1, 2)
        for output, (steps, table) in pieces.items():
            if steps:
                share = 1 - np.arange(len(steps)) / len(steps)
                left.step(np.sort(steps), share, where="post", label=f"{output} ({len(steps)})")
            right.plot(table["probability"], table["frequency"], "o-", ms=3, label=output)
        left.set(title="Lead of the alarm", xlabel="control steps before the event", ylabel="share of foreseen events")
        left.legend(frameon=False, fontsize=7)
        right.axline((0, 0), slope=1, color="#d9dce1", zorder=0)
        right.set(title="Calibration", xlabel="predicted probability", ylabel="observed frequency")
        right.legend(frameon=False, fontsize=7)
    return figure


def say(text: str) -> None:
    """One finding."""
    print(f"{text}\n", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
