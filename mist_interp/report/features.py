"""What do the features of a sparse autoencoder answer to, seen on one page that can be mailed?

Everything is inside the file: pictures as base64 (each once, however many features fire on it), figures as SVG. The
numbers come from `mist_interp.analysis` (`feature_table`, `report`, `splice`, `dose_response`, `ablation`); nothing is
computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from mist_interp.analysis.sae.effects import Ablation, DoseResponse
from mist_interp.analysis.sae.features import FeatureTable, Firing
from mist_interp.analysis.sae.quality import SaeReport
from mist_interp.analysis.sae.splicing import Splice
from mist_interp.core.files import write_atomic
from mist_interp.report.feature_figures import dose_curves, histogram, legend, overlay, picture_url, token_map
from mist_interp.report.style import SCRIPT, STYLE

Pictures = Callable[[int], Mapping[str, np.ndarray]]
FACTS_SHOWN = 4

FEATURE_STYLE = """
svg.small text { font-size: 10px; fill: var(--muted); paint-order: stroke; stroke: #fff; stroke-width: 3px; }
svg.small { overflow: visible; } .facts + p { margin-top: 18px; }
.feature { border-top: 1px solid var(--hairline); padding: 18px 0 10px; break-inside: avoid; }
.feature h3 { font-size: 16px; font-weight: 600; margin: 0 0 2px; }
.feature h3 small { font-weight: 400; color: var(--muted); font-size: 13px; margin-left: 8px; }
.panels { display: flex; flex-wrap: wrap; gap: 10px 20px; align-items: flex-start; margin: 10px 0; }
.panels > div > b { display: block; font-size: 11.5px; font-weight: 500; color: var(--muted); margin-bottom: 4px; }
.panels table { width: auto; margin: 0; font-size: 12.5px; } .panels td { padding: 2px 10px 2px 0; border: 0; }
.shots { display: flex; flex-wrap: wrap; gap: 8px; margin: 6px 0; }
.shots > span { font-size: 11.5px; color: var(--muted); width: 100%; margin-bottom: -4px; }
.shot { width: 110px; font-size: 10.5px; line-height: 1.25; color: var(--muted); }
.shot.two { width: 168px; } .shot .pair { display: flex; gap: 2px; }
.picture { position: relative; width: 100%; aspect-ratio: 1; background-size: cover; border-radius: 3px; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; } .dims span { margin-right: 6px; }
.dims { font-size: 11px; } a { color: inherit; }
"""


@dataclass(frozen=True, eq=False)
class FeaturePage:
    """What goes on the page; everything but the table, the pictures and the grids may be left out.

    Attributes:
        table: the features, in the order of the page.
        pictures: query -> camera -> uint8 (side, side, 3), upright and cut as the policy saw it.
        grids: name -> (rows, cols) of the tokens of a query, in their order, e.g. `{"agentview": (8, 8), ...}`; a
            grid that has the name of a camera is laid over its picture.
        queries: a label per query, e.g. "task 3, start 31, step 24".
        judged: how good the reconstruction is.
        spliced: what splicing does to the actions.
        dose: what steering does.
        taken_out: what ablating does.
        names: feature -> what it was found to be, in words; shown in its headline.
        notes: paragraphs below the headline.
    """

    table: FeatureTable
    pictures: Pictures
    grids: Mapping[str, tuple[int, int]]
    queries: Sequence[str]
    judged: SaeReport | None = None
    spliced: Splice | None = None
    dose: DoseResponse | None = None
    taken_out: Ablation | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        cells = sum(rows * cols for rows, cols in self.grids.values())
        if cells != len(self.table.tokens):
            raise ValueError(f"the grids have {cells} cells; a query has {len(self.table.tokens)} tokens")


def write_feature_page(path: str | Path, page: FeaturePage, title: str) -> Path:
    """Write the page as one HTML file and return its path."""
    target = Path(path)
    write_atomic(target, render_features(page, title))
    return target


def render_features(page: FeaturePage, title: str) -> str:
    """The page as HTML text."""
    album = _Album(page.pictures)
    cards = "".join(_card(page, place, album) for place in range(len(page.table.features)))
    body = (
        f"<h1>{escape(title)}</h1>{_facts(page)}{''.join(f'<p>{escape(note)}</p>' for note in page.notes)}"
        f"{_splice(page)}{_overview(page)}<h2>Features</h2>{_reading(page)}{cards}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{FEATURE_STYLE}{album.style()}</style></head>\n<body>{body}<script>{SCRIPT}</script></body></html>\n"
    )


class _Album:
    """Pictures that were asked for, each kept once, as a CSS class."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures, self._urls = pictures, dict[str, str]()
        self._known: dict[int, Mapping[str, np.ndarray]] = {}

    def cameras(self, query: int) -> Mapping[str, np.ndarray]:
        if query not in self._known:
            self._known[query] = self._pictures(query)
        return self._known[query]

    def name(self, query: int, camera: str) -> str:
        number = list(self.cameras(query)).index(camera)
        name = f"p{query}c{number}"
        if name not in self._urls:
            self._urls[name] = picture_url(self.cameras(query)[camera])
        return name

    def style(self) -> str:
        return "".join(f".{name}{{background-image:url({url})}}\n" for name, url in self._urls.items())


def _facts(page: FeaturePage) -> str:
    facts = [(str(len(page.table.features)), "features on this page")]
    if page.judged:
        judged = page.judged
        facts = [
            (f"{100 * judged.explained_variance:.1f} %", "variance explained" + (", held-out" * bool(judged.held_out))),
            (f"{100 * judged.pca_explained_variance:.1f} %", f"by {round(judged.l0)} principal components"),
            (f"{judged.l0:.1f}", "active features per token (L0)"),
            (f"{judged.dead} of {judged.features}", "features never fire here"),
            *facts,
        ]
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(label)}</span></li>" for value, label in facts)
    return f'<ul class="facts">{items}</ul>'


def _splice(page: FeaturePage) -> str:
    if page.spliced is None:
        return ""
    change, recovered = page.spliced.change, page.spliced.recovered
    dims, arms = change.axes["dim"], change.axes["arm"]
    head = "".join(f"<th>{escape(dim)}</th>" for dim in dims)
    rows = "".join(
        f"<tr><td>{escape(arm)}</td>{_cells(f'{value:.3f}' for value in numbers)}<td>{100 * share:.0f} %</td></tr>"
        for arm, numbers, share in zip(arms, change.values.values, recovered.values.values, strict=True)
    )
    return (
        "<h2>Spliced into the network</h2><p class='note'>Root mean square change of the action when the site is "
        "replaced, in standard deviations of the action; recovered: the share of the change of the mean that is "
        f"avoided.</p><table><tr><th>replaced by</th>{head}<th>recovered</th></tr>{rows}</table>"
    )


def _overview(page: FeaturePage) -> str:
    rows = ""
    for place, feature in enumerate(page.table.features):
        line = page.table.summary.iloc[place]
        fact, value = _strongest_facts(page.table, place)[0] if page.table.correlation.axes["fact"] else ("", 0.0)
        numbers = (f"{100 * line['frequency']:.2f} %", f"{100 * line['queries']:.0f} %", f"{line['largest']:.3g}")
        rows += (
            f'<tr><td><a href="#f{feature}">{feature}</a></td>'
            f'<td class="text">{escape(page.names.get(feature, ""))}</td>{_cells(numbers)}'
            f'<td class="text">{escape(fact)} {value:+.2f}</td><td>{_effect(page, feature)}</td></tr>'
        )
    return (
        '<h2>Overview</h2><table class="sortable"><thead><tr><th>feature</th><th class="text">what</th>'
        '<th>tokens</th><th>queries</th><th>largest code</th><th class="text">strongest correlation</th>'
        "<th>taken out / random</th></tr>"
        f"</thead><tbody>{rows}</tbody></table>"
    )


def _cells(numbers: Iterable[str]) -> str:
    return "".join(f"<td>{number}</td>" for number in numbers)


def _reading(page: FeaturePage) -> str:
    dims = legend(page.dose.mean.axes["dim"]) if page.dose else ""
    return (
        '<p class="note">Red: where the feature fires, framed: the strongest token. The strongest queries are the '
        "extreme; those below are spread over all at which it fires. Curves: mean change of the action in its standard "
        "deviations when the feature is added to all tokens, against standard deviations of the feature. Correlations "
        "are over queries, many of one episode: read them as hints.</p>"
        f'<p class="dims">{dims}</p>'
    )


def _card(page: FeaturePage, place: int, album: _Album) -> str:
    table = page.table
    feature, line = table.features[place], table.summary.iloc[place]
    said = f"{100 * line['frequency']:.2f} % of tokens, {100 * line['queries']:.0f} % of queries"
    name = f": {escape(page.names[feature])}" if feature in page.names else ""
    shots = _shots(page, table.top[place], album, "strongest") + _shots(page, table.middle[place], album, "spread")
    panels = [
        ("codes", histogram(table.histogram.values.values[place].tolist(), float(line["largest"]))),
        *_maps(page, place),
        *_curves(page, feature),
        ("goes along with", _fact_rows(table, place)),
        ("same direction", _neighbour_rows(table, place)),
    ]
    drawn = "".join(f"<div><b>{escape(label)}</b>{content}</div>" for label, content in panels if content)
    return (
        f'<div class="feature" id="f{feature}"><h3>Feature {feature}{name}<small>{said}</small></h3>'
        f'<div class="panels">{drawn}</div>{shots}</div>'
    )


def _maps(page: FeaturePage, place: int) -> list[tuple[str, str]]:
    values = page.table.place.values.values[place]
    found, start = [], 0
    for name, (rows, cols) in page.grids.items():
        part = values[start : start + rows * cols]
        found.append((f"where, {name}", token_map(part, rows, cols, float(values.max()))))
        start += rows * cols
    return found


def _curves(page: FeaturePage, feature: int) -> list[tuple[str, str]]:
    if page.dose is None or feature not in page.dose.mean.axes["feature"]:
        return []
    mean = page.dose.mean.sel(feature=feature)
    coefs = mean.axes["coef"]
    curves = {dim: mean.sel(dim=dim).values.values.tolist() for dim in mean.axes["dim"]}
    most = float(np.abs(mean.values.values).max())
    size = page.dose.size.sel(feature=feature, coef=coefs[-1]).values.item()
    random = float(page.dose.random.sel(feature=feature, coef=coefs[-1]).values.mean())
    return [(f"steered: {size:.2f} sd at {coefs[-1]:+g}, random {random:.2f}", dose_curves(coefs, curves, most))]


def _effect(page: FeaturePage, feature: int) -> str:
    if page.taken_out is None or feature not in page.taken_out.size.axes["feature"]:
        return ""
    size = page.taken_out.size.sel(feature=feature).values.item()
    random = float(page.taken_out.random.sel(feature=feature).values.mean())
    return f"{size:.3f} / {random:.3f}"


def _strongest_facts(table: FeatureTable, place: int) -> list[tuple[str, float]]:
    values = table.correlation.values.values[place]
    facts = table.correlation.axes["fact"]
    order = np.argsort(-np.abs(np.nan_to_num(values)))[:FACTS_SHOWN]
    return [(facts[k], float(np.nan_to_num(values[k]))) for k in order]


def _fact_rows(table: FeatureTable, place: int) -> str:
    if not table.correlation.axes["fact"]:
        return ""
    rows = "".join(f"<tr><td>{escape(f)}</td><td>{v:+.2f}</td></tr>" for f, v in _strongest_facts(table, place))
    return f"<table>{rows}</table>"


def _neighbour_rows(table: FeatureTable, place: int) -> str:
    rows = ""
    for other, cosine in table.neighbours[place]:
        link = f'<a href="#f{other}">{other}</a>' if other in table.features else str(other)
        rows += f"<tr><td>{link}</td><td>{cosine:+.2f}</td></tr>"
    return f"<table>{rows}</table>"


def _shots(page: FeaturePage, firings: Sequence[Firing], album: _Album, label: str) -> str:
    shots = "".join(_shot(page, firing, album) for firing in firings)
    return f'<div class="shots"><span>{label}</span>{shots}</div>' if shots else ""


def _shot(page: FeaturePage, firing: Firing, album: _Album) -> str:
    most = max(firing.codes)
    start, drawn = 0, []
    for name, (rows, cols) in page.grids.items():
        inside = firing.token - start if start <= firing.token < start + rows * cols else None
        if name in album.cameras(firing.query) and inside is not None:
            codes = firing.codes[start : start + rows * cols]
            drawn = [_picture(album, firing.query, name, overlay(codes, rows, cols, most, inside))]
        start += rows * cols
    if not drawn:  # the tokens are no patches: show all that was seen
        drawn = [_picture(album, firing.query, camera, "") for camera in album.cameras(firing.query)]
    token = escape(page.table.tokens[firing.token])
    caption = f"{escape(page.queries[firing.query])}<br>{token}: {firing.value:.3g}"
    kind = "shot two" if len(drawn) > 1 else "shot"
    return f'<div class="{kind}"><div class="pair">{"".join(drawn)}</div>{caption}</div>'


def _picture(album: _Album, query: int, camera: str, content: str) -> str:
    return f'<div class="picture {album.name(query, camera)}">{content}</div>'
