"""What did the policy see at every query whose activations are stored?

The rollout store keeps activations and robot states, no pictures. Here the environment writes down what it shows:
per query one file with both camera pictures, the robot state, and which body each pixel shows, so that a feature can be
looked at where it fires and a query can be asked again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scenes import CAMERAS, TARGET

from mist_interp.core.files import write_atomic
from mist_interp.data import Protocol, RolloutStore, collect_rollouts
from mist_interp.libero import LiberoEnv
from mist_interp.models.images import crop_center, model_image

STATE_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
PICTURE_KEYS = {"agentview": "agentview_image", "wrist": "robot0_eye_in_hand_image"}


@dataclass(frozen=True, eq=False)
class Frame:
    """What the policy saw at a query.

    Attributes:
        obs: LIBERO observation dictionary (pictures, robot state).
        masks: per camera an index into `bodies` per pixel, rows as in `obs`.
        bodies: names of the bodies.
    """

    obs: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    bodies: tuple[str, ...]

    def mask(self, camera: str, *names: str) -> np.ndarray:
        """Pixels that show one of the bodies, (256, 256) bool."""
        wanted = [k for k, body in enumerate(self.bodies) if body.removesuffix("_main") in names]
        return np.isin(self.masks[camera], wanted)


class RecordingEnv:
    """A LIBERO environment that writes down what it shows."""

    def __init__(self, env: LiberoEnv, task: int, folder: Path) -> None:
        self._env, self._task, self._folder = env, task, folder
        self._init, self._query = 0, 0

    def reset(self, init_state: int) -> None:
        """Start an episode."""
        self._env.reset(init_state)
        self._init, self._query = init_state, 0

    def observe(self) -> dict[str, Any]:
        """Look, and keep what was seen."""
        obs = self._env.observe()
        arrays = {key: np.asarray(obs[key]) for key in (*STATE_KEYS, *PICTURE_KEYS.values())}
        arrays |= {f"mask_{name}": self._env.segmentation(camera).astype(np.int16) for name, camera in CAMERAS.items()}
        arrays["bodies"] = np.array(json.dumps(self._env.bodies))
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # the stub takes the names for options
        write_atomic(frame_path(self._folder, self._task, self._init, self._query), file.getvalue())
        self._query += 1
        return obs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


def frame_path(folder: Path, task: int, init_state: int, query: int) -> Path:
    """Where the frame of a query is."""
    return folder / f"t{task:02d}-i{init_state:03d}-q{query:02d}.npz"


def read_frame(folder: Path, task: int, init_state: int, query: int) -> Frame:
    """A frame written by `RecordingEnv`."""
    with np.load(frame_path(folder, task, init_state, query)) as file:
        obs = {key: file[key] for key in (*STATE_KEYS, *PICTURE_KEYS.values())}
        masks = {name: file[f"mask_{name}"] for name in CAMERAS}
        return Frame(obs, masks, tuple(json.loads(str(file["bodies"]))))


def collect(folder: Path, inits: Sequence[int], sites: Sequence[Any], tokens: Sequence[str], show: Any) -> RolloutStore:
    """Rollouts of `mini` with all tokens of some groups, and their frames beside them."""

    def recording(task: Any, protocol: Protocol, seed: int) -> RecordingEnv:
        env = LiberoEnv(task, profile=protocol.profile, resolution=protocol.resolution, seed=seed)
        return RecordingEnv(env, task.index, folder / "frames")

    return collect_rollouts(
        "mini",
        "libero_spatial",
        out=folder / "rollouts",
        sites=sites,
        tokens=tokens,
        pool="flat",
        inits=inits,
        on_progress=show,
        make_env=recording,
    )


@dataclass(frozen=True, eq=False)
class Query:
    """One query of a stored episode, with what was seen.

    Attributes:
        task: index of the task.
        init_state: start state of the episode.
        step: control steps done.
        instruction: what the policy was told.
        robot_state: (9,) end effector position (m), quaternion, two finger positions (m).
        objects: name -> position (m).
        frame: what the policy saw.
    """

    task: int
    init_state: int
    step: int
    instruction: str
    robot_state: np.ndarray
    objects: dict[str, np.ndarray]
    frame: Frame

    def __str__(self) -> str:
        return f"task {self.task}, start {self.init_state}, step {self.step}"


def queries_of(store: RolloutStore, folder: Path) -> list[Query]:
    """All queries of a store, in the order of its rows."""
    found = []
    for key in store.keys:
        episode = store.episode(key)
        unit = episode.unit
        for query in episode.queries:
            frame = read_frame(folder / "frames", unit.task, unit.init_state, query.index)
            objects = {name: pose[:3] for name, pose in query.objects.items()}
            found.append(
                Query(unit.task, unit.init_state, query.step, episode.instruction, query.robot_state, objects, frame)
            )
    return found


def facts_of(queries: Sequence[Query]) -> dict[str, list[float]]:
    """What one may know about a query without looking into the network, one number each."""
    lifted = {(q.task, q.init_state): q.objects[TARGET][2] for q in reversed(queries)}  # height at the first query
    facts = {
        "gripper opening": [float(q.robot_state[7] - q.robot_state[8]) for q in queries],
        "gripper height": [float(q.robot_state[2]) for q in queries],
        "gripper to bowl": [float(np.linalg.norm((q.robot_state[:3] - q.objects[TARGET])[:2])) for q in queries],
        "bowl is lifted": [float(q.objects[TARGET][2] - lifted[q.task, q.init_state] > 0.02) for q in queries],
        "control step": [float(q.step) for q in queries],
        "bowl x": [float(q.objects[TARGET][0]) for q in queries],
        "bowl y": [float(q.objects[TARGET][1]) for q in queries],
    }
    return facts | {f"task {task}": [float(q.task == task) for q in queries] for task in range(10)}


def seen(query: Query, size: int) -> dict[str, np.ndarray]:
    """Both pictures as the policy gets them, upright."""
    return {name: model_image(_upright(query.frame.obs[key]), size) for name, key in PICTURE_KEYS.items()}


def patch_cover(query: Query, size: int, grid: int, *bodies: str) -> np.ndarray:
    """Share of every patch that shows one of the bodies: (2 * grid * grid,), agentview first."""
    covers = []
    for camera in PICTURE_KEYS:
        mask = _upright(query.frame.mask(camera, *bodies)).astype(np.uint8)[:, :, None].repeat(3, 2) * 255
        small = np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.BOX))
        covers.append(crop_center(small)[:, :, 0].reshape(grid, size // grid, grid, size // grid).mean((1, 3)) / 255)
    return np.concatenate([cover.ravel() for cover in covers])


def _upright(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[::-1, ::-1])
