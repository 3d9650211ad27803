"""How is an episode filmed without slowing its control loop?

Frames are taken between control steps and encoded after the episode has ended. Because a rollout with equal
seeds and actions is bit-reproducible, an episode can also be filmed later: `film_again` replays its stored
actions and checks the state hash at every query, so that the video certainly shows the episode that was
counted.
"""

from __future__ import annotations

from typing import Any, Protocol

from mist_interp.data.records import EpisodeRecord
from mist_interp.data.replay import replay_until
from mist_interp.data.video import FRAMES_PER_SECOND as FRAMES_PER_SECOND
from mist_interp.data.video import Frame

CAMERA = "agentview"
# Every fourth control step of 1/20 s: five frames per second of robot time, played at three times that.
FRAME_EVERY = 4


class Filmable(Protocol):
    """What filming needs of an environment."""

    def frame(self, camera: str) -> Frame: ...


class Camera:
    """Collects frames of a running episode: pass `camera.on_step` to the loop.

    Args:
        env: the environment to look at.
        every: control steps between frames.
    """

    def __init__(self, env: Filmable, every: int = FRAME_EVERY) -> None:
        self._env, self._every = env, every
        self.frames: list[Frame] = []
        self.steps: list[int] = []

    def on_step(self, step: int) -> None:
        """Take a frame if one is due after `step` control steps."""
        if step % self._every == 0:
            self.frames.append(self._env.frame(CAMERA))
            self.steps.append(step)


def film_again(env: Any, episode: EpisodeRecord, every: int = FRAME_EVERY) -> Camera:
    """Replay an episode and take frames.

    Raises:
        ReplayDiffers: the replay leaves the recorded states; the message names the first query that differs.
    """
    camera = Camera(env, every)
    replay_until(env, episode, episode.steps, on_step=camera.on_step)
    return camera
