"""Paired films keep robot time, flash contacts, and hold the last picture."""

from pathlib import Path

import numpy as np
import pandas as pd

from mist_interp.data.video import write_video
from mist_interp.evaluation.video import FRAME_EVERY, FRAMES_PER_SECOND
from mist_interp.report.video import (
    ABREAST,
    BAD,
    FLASH_STEPS,
    FOOTER,
    GAP,
    HEADER,
    HOLD_FRAMES,
    PANEL,
    Take,
    paired_frames,
    paired_video_data_url,
    read_frames,
)


def take(label: str, steps: int, shade: int, events: tuple = (), score: float | None = 0.2, edit: str = "") -> Take:
    frames = [np.full((32, 32, 3), shade + i, dtype=np.uint8) for i in range(steps // FRAME_EVERY + 1)]
    queries = pd.DataFrame({"step": list(range(0, steps, 8)), "score": score, "edit": edit})
    return Take(label, {"steps": steps, "success": True, "events": list(events)}, queries, frames)


def picture(frame: np.ndarray, panel: int) -> np.ndarray:
    x = panel * (PANEL + GAP)
    return frame[HEADER : HEADER + PANEL, x : x + PANEL]


def test_panels_stand_side_by_side_for_the_longest_episode() -> None:
    frames = list(paired_frames([take("none", 24, 50), take("steer", 48, 100)]))
    assert frames[0].shape == (HEADER + PANEL + FOOTER, 2 * PANEL + GAP, 3)
    assert len(frames) == 48 // FRAME_EVERY + HOLD_FRAMES
    assert picture(frames[3], 0)[128, 128, 0] == 53 and picture(frames[3], 1)[128, 128, 0] == 103
    assert picture(frames[-1], 0)[128, 128, 0] == 56 and picture(frames[-1], 1)[128, 128, 0] == 112


def test_many_panels_stand_in_several_rows() -> None:
    takes = [take(f"arm {place}", 16, 40 * place) for place in range(ABREAST + 2)]
    frame = next(paired_frames(takes))
    height = HEADER + PANEL + FOOTER
    assert frame.shape == (2 * height, ABREAST * (PANEL + GAP) - GAP, 3)
    shades = [
        picture(frame[height * (place // ABREAST) :], place % ABREAST)[128, 128, 0] for place in range(len(takes))
    ]
    assert shades == [40 * place for place in range(len(takes))]
    assert (picture(frame[height:], ABREAST - 1) == 255).all()  # nobody stands there


def test_a_contact_flashes_in_its_own_panel_at_its_time() -> None:
    event = {"start_step": 16, "end_step": 17, "kind": "hand-table", "peak_force": 12.0}
    frames = list(paired_frames([take("none", 48, 50), take("steer", 48, 100, (event,))]))
    border = [tuple(picture(frame, 1)[128, 0]) == BAD for frame in frames]
    assert [index * FRAME_EVERY for index, red in enumerate(border) if red] == [
        step for step in range(0, 48, FRAME_EVERY) if 16 <= step <= 17 + FLASH_STEPS
    ]
    assert not any(tuple(picture(frame, 0)[128, 0]) == BAD for frame in frames)


def test_scores_and_thresholds_are_optional() -> None:
    without = list(paired_frames([take("none", 16, 50, score=None)]))
    assert len(without) == 16 // FRAME_EVERY + HOLD_FRAMES
    infinite = list(paired_frames([take("none", 16, 50)], threshold=float("inf")))
    drawn = list(paired_frames([take("none", 16, 50)], threshold=0.5))
    footer = HEADER + PANEL
    assert (infinite[4][footer:] != drawn[4][footer:]).any()


def test_films_survive_encoding(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "film.mp4"
    frames = [np.full((64, 64, 3), 20 * i, dtype=np.uint8) for i in range(8)]
    write_video(path, frames, FRAMES_PER_SECOND)
    back = read_frames(path)
    assert len(back) == 8 and all(abs(int(b.mean()) - 20 * i) < 6 for i, b in enumerate(back))
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]
    url = paired_video_data_url([take("none", 16, 50)])
    assert url.startswith("data:video/mp4;base64,") and len(url) < 60_000
