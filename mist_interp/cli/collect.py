"""`mist collect`: what does a policy hold in its layers while it acts?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mist_interp.cli.eval import parse_numbers
from mist_interp.cli.policy_options import PolicyOptions

if TYPE_CHECKING:
    from mist_interp.data.attempts import Quota


@dataclass(frozen=True, kw_only=True)
class Command(PolicyOptions):
    """Run a policy in LIBERO and store every episode: outcome, contacts, actions, poses, and activations per query.

    Forbidden contacts are in the column contacts, allowed ones (fingers on what they grasp, ...) in touches.
    The same command goes on where it was cut; several processes (--workers) or machines (--shard) may fill one folder.
    What comes out is read with RolloutStore.open(OUT).load(("resid_post", 3)), counted with mist label OUT, and shared
    with mist push. Examples:

    mist collect --out data/mini

    mist collect --out data/layers --sites resid_post:2,5 mlp_out:-1 --tokens action_read vision --inits 0-49 -j 4

    mist collect --out data/balanced --successes 20 --failures 20 --max-attempts 200 (20 of each outcome per task; such
    a set may train probes, but no success rate may be computed from it)

    mist collect --out data/oft --model moojink/openvla-7b-oft-finetuned-libero-spatial --device cuda --profile faithful
    """

    out: Path
    """Folder of the store. Episodes that are there already are not run again; other settings need another folder."""

    suite: str = "libero_spatial"
    """LIBERO suite: libero_spatial, libero_object, libero_goal, libero_10 or libero_90."""

    tasks: str = "all"
    """Tasks of the suite: "all", or indices such as 0-4,7."""

    inits: str | None = None
    """Initial states of every task: "all", or numbers such as 0-49 or 3,5; from 1000 on fresh ones are drawn. Default:
    0-9, with quotas all."""

    sites: tuple[str, ...] = ("resid_post",)
    """What is kept: a name for all its layers, NAME:LAYERS such as resid_post:0-3,-1, or a full name such as
    blocks.3.hook_resid_post. mist describe lists them."""

    tokens: tuple[str, ...] = ("action_read",)
    """Token groups, each kept on its own: action_read, vision, text, proprio, action_read.dz, ..."""

    pool: Literal["mean", "first", "last", "flat"] = "mean"
    """How the tokens of a group become one vector; "flat" keeps them side by side."""

    successes: int | None = None
    """Keep this many successful episodes of each task, and store no further one."""

    failures: int | None = None
    """Keep this many failed episodes of each task. With only one of the two, the other is 0."""

    max_attempts: int | None = None
    """With quotas: attempts per task at most; default: all initial states."""

    order_seed: int = 0
    """With quotas: seed of the order in which the initial states are tried."""

    profile: Literal["fast", "faithful"] = "fast"
    """Rendering: "faithful" is pixel-equal to LIBERO's own observation; "fast" is for policies trained on it."""

    resolution: int = 256
    """Side of the camera images in pixels."""

    max_steps: int | None = None
    """Step limit of an episode; default: the suite's (220 for libero_spatial)."""

    open_loop_steps: int | None = None
    """Actions executed per query; default: the whole chunk."""

    seeds: str = "0"
    """Simulator seeds; each adds further units."""

    policy_seeds: str = "0"
    """Seeds of the policy's noise (diffusion heads); each adds further units."""

    perturbations: tuple[str, ...] = ("none",)
    """What disturbs the robot: none, noise0.5 (correlated noise on every action), bias0.3 (a constant offset), push1 (a
    bump), or several such as noise0.3+push1; each adds further units. A size of 1 is 0.05 m or 0.1 rad per step."""

    videos: Literal["none", "failures", "sample", "all"] = "none"
    """Films of what the policy saw, one frame per query, both cameras: OUT/videos/TASK/EPISODE.mp4; "sample" films
    about one episode in ten."""

    shard: str | None = None
    """Run part i of n, written i/n with i from 0, such as 0/4; all parts share the folder."""

    workers: Annotated[int, tyro.conf.arg(aliases=("-j",))] = 1
    """Processes on this machine; each loads its own policy. With quotas, no more than there are tasks."""

    def run(self) -> int:
        """Collect, and print a table; 1 when episodes are missing because they crashed."""
        if self.shard is not None and self.workers > 1:
            raise ValueError("--shard is for several machines and --workers for one: give one of them")
        policy = self.policy()  # before the imports that take seconds
        from mist_interp.cli.collect_display import CollectDisplay, print_store
        from mist_interp.data.collect import collect_rollouts
        from mist_interp.data.plan import Protocol

        with CollectDisplay() as display:
            store = collect_rollouts(
                policy,
                self.suite,
                out=self.out,
                sites=[parse_site(text) for text in self.sites],
                tokens=self.tokens,
                pool=self.pool,
                tasks=self.tasks if self.tasks == "all" else parse_numbers(self.tasks),
                inits=self.inits if self.inits in (None, "all") else parse_numbers(self.inits or ""),
                simulator_seeds=parse_numbers(self.seeds),
                policy_seeds=parse_numbers(self.policy_seeds),
                perturbations=self.perturbations,
                quota=self.quota(),
                protocol=Protocol(self.profile, self.resolution, self.max_steps, self.open_loop_steps),
                videos=self.videos,
                shard=self.shard,
                workers=self.workers,
                on_progress=display.show,
            )
        print_store(store)
        if display.missing:
            errors = self.out / "errors.jsonl"
            print(f"{display.missing} episodes are missing: some crashed ({errors}); the same command tries again")
        return 1 if display.missing else 0

    def quota(self) -> Quota | None:
        """The quotas that are asked for; None when there are none.

        Raises:
            ValueError: attempts are limited and there are no quotas.
        """
        from mist_interp.data.attempts import Quota

        if self.successes is None and self.failures is None:
            if self.max_attempts is not None:
                raise ValueError("--max-attempts belongs to --successes and --failures; without them, give --inits")
            return None
        return Quota(self.successes or 0, self.failures or 0, self.max_attempts, self.order_seed)


def parse_site(text: str) -> str | tuple[str, list[int]]:
    """`resid_post:0-2,-1` -> ("resid_post", [0, 1, 2, -1]); a text without layers stays as it is.

    Raises:
        ValueError: the layers are not a list of numbers.
    """
    name, colon, layers = text.partition(":")
    if not colon:
        return text
    numbers: list[int] = []
    for part in layers.split(","):
        numbers += [int(part)] if re.fullmatch(r"-\d+", part) else parse_numbers(part)
    return name, numbers
