"""How do several arms look on the same unit?

The episodes run side by side in robot time. Each panel says which arm it is and how it ended; below it runs the
detector's score with its threshold; a forbidden contact frames the picture in red and names the bodies and the
force. An episode that has ended holds its last picture.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from mist_interp.data.video import write_video
from mist_interp.evaluation.folder import Row
from mist_interp.evaluation.video import FRAME_EVERY, FRAMES_PER_SECOND

PANEL, HEADER, FOOTER, GAP = 256, 30, 46, 10
ABREAST = 4  # panels in a row: a page is about that wide
PAPER, INK, MUTED, HAIRLINE = (255, 255, 255), (29, 33, 41), (109, 116, 128), (217, 220, 225)
GOOD, BAD, EDIT = (47, 125, 91), (196, 60, 50), (31, 111, 159)
# A contact of one control step would pass unseen at 15 frames per second.
FLASH_STEPS = 6
HOLD_FRAMES = 18


@dataclass(frozen=True)
class Take:
    """One filmed episode.

    Attributes:
        label: name of the arm.
        row: its episode row.
        queries: its query rows (`step`, `score`, `edit`).
        frames: (frames, height, width, 3), the first at step 0, then every `FRAME_EVERY` control steps.
    """

    label: str
    row: Row
    queries: pd.DataFrame
    frames: Sequence[UInt8[np.ndarray, "height width 3"]]

    @property
    def steps(self) -> int:
        """Length of the episode in control steps."""
        return int(self.row["steps"])


def read_frames(path: Path) -> list[UInt8[np.ndarray, "height width 3"]]:
    """All frames of a stored video."""
    return [np.asarray(frame) for frame in imageio.mimread(path, memtest=False)]


def paired_frames(takes: Sequence[Take], threshold: float | None = None) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Frames of the episodes side by side, `ABREAST` in a row, until the longest has ended."""
    length = max(take.steps for take in takes)
    scores = np.concatenate([take.queries["score"].dropna().to_numpy(dtype=float) for take in takes])
    limits = _score_limits(scores, threshold)
    columns = min(len(takes), ABREAST)
    size = (columns * (PANEL + GAP) - GAP, HEADER + PANEL + FOOTER)
    for step in range(0, length + HOLD_FRAMES * FRAME_EVERY, FRAME_EVERY):
        rows = []
        for first in range(0, len(takes), columns):
            canvas = Image.new("RGB", size, PAPER)
            for place, take in enumerate(takes[first : first + columns]):
                _panel(canvas, place * (PANEL + GAP), take, step, length, limits, threshold)
            rows.append(np.asarray(canvas))
        yield np.concatenate(rows)


def paired_video_data_url(takes: Sequence[Take], threshold: float | None = None) -> str:
    """The paired video as `data:video/mp4;base64,…`, for a page that carries everything in itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.mp4"
        write_video(path, paired_frames(takes, threshold), FRAMES_PER_SECOND, quality=25)
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _panel(
    canvas: Image.Image,
    x: int,
    take: Take,
    step: int,
    length: int,
    limits: tuple[float, float] | None,
    threshold: float | None,
) -> None:
    draw = ImageDraw.Draw(canvas)
    ended = step >= take.steps
    frame = take.frames[min(step // FRAME_EVERY, len(take.frames) - 1)]
    canvas.paste(Image.fromarray(frame).resize((PANEL, PANEL), Image.Resampling.LANCZOS), (x, HEADER))
    draw.text((x, 5), take.label, INK, font=_font(15))
    if ended:
        success = bool(take.row["success"])
        text = f"success, step {take.steps}" if success else f"failed at {take.steps}"
        draw.text((x + PANEL, 7), text, GOOD if success else BAD, font=_font(13), anchor="ra")
    else:
        draw.text((x + PANEL, 7), f"step {step}", MUTED, font=_font(13), anchor="ra")
    for event in take.row.get("events", []):
        if event["start_step"] <= step <= event["end_step"] + FLASH_STEPS and not ended:
            _flash(draw, x, event)
            break
    _timeline(draw, x, HEADER + PANEL + 6, take, min(step, take.steps), length, limits, threshold)


def _flash(draw: ImageDraw.ImageDraw, x: int, event: Row) -> None:
    draw.rectangle((x, HEADER, x + PANEL - 1, HEADER + PANEL - 1), outline=BAD, width=5)
    text = f"{event['kind']}  {event['peak_force']:.0f} N"
    box = draw.textbbox((0, 0), text, font=_font(13))
    draw.rectangle((x, HEADER, x + box[2] + 14, HEADER + box[3] + 9), fill=BAD)
    draw.text((x + 7, HEADER + 3), text, PAPER, font=_font(13))


def _timeline(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    take: Take,
    step: int,
    length: int,
    limits: tuple[float, float] | None,
    threshold: float | None,
) -> None:
    height = FOOTER - 14

    def at(control_step: float) -> float:
        return x + (PANEL - 1) * control_step / length

    for query in take.queries.itertuples():
        if query.edit and query.step <= step:
            end = min(query.step + FRAME_EVERY * 2, step)
            draw.line((at(query.step), y + height + 3, at(end), y + height + 3), fill=EDIT, width=3)
    draw.line((x, y + height, x + PANEL - 1, y + height), fill=HAIRLINE, width=1)
    if limits is not None:

        def level(score: float) -> float:
            return y + height - height * (score - limits[0]) / (limits[1] - limits[0])

        if threshold is not None and np.isfinite(threshold):
            for dash in range(x, x + PANEL, 7):
                draw.line((dash, level(threshold), dash + 3, level(threshold)), fill=MUTED, width=1)
        seen = take.queries[take.queries["step"] <= step]
        points = [(at(s), level(v)) for s, v in zip(seen["step"], seen["score"], strict=True) if v == v]
        if len(points) > 1:
            draw.line(points, fill=INK, width=2, joint="curve")
        if points:
            px, py = points[-1]
            draw.ellipse((px - 3, py - 3, px + 3, py + 3), fill=INK)
    for event in take.row.get("events", []):
        if event["start_step"] <= step:
            draw.line((at(event["start_step"]), y, at(event["start_step"]), y + height), fill=BAD, width=2)


def _score_limits(scores: np.ndarray, threshold: float | None) -> tuple[float, float] | None:
    if not len(scores):
        return None
    values = [*scores, threshold] if threshold is not None and np.isfinite(threshold) else list(scores)
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
