"""How is the small policy trained from scratch on a CPU?

L1 loss on chunks of eight normalised actions, as OpenVLA-OFT; random 0.9-area crops and brightness changes as OpenVLA's
data loader; an auxiliary loss that regresses where bowl and plate are from the states the head reads (dropped at the
end). bfloat16 autocast with explicit attention: torch's fused attention is slow backwards on CPUs.

The folder of demonstrations is read again every epoch, so that DAgger episodes join while training runs. The learning
rate follows the share of the time budget that is used up; state is saved every few minutes and the same command
continues.

    python experiments/mini/train.py --demos runs/mini/demos --out runs/mini/policy --minutes 60

What depends on the kind of policy is a `Lesson`; `train_base.py` has the one of the policy that speaks in tokens.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import copy
import json
import math
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mist_interp.core.inputs import PolicyInputs
from mist_interp.libero.suite import LiberoSuite
from mist_interp.models import OpenVLAPolicy, Processor, load_policy, save_policy, small_config, word_tokenizer
from mist_interp.models.normalization import normalize

CROP = math.sqrt(0.9)
DATASET = "libero_spatial_no_noops"


@dataclass
class Arguments:
    """How to train."""

    demos: tuple[Path, ...] = (Path("runs/mini/demos"),)
    """Folders of demonstrations; read again every epoch."""
    out: Path = Path("runs/mini/policy")
    """Policy folder (published layout) and training state."""
    minutes: float = 60.0
    """Time budget; the learning rate reaches zero at its end."""
    batch: int = 64
    """Samples per update."""
    rate: float = 1e-3
    """Peak learning rate."""
    auxiliary: float = 0.5
    """Weight of the position loss; it falls to zero with the learning rate."""
    workers: int = 2
    """Processes of one thread each that share every batch; faster than one process of several threads."""
    seed: int = 0
    """Seed of initialisation and order."""


@dataclass(frozen=True)
class Lesson:
    """What is learnt: the kind of policy, what it sees and says, and how an answer is judged. Here: OpenVLA-OFT's.

    Attributes:
        fields: of `small_config`, where they differ from a policy that regresses chunks.
        cameras: pictures of a sample, the third-person view first.
        chunk: actions of a sample.
        start: policy whose weights are taken over wherever names and shapes agree; None starts from random ones.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    cameras: int = 2
    chunk: int = 8
    start: str | None = None

    def places(self, picked: dict[str, np.ndarray]) -> Tensor:
        """What the auxiliary loss regresses: bowl and plate from the hand, in decimetres, (samples, 6)."""
        return 10 * torch.from_numpy(np.concatenate([picked["bowl"], picked["plate"]], axis=1)).float()

    def answer(self, policy: OpenVLAPolicy, inputs: PolicyInputs, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of the actions (a scalar), and the states that tell where things are, (samples, hidden)."""
        states: list[Tensor] = []
        with policy.action_head.register_forward_pre_hook(lambda _, given: states.append(given[0])):
            error = (policy(inputs).normalized - target).abs()
        error[..., 6] *= 2  # its range is half that of the others
        return error.mean(), states[0].mean(1)


class Demonstrations:
    """All samples of the episode files, in memory, as far as a lesson needs them."""

    def __init__(self, folders: tuple[Path, ...], lesson: Lesson) -> None:
        self.folders, self.lesson = folders, lesson
        self.files: set[Path] = set()
        self.episodes: list[dict[str, np.ndarray]] = []

    def refresh(self) -> int:
        """Read files that have appeared (the first worker decides which); returns how many."""
        found = [sorted({file for folder in self.folders for file in folder.glob("*.npz")} - self.files)]
        if distributed.is_initialized():
            distributed.broadcast_object_list(found, src=0)
        new = found[0]
        for file in new:
            with np.load(file) as content:
                episode = {name: content[name] for name in content.files}
            if len(episode.get("chunk", ())):
                episode["task"] = np.full(len(episode["chunk"]), episode["task"])
                episode["chunk"] = episode["chunk"][:, : self.lesson.chunk]
                episode["images"] = episode["images"][:, : self.lesson.cameras].copy()
                self.episodes.append(episode)
            self.files.add(file)
        if new:
            names = ("images", "proprio", "bowl", "plate", "chunk", "task")
            self.samples = {name: np.concatenate([episode[name] for episode in self.episodes]) for name in names}
        return len(new)

    def __len__(self) -> int:
        return len(self.samples["task"])


def statistics(samples: dict[str, np.ndarray], episodes: int) -> dict[str, Any]:
    """Published form of ``dataset_statistics.json``: actions (gripper 1 = open) and robot state."""

    def part(values: np.ndarray) -> dict[str, list[float]]:
        rows = values.reshape(-1, values.shape[-1])
        numbers = {
            "mean": rows.mean(0),
            "std": rows.std(0),
            "min": rows.min(0),
            "max": rows.max(0),
            "q01": np.quantile(rows, 0.01, axis=0),
            "q99": np.quantile(rows, 0.99, axis=0),
        }
        return {name: [float(x) for x in row] for name, row in numbers.items()}

    action: dict[str, Any] = part(dataset_actions(samples["chunk"]))
    action["mask"] = [True] * 6 + [False]
    return {
        DATASET: {
            "action": action,
            "proprio": part(samples["proprio"]),
            "num_transitions": len(samples["task"]),
            "num_trajectories": episodes,
        }
    }


def dataset_actions(chunk: np.ndarray) -> np.ndarray:
    """Environment actions (gripper -1 open, +1 close) as the training data has them (1 open, 0 close)."""
    actions = chunk.astype(np.float32).copy()
    actions[..., 6] = (actions[..., 6] < 0).astype(np.float32)
    return actions


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Random 0.9-area crop (bilinear) and brightness, contrast and colour changes of (n, 3, h, w) images in [0, 1]."""
    count, _, height, width = images.shape
    offset = (torch.rand(count, 2, generator=rng) * 2 - 1) * (1 - CROP)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = CROP
    theta[:, :, 2] = offset
    grid = nn.functional.affine_grid(theta, [count, 3, height, width], align_corners=True)
    images = nn.functional.grid_sample(images, grid, align_corners=True)
    gain = 1 + 0.15 * (torch.rand(count, 1, 1, 1, generator=rng) * 2 - 1)
    colour = 1 + 0.06 * (torch.rand(count, 3, 1, 1, generator=rng) * 2 - 1)
    shift = 0.05 * (torch.rand(count, 1, 1, 1, generator=rng) * 2 - 1)
    return (images * gain * colour + shift).clamp(0, 1)


class Batches:
    """Shuffled, augmented batches as the policy takes them."""

    def __init__(self, policy: OpenVLAPolicy, lesson: Lesson, seed: int) -> None:
        self.policy, self.lesson = policy, lesson
        self.rng = torch.Generator().manual_seed(seed)
        processor = policy.processor
        assert processor is not None
        ids = [torch.tensor(processor.token_ids(task.instruction)) for task in LiberoSuite("libero_spatial").tasks]
        self.ids = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=policy.config.pad_token_id)
        self.mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        scaling = processor.scaling
        self.mean, self.std = (torch.tensor(rows).reshape(2, 3, 1, 1) for rows in (scaling.means, scaling.stds))

    def __call__(self, samples: dict[str, np.ndarray], rows: Tensor) -> tuple[PolicyInputs, Tensor, Tensor]:
        """Inputs, normalised target chunks, and the positions of the lesson."""
        picked = {name: values[rows.numpy()] for name, values in samples.items()}
        images = torch.from_numpy(picked["images"]).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        images = augment(images, self.rng)
        towers = (images[:, None] - self.mean) / self.std
        pixels = towers.reshape(len(rows), -1, *images.shape[-2:])
        task = torch.from_numpy(picked["task"])
        state = self.robot_state(picked["proprio"]) if self.policy.config.use_proprio else None
        inputs = PolicyInputs(self.ids[task], self.mask[task], pixels, state)
        target = normalize(torch.from_numpy(dataset_actions(picked["chunk"])), self.policy.bounds("action")).float()
        return inputs, target, self.lesson.places(picked)

    def robot_state(self, proprio: np.ndarray) -> Tensor:
        """Robot states with noise of a hundredth of their range."""
        state = torch.from_numpy(proprio).float()
        low, high = (torch.tensor(getattr(self.policy.bounds("proprio"), end)) for end in ("low", "high"))
        return state + 0.01 * (high - low) * torch.randn(state.shape, generator=self.rng)


def main(arguments: Arguments, lesson: Lesson | None = None) -> None:
    """Train until the time budget is spent."""
    with tempfile.TemporaryDirectory() as folder:
        given = (arguments, lesson or Lesson(), f"file://{folder}/meeting")
        multiprocessing.spawn(work, given, nprocs=arguments.workers)


def first_weights(policy: OpenVLAPolicy, start: str) -> None:
    """Take over what fits by name and shape from another policy; the rest stays random."""
    own = policy.state_dict()
    fitting = {
        name: value for name, value in load_policy(start, dtype=torch.float32).state_dict().items()
        if name in own and own[name].shape == value.shape
    }  # fmt: skip
    policy.load_state_dict(fitting, strict=False)


def work(rank: int, arguments: Arguments, lesson: Lesson, meeting: str) -> None:
    """One of the processes that train together."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=arguments.workers)
    console = Console(quiet=rank > 0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    state_file = arguments.out / "training.pt"
    saved = torch.load(state_file, weights_only=True) if state_file.exists() else None
    data = Demonstrations(arguments.demos, lesson)
    data.refresh()
    tokenizer, vocabulary = word_tokenizer()
    stats = saved["statistics"] if saved else statistics(data.samples, len(data.episodes))
    torch.manual_seed(arguments.seed)
    config = small_config(
        dino=(128, 4, 2), siglip=(128, 4, 2), hidden=192, layers=4, heads=4, ffn=512,
        vocabulary=vocabulary, norm_stats=stats, **lesson.fields,
    )  # fmt: skip
    policy = OpenVLAPolicy(config)
    if lesson.start is not None and saved is None:
        first_weights(policy, lesson.start)
    policy.processor = Processor(config, tokenizer)
    # Explicit attention: see the module's text. The saved policy works with any implementation.
    policy.language_model.set_attn_implementation("eager")
    where = nn.Linear(config.llm.hidden_size, lesson.places(data.samples).shape[1])
    average = copy.deepcopy(policy)
    parameters = [*policy.parameters(), *where.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.rate, betas=(0.9, 0.98), weight_decay=0.02)
    update, spent = 0, 0.0
    if saved:
        policy.load_state_dict(saved["policy"])
        average.load_state_dict(saved["average"])
        where.load_state_dict(saved["where"])
        optimizer.load_state_dict(saved["optimizer"])
        update, spent = saved["update"], saved["spent"]
    batches = Batches(policy, lesson, arguments.seed + update + 1_000_003 * rank)
    share = arguments.batch // arguments.workers
    shown = stored = tick = time.monotonic()
    losses: list[tuple[float, float]] = []
    while spent < arguments.minutes * 60:
        data.refresh()
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(update))[rank :: arguments.workers]
        for start in range(0, len(data) // arguments.workers - share + 1, share):
            progress = min(1.0, spent / (arguments.minutes * 60))
            warm = min(1.0, (update + 1) / 150)
            for group in optimizer.param_groups:
                group["lr"] = arguments.rate * warm * (0.5 + 0.5 * math.cos(math.pi * progress))
            inputs, target, places = batches(data.samples, order[start : start + share])
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                loss, states = lesson.answer(policy, inputs, target)
                guess = where(states)
            position = (guess.float() - places).abs().mean()
            (loss + arguments.auxiliary * (1 - progress) * position).backward()
            spent = synchronise(parameters, spent + time.monotonic() - tick, arguments.workers)
            tick = time.monotonic()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            update += 1
            keep = min(0.998, update / (update + 20))
            with torch.no_grad():
                for slow, fast in zip(average.parameters(), policy.parameters(), strict=True):
                    slow.lerp_(fast, 1 - keep)
            losses.append((float(loss.detach()), float(position.detach())))
            now = time.monotonic()
            if now - shown > 30:
                shown = now
                mean = np.mean(losses[-100:], axis=0)
                console.print(
                    f"{spent / 60:5.1f} min, update {update}, epoch of {len(data)} samples: "
                    f"loss {mean[0]:.4f}, position {mean[1] / 10:.4f} m",
                    highlight=False,
                )
            if rank == 0 and now - stored > 120:
                stored = now
                store(arguments.out, policy, average, where, optimizer, update, spent, stats, losses)
            if progress >= 1:
                break
    if rank == 0:
        store(arguments.out, policy, average, where, optimizer, update, spent, stats, losses)


def synchronise(parameters: list[nn.Parameter], spent: float, workers: int) -> float:
    """Average the gradients of all workers, and agree on the time that is spent."""
    used = [parameter for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([*(parameter.grad.flatten() for parameter in used), torch.tensor([spent])]) / workers
    distributed.all_reduce(flat)
    for parameter, gradient in zip(used, flat[:-1].split([p.numel() for p in used]), strict=True):
        parameter.grad = gradient.view_as(parameter)
    return float(flat[-1])


def store(
    out: Path, policy: OpenVLAPolicy, average: OpenVLAPolicy, where: nn.Module, optimizer: torch.optim.Optimizer,
    update: int, spent: float, stats: dict[str, Any], losses: list[tuple[float, float]],
) -> None:  # fmt: skip
    """Save the averaged policy in the published layout, and everything that training continues from."""
    average.processor = policy.processor
    save_policy(average, out / "checkpoint", step=0)
    state = {
        "policy": policy.state_dict(),
        "average": average.state_dict(),
        "where": where.state_dict(),
        "optimizer": optimizer.state_dict(),
        "update": update,
        "spent": spent,
        "statistics": stats,
    }
    torch.save(state, out / "training.tmp")
    (out / "training.tmp").replace(out / "training.pt")
    with (out / "losses.jsonl").open("a") as file:
        file.write(
            json.dumps({"update": update, "spent": spent, "loss": float(np.mean(losses[-100:], axis=0)[0])}) + "\n"
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
