"""How is a feature drawn in a few hundred bytes?

Small pictures as hand-written SVG, because a page holds a hundred of them: a histogram, a map of the tokens, a
dose-response curve. Numbers go into tooltips.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

ACCENT, FAINT, MUTED = "#1f6f9f", "#e9ecf0", "#6d7480"
DIM_COLOURS = ("#b5433a", "#2f7d5b", "#1f6f9f", "#c2862a", "#7a4f9a", "#2b8c8c", "#7b828e")
HOT = (181, 67, 58)


def histogram(shares: Sequence[float], largest: float, width: int = 165, height: int = 54) -> str:
    """Bars over the codes, from 0 to the largest; heights are square roots, so that rare strong codes are seen."""
    roots = np.sqrt(np.asarray(shares, dtype=float))
    top = float(roots.max(initial=0.0)) or 1.0
    step = width / len(roots)
    bars = "".join(
        f'<rect x="{place * step:.1f}" y="{height - height * root / top:.1f}" width="{step - 1:.1f}" '
        f'height="{height * root / top:.1f}" fill="{ACCENT}"><title>{100 * root**2:.2g} %</title></rect>'
        for place, root in enumerate(roots)
        if root > 0
    )
    axis = (
        f'<line x1="0" x2="{width}" y1="{height}" y2="{height}" stroke="{MUTED}" stroke-width="0.7"/>'
        f'<text x="0" y="{height + 12}">0</text>'
        f'<text x="{width}" y="{height + 12}" text-anchor="end">{largest:.3g}</text>'
    )
    return _svg(width, height + 15, bars + axis)


def token_map(values: Float[np.ndarray, " tokens"], rows: int, cols: int, most: float, side: int = 92) -> str:
    """Mean codes on a grid of tokens, white to blue."""
    step = side / max(rows, cols)
    cells = "".join(
        f'<rect x="{(k % cols) * step:.1f}" y="{(k // cols) * step:.1f}" width="{step:.1f}" height="{step:.1f}" '
        f'fill="{ACCENT}" fill-opacity="{min(1.0, value / most) if most > 0 else 0:.2f}">'
        f"<title>row {k // cols}, column {k % cols}: {value:.3g}</title></rect>"
        for k, value in enumerate(values)
    )
    frame = (
        f'<rect x="0.5" y="0.5" width="{cols * step - 1:.1f}" height="{rows * step - 1:.1f}" fill="none" '
        f'stroke="{FAINT}"/>'
    )
    return _svg(side, round(rows * step), frame + cells)


def dose_curves(
    coefs: Sequence[float], means: Mapping[str, Sequence[float]], most: float, width: int = 180, height: int = 96
) -> str:
    """One line per action dimension over the coefficient; `most` is the end of the vertical axis."""
    low, high = min(0.0, *coefs), max(0.0, *coefs)
    most = most or 1.0

    def place(coef: float, value: float) -> str:
        x = (coef - low) / (high - low or 1.0) * width
        return f"{x:.1f},{height / 2 - np.clip(value / most, -1, 1) * height / 2:.1f}"

    zero = f'<line x1="0" x2="{width}" y1="{height / 2}" y2="{height / 2}" stroke="{FAINT}"/>'
    lines = ""
    for number, (dim, values) in enumerate(means.items()):
        points = sorted([(0.0, 0.0), *((c, v) for c, v in zip(coefs, values, strict=True) if c != 0)])
        said = ", ".join(f"{coef:+g}: {value:+.2f}" for coef, value in points)
        lines += (
            f'<polyline points="{" ".join(place(*point) for point in points)}" fill="none" stroke-width="1.5" '
            f'stroke="{DIM_COLOURS[number % len(DIM_COLOURS)]}"><title>{escape(dim)}: {said}</title></polyline>'
        )
    ends = (
        f'<text x="0" y="{height + 11}">{low:+g} sd</text><text x="2" y="9">+{most:.2g}</text>'
        f'<text x="{width}" y="{height + 11}" text-anchor="end">{high:+g} sd</text>'
    )
    return _svg(width, height + 14, zero + lines + ends)


def legend(dims: Sequence[str]) -> str:
    """Names of the action dimensions in their colours."""
    return " ".join(
        f'<span style="color:{DIM_COLOURS[number % len(DIM_COLOURS)]}">{escape(dim)}</span>'
        for number, dim in enumerate(dims)
    )


def overlay(codes: Sequence[float], rows: int, cols: int, most: float, strongest: int | None) -> str:
    """Where a feature fires on a picture: red patches over it, the strongest framed; an SVG to lie on the picture."""
    cells = ""
    for k, code in enumerate(codes):
        if code <= 0 and k != strongest:
            continue
        share = min(1.0, code / most) if most > 0 else 0.0
        edge = f' stroke="rgb{HOT}" stroke-width="0.12"' if k == strongest else ""
        cells += (
            f'<rect x="{k % cols}" y="{k // cols}" width="1" height="1" fill="rgb{HOT}" '
            f'fill-opacity="{0.55 * share:.2f}"{edge}><title>{code:.3g}</title></rect>'
        )
    return f'<svg viewBox="0 0 {cols} {rows}" preserveAspectRatio="none">{cells}</svg>'


def picture_url(image: UInt8[np.ndarray, "height width 3"], quality: int = 82) -> str:
    """A picture as a data URL (JPEG)."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _svg(width: float, height: float, content: str) -> str:
    return f'<svg class="small" width="{width}" height="{height}" viewBox="0 0 {width} {height}">{content}</svg>'
