"""How does what a policy saw become a film?

During collection one frame is kept per query: the observation that the policy was given, so nothing is drawn for it.
Both cameras stand side by side in the policy's orientation (LIBERO's raw picture turned by 180 degrees, before the
policy's own scaling), so frame i of the film and row i of the episode's queries belong together. The film is encoded
when the episode has ended, and is there before the episode's row is. H.264 loses a little: look at it, and do not feed
it to a policy in place of the pictures.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mist_interp.core.errors import UnknownName
from mist_interp.data.records import Decision
from mist_interp.data.rollout import Act, Observation

Frame = UInt8[np.ndarray, "height width 3"]
CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")
# A chunk of eight steps of 1/20 s is 0.4 s of robot time, so a film plays at twice that.
QUERIES_PER_SECOND = 5.0
# Of films that have a frame every few control steps, see `mist_interp.evaluation.video`.
FRAMES_PER_SECOND = 15.0
VIDEOS = ("none", "sample", "failures", "all")
# "sample" films one episode of so many, chosen by its key and so not by what happens in it.
SAMPLE_EVERY = 10


class Film:
    """What a policy sees in one episode: pass `film.watching(act)` to the loop."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def watching(self, act: Act) -> Act:
        """The same answers; what they are asked about is kept."""

        def watched(observation: Observation, query: int) -> Decision:
            self.frames.append(policy_view(observation))
            return act(observation, query)

        return watched


def policy_view(observation: Mapping[str, Any]) -> Frame:
    """Camera pictures of a LIBERO observation side by side, (height, cameras * width, 3), in the policy's orientation.

    Raises:
        KeyError: there is no picture in it.
    """
    pictures = [np.asarray(observation[name])[::-1, ::-1] for name in CAMERAS if name in observation]
    if not pictures:
        raise KeyError(f"the observation has no picture {' or '.join(CAMERAS)}; it has {sorted(observation)}")
    return np.concatenate(pictures, axis=1)


def is_filmed(videos: str, key: str, success: bool | None = None) -> bool:
    """Whether an episode is to have a film; while its success is not known, whether it may have one.

    Raises:
        UnknownName: `videos` is none of `VIDEOS`.
    """
    if videos not in VIDEOS:
        raise UnknownName("value of videos", videos, VIDEOS)
    if videos == "sample":
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % SAMPLE_EVERY == 0
    return videos == "all" or (videos == "failures" and not success)


def check_videos(videos: str) -> None:
    """Refuse, before anything is run, a choice that there is not, or films that cannot be written here.

    Raises:
        UnknownName: `videos` is none of `VIDEOS`.
        ImportError: imageio is not installed.
    """
    is_filmed(videos, "")
    if videos != "none":
        _imageio()


def write_video(path: Path, frames: Iterable[Frame], fps: float = FRAMES_PER_SECOND, quality: int = 20) -> None:
    """Encode frames as H.264 mp4 that plays in any browser; the file appears only when it is complete.

    Args:
        path: the file.
        frames: all of one size.
        fps: frames per second of the film.
        quality: constant rate factor of the codec; 18 is visually lossless, 28 small.

    Raises:
        ImportError: imageio or its ffmpeg is not installed.
    """
    imageio = _imageio()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
    options = ["-crf", str(quality), "-preset", "veryfast", "-movflags", "+faststart"]
    try:
        writer = imageio.get_writer(
            temporary,
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=options,
        )
        try:
            for frame in frames:
                writer.append_data(np.ascontiguousarray(frame))
        finally:
            writer.close()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _imageio() -> Any:
    try:
        import imageio.v2 as imageio
    except ImportError as error:
        raise ImportError("videos need imageio: pip install 'mist-interp[report]', or videos='none'") from error
    return imageio
