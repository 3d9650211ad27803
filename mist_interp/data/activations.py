"""How are the activations of more inputs than fit into memory kept, so that any analysis can read one layer of them?

    collect(vla, inputs, ("resid_post", [2, 5]), out="data/states", tokens="vision", pool="flat")
    states = ActivationSet.read(RolloutStore.open("data/states"), ("resid_post", 2), "vision", "flat")

Inputs come one after the other, from a list or from a generator that may be endless in memory terms; every `shard_size`
queries become files of the same store that rollouts have (`mist_interp.data.store`), and are forgotten. A killed run
loses the shard in flight, and the same command goes on: stored shards are compared with the inputs and not run again.

    with rich.progress.Progress() as bar:
        task = bar.add_task("queries")
        collect(..., on_progress=lambda now: bar.update(task, completed=now.queries, total=now.total))

Queries that were given and not run have no outcome: the store says so (`selection="inputs"`), and whatever counts
successes refuses it. To run episodes at the same time, use `collect_rollouts`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import SiteKey
from mist_interp.core.provenance import provenance
from mist_interp.data.capture import change_texts, pooled, token_groups
from mist_interp.data.manifest import INPUTS, Manifest, TokenGroup
from mist_interp.data.plan import policy_settings, resolve_policy
from mist_interp.data.records import EpisodeRecord, QueryRecord, Unit, episode_key
from mist_interp.data.store import RolloutStore

# One unit of inputs is either there or comes from a function that is only called if it is not stored yet.
Given = PolicyInputs | Callable[[], PolicyInputs]
SUITE = "inputs"
# Keys sort by number up to a thousand units of one task.
_SHARDS_PER_TASK = 1000


@dataclass(frozen=True)
class Progress:
    """State of a collection.

    Attributes:
        queries: that are stored by now.
        skipped: how many of them an earlier call had stored.
        total: of all queries; None where the inputs do not say.
        key: the shard or episode that was just finished; empty at the start.
    """

    queries: int = 0
    skipped: int = 0
    total: int | None = None
    key: str = ""


def collect(
    vla: Any,
    inputs: Iterable[PolicyInputs | tuple[Unit, Given]],
    sites: SiteKey | Sequence[SiteKey],
    out: str | Path,
    *,
    tokens: str | Sequence[str] = "action_read",
    pool: str = "mean",
    dtype: str = "float16",
    batch_size: int = 8,
    shard_size: int = 256,
    step: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RolloutStore:
    """Run the policy on all inputs and store what it holds at some sites, with its answers.

    Args:
        vla: the policy, or what `HookedVLA.from_pretrained` takes. Edits that are live apply and are recorded.
        inputs: batches of queries of any size, which are counted through and cut into shards; or pairs (unit, queries)
            with the queries of one episode, whose rows then know their start state. In a pair, a function may stand for
            the queries: it is called only if they are not stored yet.
        sites: what to keep, e.g. `("resid_post", [2, 5])`.
        out: folder of the store.
        tokens: one or several token selectors; each is kept on its own.
        pool: how the tokens of a selector become one row: `mean`, `first`, `last`, or all side by side (`flat`).
        dtype: `float16` or `float32`, as stored.
        batch_size: queries per forward.
        shard_size: queries per file; that many rows are in memory.
        step: run of the language model to read, see `HookedVLA.run_with_cache`.
        on_progress: called at the start and after each shard or episode.

    Returns:
        The store, with all that it has by now.

    Raises:
        UnknownName: a site, token group, pooling or dtype that there is not.
        ValueError: no inputs, other settings or other inputs than those the store was begun with, a unit twice, values
            that are not finite, `flat` rows of several widths.
        TypeError: inputs of the wrong kind, or batches and pairs mixed.
        OverflowError: a value does not fit float16. Nothing of its shard is stored.
    """
    if batch_size < 1 or shard_size < 1:
        raise ValueError(f"batch_size={batch_size}, shard_size={shard_size}; both must be at least 1")
    vla = resolve_policy(vla)
    groups = token_groups(vla, sites, tokens, pool, dtype)
    store = RolloutStore.create(out, Manifest(groups, policy_settings(vla) | {"step": step}, INPUTS))
    report, total = on_progress or (lambda _: None), _count(inputs)
    now, facts, seen = Progress(total=total), provenance(), set()
    report(now)
    for number, (unit, given) in enumerate(_units(inputs, shard_size)):
        key = episode_key(unit)
        if key in seen:
            raise ValueError(f"the unit {unit.key} is given twice; a unit is one episode")
        seen.add(key)
        count, skipped = _stored(store, key, given), True
        if count is None:
            batch, skipped = given() if callable(given) else given, False
            count = len(batch)
            store.append(_run(vla, unit, batch, groups, batch_size, step, number, facts))
        now = Progress(now.queries + count, now.skipped + count * skipped, total, key)
        report(now)
    if not seen:
        raise ValueError("there are no inputs: nothing was collected")
    return store


def _run(
    vla: Any,
    unit: Unit,
    batch: PolicyInputs,
    groups: Sequence[TokenGroup],
    batch_size: int,
    step: int | None,
    seed: int,
    facts: dict[str, str],
) -> EpisodeRecord:
    start = time.perf_counter()
    queries: list[QueryRecord] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)  # a diffusion head without given noise draws the same in a repeated run
        for first in range(0, len(batch), batch_size):
            queries += _queries(vla, batch[first : first + batch_size], groups, step, first)
    facts = facts | {"inputs": _digest(batch)}
    seconds = time.perf_counter() - start
    return EpisodeRecord(unit, "", False, 0, 0, tuple(queries), seconds=seconds, provenance=facts)


def _queries(
    vla: Any, batch: PolicyInputs, groups: Sequence[TokenGroup], step: int | None, first: int
) -> list[QueryRecord]:
    sites = sorted({site for group in groups for site in group.sites})
    only = groups[0].tokens if len(groups) == 1 else None
    start = time.perf_counter()
    chunk, cache = vla.run_with_cache(batch, names=sites, tokens=only, step=step)
    values = chunk.values.double().cpu().numpy()
    rows = {
        group.key(site): pooled(cache, site, group.tokens, group.pool).float().cpu().numpy()
        for group in groups
        for site in group.sites
    }
    seconds = (time.perf_counter() - start) / len(batch)
    return [
        QueryRecord(
            index=first + sample,
            step=0,
            chunk=values[sample],
            executed=np.zeros((0, values.shape[2])),
            robot_state=np.full(9, np.nan),
            activations={name: row[sample] for name, row in rows.items()},
            edits=change_texts(vla, sample),
            seconds_act=seconds,
        )
        for sample in range(len(batch))
    ]


def _units(inputs: Iterable[PolicyInputs | tuple[Unit, Given]], shard_size: int) -> Iterator[tuple[Unit, Given]]:
    """Episodes as they come; bare queries in shards of one size, whatever the batches that they came in."""
    waiting: list[PolicyInputs] = []
    number, pairs = 0, None
    for item in inputs:
        pair = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Unit)
        if not (pair or isinstance(item, PolicyInputs)) or pairs not in (None, pair):
            raise TypeError(f"inputs are all PolicyInputs, or all (Unit, PolicyInputs), not {type(item).__name__}")
        pairs = pair
        if isinstance(item, tuple):
            yield item
            continue
        waiting.append(item)
        while sum(map(len, waiting)) >= shard_size:
            joined = PolicyInputs.cat(waiting)
            yield _shard(number), joined[:shard_size]
            number, waiting = number + 1, [joined[shard_size:]] if len(joined) > shard_size else []
    if waiting:
        yield _shard(number), PolicyInputs.cat(waiting)


def _shard(number: int) -> Unit:
    return Unit(SUITE, number // _SHARDS_PER_TASK, number % _SHARDS_PER_TASK)


def _stored(store: RolloutStore, key: str, given: Given) -> int | None:
    """Queries of a shard that need not be run again; None if it must be run.

    A last shard that was not full is run again when more inputs have come.
    """
    if key not in store:
        return None
    row = store.row(key)
    count = int(row["n_queries"])
    if callable(given):
        return count
    same = len(given) >= count and _digest(given[:count]) == json.loads(row["provenance"])["inputs"]
    if not same:
        raise ValueError(
            f"{store.folder} holds {key} with other inputs; use the same inputs to go on, or another folder"
        )
    return count if len(given) == count else None


def _digest(batch: PolicyInputs) -> str:
    """Hash of the content of the queries, whatever their padding."""
    digest = hashlib.blake2b(digest_size=16)
    for sample in range(len(batch)):
        length = int(batch.attention_mask[sample].sum())
        parts = [batch.input_ids[sample, :length], batch.pixel_values[sample]]
        parts += [part[sample] for part in (batch.proprio, batch.noise) if part is not None]
        for part in parts:
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _count(inputs: Any) -> int | None:
    if not isinstance(inputs, Sized):
        return None
    batches = [item[1] if isinstance(item, tuple) else item for item in inputs]  # type: ignore[attr-defined]
    return sum(map(len, batches)) if all(isinstance(batch, PolicyInputs) for batch in batches) else None
