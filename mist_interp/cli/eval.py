"""`mist eval`: does an intervention help, unit by unit?"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mist_interp.cli.policy_options import PolicyOptions


@dataclass(frozen=True, kw_only=True)
class Command(PolicyOptions):
    """Run a policy under several interventions ("arms") on the same LIBERO episodes.

    The same command goes on where it was cut; a crashed episode becomes an error row. Examples:

    mist eval --out results/base

    mist eval --out results/steer --arms none steer:direction=runs/direction,coef=2
    random-direction:direction=runs/direction,coef=2 --detector runs/probe --threshold 0.6

    mist eval --out results/try --limit 2 --max-steps 40 (a smoke run, marked partial)

    mist eval --out results/oft --model moojink/openvla-7b-oft-finetuned-libero-spatial --device cuda --profile faithful
    """

    out: Path
    """Results folder. An existing run there is continued if the settings are the same."""

    suite: str = "libero_spatial"
    """LIBERO suite: libero_spatial, libero_object, libero_goal, libero_10 or libero_90."""

    tasks: str = "all"
    """Tasks of the suite: "all", or indices such as 0-4,7."""

    inits: str = "0-9"
    """Initial states of every task, such as 0-49 or 3,5; from 1000 on fresh ones are drawn as LIBERO drew its 50."""

    arms: tuple[str, ...] = ("none",)
    """Interventions, each kind or kind:key=value,key=value, or a YAML file with a list of them: none, safe-stop,
    generic-slow:factor=F, failsafe-style, mist:layer=L,size=S,steps=0+1, action-correction, random-direction, noise,
    reversed, wrong-dimension, sham-triggers:arm=mist,of=RUN (at random queries; at those of another arm with arm=noise,
    of=RUN,like=mist,exact=yes), learned:probe=FOLDER,mode=clamp (safe=FOLDER,mode=replace),
    concept-neurons:neurons=2.17+3.40,value=V, steer:direction=FOLDER,coef=C; mist:wanted=shift,size=1,shift=dx:0.3
    always moves alike; chosen (in a file: among, a list of arms with benefit: FOLDER each) lets the most promising act.
    Most take when=always|fired|triggered; all but none name=NAME."""

    detector: Path | None = None
    """Folder of a fitted probe, or a YAML file of a gate (risk, alarm or limit, release, budgets). Its score is logged
    at every query of every arm, and its first crossing of the threshold is the trigger."""

    threshold: float = math.inf
    """The detector fires at scores above this."""

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
    """What disturbs the robot: none, noise0.5, bias0.3, push1, or several such as noise0.3+push1; each adds units."""

    videos: Literal["none", "sample", "failures", "all"] = "sample"
    """"sample" films a few pairs whose outcome differs between arms, after the run, from their stored actions."""

    limit: int | None = None
    """Run only the first LIMIT units (with all arms); the result is marked partial."""

    shard: str | None = None
    """Run part i of n, written i/n with i from 0, such as 0/4; all parts share the folder."""

    workers: Annotated[int, tyro.conf.arg(aliases=("-j",))] = 1
    """Processes on this machine; each loads its own policy."""

    retry_errors: bool = False
    """Run episodes again whose row is an error."""

    full_horizon: bool = False
    """After an early end hold the pose up to the step limit and count contacts there too: equal exposure for all arms.
    Costs up to half of what the episodes cost."""

    fork: bool = True
    """Begin arms that wait for the trigger at the trigger of none; --no-fork runs every episode from its start."""

    dry_run: bool = False
    """Print what would be run, and write nothing."""

    report: bool = True
    """Write report.html at the end."""

    def run(self) -> int:
        """Run and print; 1 when there are error rows."""
        policy = self.policy()  # before the imports that take seconds
        from mist_interp.cli.compare import twin_lines
        from mist_interp.cli.progress import ProgressDisplay, print_summary
        from mist_interp.evaluation import Detector, Protocol, evaluate
        from mist_interp.evaluation.arm_texts import parse_arms
        from mist_interp.evaluation.detector import ProbeScore
        from mist_interp.evaluation.gate_files import read_gate
        from mist_interp.probing import Probe

        detector: Any = None  # a Detector, or a Gate in its place
        if self.detector is not None and self.detector.suffix in (".yaml", ".yml"):
            detector = read_gate(self.detector)
        elif self.detector is not None:
            detector = Detector(ProbeScore(Probe.load(self.detector)), self.threshold, self.detector.name)
        arms = parse_arms(self.arms)
        with ProgressDisplay() as display:
            result = evaluate(
                policy,
                self.suite,
                arms,
                out=self.out,
                tasks=self.tasks if self.tasks == "all" else parse_numbers(self.tasks),
                inits=parse_numbers(self.inits),
                simulator_seeds=parse_numbers(self.seeds),
                policy_seeds=parse_numbers(self.policy_seeds),
                perturbations=self.perturbations,
                protocol=Protocol(self.profile, self.resolution, self.max_steps, self.open_loop_steps),
                detector=detector,
                videos=self.videos,
                limit=self.limit,
                shard=self.shard,
                workers=self.workers,
                retry_errors=self.retry_errors,
                fork=self.fork,
                full_horizon=self.full_horizon,
                dry_run=self.dry_run,
                on_progress=display.show,
            )
        if self.dry_run:
            print(f"{result.to_run} of {result.planned} planned episodes would be run: {len(arms)} arms, {self.suite}")
            return 0
        if self.shard and not (self.out / "summary.json").exists():  # other shards are not done
            rows = result.episodes()
            print(
                f"{len(rows)} of {result.planned} episodes of the plan are there; mist compare {self.out} sums them up"
            )
            return 1 if len(rows) and (rows["status"] == "error").any() else 0
        summary = result.summary()
        print_summary(summary)
        if summary["twins"] and summary["twins"]["arms"]:
            print("\n".join(twin_lines(summary)))
        if self.report:
            from mist_interp.report.page import write_report

            print(f"report: {write_report(self.out)}")
        return 1 if summary["episodes"]["errors"] else 0


def parse_numbers(text: str) -> tuple[int, ...]:
    """`0-3,7` -> (0, 1, 2, 3, 7).

    Raises:
        ValueError: it is not such a list.
    """
    numbers: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match:
            raise ValueError(f"{text!r} is not a list of numbers such as 0-3,7")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(numbers)
