"""How are rollouts of a policy recorded together with what it was thinking?

    store = collect_rollouts("mini", "libero_spatial", out="data/mini", sites=["resid_post"], inits=range(10, 20))
    x, rows = store.load(("resid_post", 3))

One pass over the units task by task. The same call goes on where the last one ended: what is stored is not run
again. An episode that crashes is noted in `errors.jsonl` and tried again by the next call. With `quota`, episodes are
kept by outcome (`mist_interp.data.attempts`): good for fitting probes, useless for success rates.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mist_interp.core.files import append_json_line
from mist_interp.core.names import SiteKey
from mist_interp.core.provenance import provenance
from mist_interp.data.attempts import Attempts, Progress, Quota, quota_settings, write_counts
from mist_interp.data.capture import caching_act, token_groups
from mist_interp.data.collect_workers import run_in_processes
from mist_interp.data.manifest import BALANCED, IID, Manifest, TokenGroup
from mist_interp.data.perturbation import NONE
from mist_interp.data.plan import Protocol, check_workers, plan_units, resolve_suite, run_settings
from mist_interp.data.policy_source import named_policy, resolve_policy
from mist_interp.data.records import EpisodeRecord, Unit, episode_key
from mist_interp.data.rollout import rollout
from mist_interp.data.store import RolloutStore
from mist_interp.data.video import QUERIES_PER_SECOND, Film, check_videos, is_filmed, write_video

log = logging.getLogger(__name__)

MakeEnv = Callable[[Any, Protocol, int], Any]
DEFAULT_PROTOCOL = Protocol()
# A run whose every episode crashes has a cause that no further episode will cure.
MAX_ERRORS_IN_A_ROW = 3


def make_libero_env(task: Any, protocol: Protocol, seed: int) -> Any:
    """The LIBERO environment of a task."""
    from mist_interp.libero.env import LiberoEnv

    return LiberoEnv(task, profile=protocol.profile, resolution=protocol.resolution, seed=seed)


def collect_rollouts(
    vla: Any,
    suite: Any,
    *,
    out: str | Path,
    sites: SiteKey | Sequence[SiteKey] = "resid_post",
    tokens: str | Sequence[str] = "action_read",
    pool: str = "mean",
    tasks: Sequence[int] | str = "all",
    inits: Sequence[int] | str | None = None,
    simulator_seeds: Sequence[int] = (0,),
    policy_seeds: Sequence[int] = (0,),
    perturbations: Sequence[str] = (NONE,),
    quota: Quota | None = None,
    protocol: Protocol = DEFAULT_PROTOCOL,
    videos: str = "none",
    shard: str | None = None,
    workers: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
    make_env: MakeEnv = make_libero_env,
) -> RolloutStore:
    """Run the policy on all units and store every episode with its activations.

    Args:
        vla: the policy, or its name, folder or `PolicySource` (device, dtype, ...); `workers` > 1 need one of these.
        suite: a `LiberoSuite` or its name.
        out: folder of the store.
        sites: what to keep, e.g. `"resid_post"` for the residual stream of all layers.
        tokens: one or several token selectors; each is kept on its own.
        pool: how the tokens of a selector become one vector: `mean`, `first`, `last` or `flat`.
        tasks: task indices, or `all`.
        inits: start states of each task, or `all`; None takes the first ten, or all where there is a quota.
        simulator_seeds: seeds of the simulator; each makes further units.
        policy_seeds: seeds of what the policy draws (diffusion heads); each makes further units.
        perturbations: what disturbs the robot, see `mist_interp.data.perturbation`; each makes further units.
        quota: keep so many successes and failures of each task, and run no more than it needs; None keeps all.
        protocol: render profile, step limit and the like.
        videos: of which episodes to keep what the policy saw, as mp4 with one frame per query (`RolloutStore.video`):
            `none`, `failures`, `sample` (about one in ten, chosen by key) or `all`. Stored episodes get none later.
        shard: `i/n`: this process runs the i-th of n parts of the units (of the tasks, where there is a quota); all
            parts share the folder.
        workers: processes; each loads its own policy. With a quota, no more than there are tasks.
        on_progress: called at the start and after each episode.
        make_env: builds the environment of a task.

    Returns:
        The store, with all episodes that it has by now.

    Raises:
        ValueError: `out` holds rollouts with other settings, or a start state or number of workers does not exist.
        UnknownName: a site, token group, task, pooling or choice of videos that there is not.
        OverflowError: an activation does not fit float16.
        RuntimeError: three episodes crashed one after the other, or a worker died.
    """
    check_workers(workers)
    check_videos(videos)
    vla = named_policy(vla)
    suite = resolve_suite(suite)
    inits = (tuple(range(10)) if quota is None else "all") if inits is None else inits
    units = plan_units(suite, tasks, inits, simulator_seeds, policy_seeds, perturbations)
    report = on_progress or (lambda _: None)
    if workers > 1:
        settings: dict[str, Any] = {"sites": sites, "tokens": tokens, "pool": pool, "tasks": tasks, "inits": inits}
        settings |= {"simulator_seeds": simulator_seeds, "policy_seeds": policy_seeds}
        settings |= {"protocol": protocol, "make_env": make_env, "out": out}
        settings |= {"perturbations": perturbations, "quota": quota, "videos": videos}
        return run_in_processes(vla, suite, units, settings, workers, report)
    policy = resolve_policy(vla, suite.name)
    groups = token_groups(policy, sites, tokens, pool)
    common = run_settings(policy, suite, protocol)
    if quota is not None:
        common |= quota_settings(
            quota, perturbations, inits=inits, simulator_seeds=simulator_seeds, policy_seeds=policy_seeds
        )
    store = RolloutStore.create(out, Manifest(groups, common, IID if quota is None else BALANCED))
    attempts = Attempts.plan(store, units, quota, shard)
    report(attempts.progress())
    facts = provenance()
    env: Any = None
    place: tuple[int, int] | None = None
    errors = 0
    try:
        for unit in attempts:
            task = suite.tasks[unit.task]
            try:
                if place != (unit.task, unit.simulator_seed):
                    _close(env)
                    env = None
                    env = make_env(task, protocol, unit.simulator_seed)
                    place = (unit.task, unit.simulator_seed)
                film = Film() if is_filmed(videos, episode_key(unit)) else None
                episode = _run(policy, env, unit, task.instruction, groups, suite, protocol, facts, film)
            except Exception as error:
                _close(env)  # whatever state it was left in
                env, place, errors = None, None, errors + 1
                log.warning("%s failed: %s", unit.key, error)
                row = {"unit": unit.key, "error": f"{type(error).__name__}: {error}"}
                append_json_line(Path(out) / "errors.jsonl", row | {"traceback": traceback.format_exc()})
                if errors == MAX_ERRORS_IN_A_ROW:
                    raise RuntimeError(
                        f"{errors} episodes failed one after the other, the last with {row['error']}; tracebacks are "
                        f"in {Path(out) / 'errors.jsonl'}, and the same call tries them again"
                    ) from error
                continue
            errors = 0
            if film is not None and is_filmed(videos, episode.key, episode.success) and attempts.keeps(episode):
                write_video(store.video(episode.key), film.frames, QUERIES_PER_SECOND)  # before the episode exists
            attempts.record(episode)
            report(attempts.progress(episode))
    finally:
        _close(env)
        if quota is not None:
            store = write_counts(store)
    return store


def _run(
    vla: Any,
    env: Any,
    unit: Unit,
    instruction: str,
    groups: Sequence[TokenGroup],
    suite: Any,
    protocol: Protocol,
    facts: dict[str, str],
    film: Film | None,
) -> EpisodeRecord:
    act = caching_act(vla, instruction, groups)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(unit.policy_seed)
        return rollout(
            env,
            act if film is None else film.watching(act),
            unit=unit,
            instruction=instruction,
            max_steps=protocol.step_limit(suite),
            open_loop_steps=protocol.open_loop_steps,
            provenance=facts,
        )


def _close(env: Any) -> None:
    if env is not None:
        env.close()
