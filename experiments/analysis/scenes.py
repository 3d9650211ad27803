"""Which pictures do the analyses look at?

Moments of real episodes: `mini` acts in LIBERO's own tasks, and every so many queries what it sees is kept, together
with what a picture does not say by itself: where every object is, and which pixel shows which body. The fifty start
states of a task differ in where the objects stand, so two scenes of one task are a natural clean/corrupt pair.

    from scenes import asked, begin, scenes
    vla = begin("mini", Path("results/analysis"))
    shots = scenes(per_task=2)
    inputs = asked(vla, shots)

Scenes are drawn once (about two seconds per episode) and kept in `runs/analysis/`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from mist_interp import HookedVLA, PolicyInputs
from mist_interp.core.files import write_atomic
from mist_interp.libero import LiberoEnv, LiberoSuite

FOLDER = Path("runs/analysis")
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
TARGET, GOAL = "akita_black_bowl_1", "plate_1"  # in every task of libero_spatial: put this bowl onto the plate


@dataclass(frozen=True, eq=False)
class Scene:
    """One moment at which the policy is asked.

    Attributes:
        obs: LIBERO observation dictionary; images (256, 256, 3) uint8 as LIBERO stores them, first row at the bottom.
        instruction: of the task.
        task: index in the suite.
        init_state: start state of the episode.
        step: control steps done when the picture was taken.
        objects: position of every movable object, world axes, in m.
        masks: per camera of the policy ("agentview", "wrist") an index into `bodies` per pixel of the image, -1 for
            nothing.
        bodies: names of the bodies in the masks.
    """

    obs: dict[str, np.ndarray]
    instruction: str
    task: int
    init_state: int
    step: int
    objects: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    bodies: tuple[str, ...]

    def mask(self, camera: str, name: str) -> np.ndarray:
        """Pixels of the image that show an object: (256, 256) bool, rows as in `obs`."""
        wanted = [k for k, body in enumerate(self.bodies) if body.removesuffix("_main") == name]
        if not wanted:
            raise KeyError(f"no body {name!r}; there are {', '.join(self.bodies)}")
        return np.isin(self.masks[camera], wanted)


def begin(policy: str, out: Path, **loading: Any) -> HookedVLA:
    """How every script begins: one thread, a folder for what it finds, and the policy.

    Args:
        policy: name or folder.
        out: made when it does not exist.
        loading: how the policy is loaded, see `HookedVLA.from_pretrained`.
    """
    out.mkdir(parents=True, exist_ok=True)
    vla = HookedVLA.from_pretrained(policy, **loading)
    torch.set_num_threads(1)
    threadpool_limits(1)  # of the numerical libraries that are loaded by now, for the rest of the process
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of those that are loaded later
    return vla


def asked(vla: HookedVLA, shots: Sequence[Scene]) -> PolicyInputs:
    """The queries that the policy is asked at these scenes, as one batch."""
    return vla.prepare([shot.obs for shot in shots], [shot.instruction for shot in shots])


def scenes(
    per_task: int = 2,
    tasks: tuple[int, ...] = tuple(range(10)),
    first_init: int = 20,
    steps: tuple[int, ...] = (0,),
    policy: str = "mini",
    suite: str = "libero_spatial",
) -> list[Scene]:
    """Scenes of several start states per task, at given control steps (multiples of the policy's chunk).

    Args:
        per_task: start states per task, counted from `first_init` on (the published evaluation of `mini` uses 0 to 9).
        tasks: of the suite.
        first_init: first start state.
        steps: when to look; an episode that is over before leaves no scene.
        policy: who acts between two looks.
        suite: LIBERO suite.
    """
    settings = {"per_task": per_task, "tasks": tasks, "first_init": first_init, "steps": steps}
    settings |= {"policy": policy, "suite": suite}
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    found: list[Scene] = []
    vla: HookedVLA | None = None
    for task in tasks:
        path = FOLDER / f"scenes-{key}-task{task}.npz"
        if not path.exists():
            vla = vla or HookedVLA.from_pretrained(policy)
            _write(path, _draw(vla, LiberoSuite(suite).tasks[task], range(first_init, first_init + per_task), steps))
        found += _read(path)
    return found


def _draw(vla: HookedVLA, task: Any, inits: range, steps: tuple[int, ...]) -> list[Scene]:
    env = LiberoEnv(task)
    shots = []
    for init in inits:
        env.reset(init)
        done, step = False, 0
        while not done and step <= max(steps):
            obs = env.observe()
            if step in steps:
                objects = {
                    key.removesuffix("_pos"): obs[key] for key in obs if key.endswith("_pos") and "eef" not in key
                }
                masks = {name: env.segmentation(camera) for name, camera in CAMERAS.items()}
                shots.append(Scene(obs, task.instruction, task.index, init, step, objects, masks, env.bodies))
            for action in vla(vla.prepare(obs, task.instruction)).to_env()[0].double().numpy():
                done = done or env.step(action).success
                step += 1
    env.close()
    return shots


def _write(path: Path, shots: list[Scene]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for k, shot in enumerate(shots):
        arrays |= {f"{k}/obs/{name}": value for name, value in shot.obs.items()}
        arrays |= {f"{k}/objects/{name}": value for name, value in shot.objects.items()}
        arrays |= {f"{k}/masks/{name}": value.astype(np.int16) for name, value in shot.masks.items()}
        facts = {key: getattr(shot, key) for key in ("instruction", "task", "init_state", "step", "bodies")}
        arrays[f"{k}/facts"] = np.array(json.dumps(facts))
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # the stub takes the names for options
    write_atomic(path, file.getvalue())


def _read(path: Path) -> list[Scene]:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    shots = []
    for k in range(sum(name.endswith("/facts") for name in arrays)):
        groups: dict[str, dict[str, np.ndarray]] = {"obs": {}, "objects": {}, "masks": {}}
        for name, value in arrays.items():
            head, group, *rest = name.split("/")
            if head == str(k) and rest:
                groups[group]["/".join(rest)] = value
        facts = json.loads(str(arrays[f"{k}/facts"]))
        facts["bodies"] = tuple(facts["bodies"])
        shots.append(Scene(**groups, **facts))
    return shots
