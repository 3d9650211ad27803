"""Which demonstrations does the small policy learn from?

Scenes are drawn anew from the distribution of LIBERO's initial states; none of the 50 published initial states of a
task is used, so all of them stay free for evaluation. Two drivers:

- ``expert``: the scripted expert drives, with noise on what is executed and none on what is recorded (DART);
- a policy folder: the policy drives and the expert labels the visited states with what it would do for the next
  eight steps, computed on a fork of the simulator (DAgger); of a policy with single actions, for the next step. Some
  turns of four to eight steps are driven by the expert, so that late phases are seen.

One file per episode; the same command goes on where it stopped.

    python experiments/mini/demonstrations.py --out runs/mini/demos --episodes 40 --shard 0/2
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

from mist_interp.core.files import write_atomic
from mist_interp.libero.env import LiberoEnv
from mist_interp.libero.expert import Expert
from mist_interp.libero.suite import LiberoSuite
from mist_interp.models.images import jpeg_round_trip, lanczos_resize
from mist_interp.models.robot_state import robot_state
from mist_interp.probing.advice import rehearsed

CHUNK = 8
SIZE = 112


@dataclass
class Arguments:
    """What to collect."""

    out: Path
    """Folder of the episodes (npz)."""
    episodes: int = 40
    """Episodes per task."""
    tasks: tuple[int, ...] = tuple(range(10))
    """Tasks of libero_spatial."""
    policy: Path | None = None
    """Policy folder that drives (DAgger); the expert drives without it."""
    expert_share: float = 0.3
    """Share of turns that the expert drives although a policy is given."""
    first_seed: int = 10_000
    """Number of the first start state, a drawn one; each round of DAgger takes its own range."""
    every: int = 4
    """Record the scene every so many control steps; a policy with chunks records every look."""
    shard: str = "0/1"
    """This process's part of the work."""


def main(arguments: Arguments) -> None:
    """Collect all episodes of this shard that are not on disk yet."""
    console = Console()
    part, parts = (int(number) for number in arguments.shard.split("/"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    policy = None
    if arguments.policy is not None:
        import torch

        from mist_interp.models import load_policy

        torch.set_num_threads(1)
        policy = load_policy(arguments.policy, dtype=torch.float32)
    for task in arguments.tasks:
        wanted = [
            arguments.first_seed + number
            for number in range(arguments.episodes)
            if (number + task) % parts == part
            and not (arguments.out / f"task{task}-{arguments.first_seed + number}.npz").exists()
        ]
        if not wanted:
            continue
        env = LiberoEnv(LiberoSuite("libero_spatial").tasks[task])
        successes = 0
        for done, seed in enumerate(wanted, start=1):
            env.reset(seed)
            rng = np.random.default_rng(seed)
            episode = by_expert(env, rng, arguments.every) if policy is None else by_policy(env, rng, policy, arguments)
            successes += int(episode["success"])
            save(arguments.out / f"task{task}-{seed}.npz", episode | {"task": np.int64(task)})
            console.print(f"task {task}: {done}/{len(wanted)}, success {successes}/{done}", highlight=False)
        env.close()


def by_expert(env: LiberoEnv, rng: np.random.Generator, every: int) -> dict[str, np.ndarray]:
    """One episode driven by the noisy expert."""
    expert = Expert(env)
    scale = rng.choice([0.0, 0.3, 0.6])
    looks: list[dict[str, np.ndarray]] = []
    actions: list[np.ndarray] = []
    noise = np.zeros(6)
    push = rng.normal(size=6) * (0.7, 0.7, 0.5, 0.1, 0.1, 0.1)
    pushed = rng.integers(0, 12)  # some episodes start with a push somewhere else
    offset = int(rng.integers(every))
    success, after, step = False, 0, 0
    while step < env.task.max_steps and after < CHUNK:
        if (step + offset) % every == 0 and not success:
            looks.append(look(env, expert) | {"step": np.int64(step)})
        action = expert.act()
        actions.append(action)
        noise = 0.7 * noise + 0.6 * scale * rng.normal(size=6) * (1, 1, 1, 0.4, 0.4, 0.4)
        executed = action.copy()
        executed[:6] += push if step < pushed else noise
        success = env.step(np.clip(executed, -1, 1)).success or success
        after += int(success)
        step += 1
    recorded = np.stack(actions)
    kept = [frame for frame in looks if frame["step"] + CHUNK <= len(recorded)]
    chunks = np.stack([recorded[frame["step"] : frame["step"] + CHUNK] for frame in kept])
    return stack(kept) | {"chunk": chunks, "success": np.bool_(success)}


def by_policy(env: LiberoEnv, rng: np.random.Generator, policy, arguments: Arguments) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    """One episode driven by the policy, labelled by the expert."""
    import torch

    from mist_interp.core.actions import to_env_action

    expert = Expert(env)
    size = policy.config.chunk_size
    looks, chunks = [], []
    success, step = False, 0
    while step < env.task.max_steps and not success:
        expert_drives = rng.random() <= arguments.expert_share
        left = int(rng.integers(4, CHUNK + 1))
        while left and not success:
            observation = env.observe()
            label = ahead(env, expert, size)
            if size > 1 or step % arguments.every == 0:
                looks.append(look(env, expert, observation))
                chunks.append(label)
            driven = label
            if not expert_drives:
                with torch.no_grad():
                    out = policy(policy.prepare(observation, env.task.instruction))
                driven = to_env_action(out.values[0]).numpy()
            for action in driven[:left]:
                success = env.step(np.clip(action, -1, 1)).success
                step, left = step + 1, left - 1
                if success:
                    break
    return stack(looks) | {"chunk": np.stack(chunks), "success": np.bool_(success)}


def ahead(env: LiberoEnv, expert: Expert, steps: int) -> np.ndarray:
    """The expert's next actions from here, (steps, 7); the environment is as before."""
    return expert.act()[None] if steps == 1 else rehearsed(env, expert, steps)


def look(env: LiberoEnv, expert: Expert, observation: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """What a training sample shows: two images before the crop, the robot's state, and where the objects are."""
    observation = observation or env.observe()
    images = [
        lanczos_resize(jpeg_round_trip(np.ascontiguousarray(observation[f"{camera}_image"][::-1, ::-1])), SIZE)
        for camera in ("agentview", "robot0_eye_in_hand")
    ]
    hand = observation["robot0_eef_pos"]
    return {
        "images": np.stack(images),
        "proprio": robot_state(observation),
        "bowl": observation["akita_black_bowl_1_pos"] - hand,
        "plate": observation["plate_1_pos"] - hand,
    }


def stack(looks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Samples of one episode as arrays with a first axis."""
    return {name: np.stack([frame[name] for frame in looks]) for name in looks[0] if name != "step"}


def save(file: Path, episode: dict[str, np.ndarray]) -> None:
    """Write one episode atomically."""
    import io

    buffer = io.BytesIO()
    np.savez(buffer, **episode)
    write_atomic(file, buffer.getvalue())


if __name__ == "__main__":
    main(tyro.cli(Arguments))
