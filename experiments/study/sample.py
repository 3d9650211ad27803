"""The sample of the study that the package ships: few episodes of `mini`, the residual stream at the action tokens.

A start state of every task under every disturbance, packed; small enough to live in the repository, and enough for
tests and for a first look without running a simulator. No rate may be read off so few.

    python experiments/study/sample.py --rollouts runs/study/mini --out experiments/sample
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from mist_interp.data import RolloutStore, TokenGroup
from mist_interp.data.compaction import compact


@dataclass(frozen=True)
class Settings:
    """Make the sample."""

    rollouts: Path = Path("runs/study/mini")
    """Recorded rollouts."""

    out: Path = Path("experiments/sample")
    """Folder of the sample; what is there is replaced."""

    inits: tuple[int, ...] = (0,)
    """Start states of every task."""


def main(settings: Settings) -> None:
    """Copy, thin out, pack."""
    store = RolloutStore.open(settings.rollouts).where(inits=settings.inits)
    given = store.group("action_read")
    group = TokenGroup(given.tokens, tuple(site for site in given.sites if site.endswith("resid_post")), given.pool)
    with tempfile.TemporaryDirectory() as folder:
        thin = RolloutStore.create(folder, replace(store.manifest, groups=(group,)))
        for key in store.keys:
            episode = store.episode(key)
            wanted = {group.key(site) for site in group.sites}
            queries = (
                replace(query, activations={name: x for name, x in query.activations.items() if name in wanted})
                for query in episode.queries
            )
            thin.append(replace(episode, queries=tuple(queries)))
        shutil.rmtree(settings.out, ignore_errors=True)
        packed = compact(thin, settings.out)
    size = sum(file.stat().st_size for file in settings.out.rglob("*") if file.is_file())
    print(f"{settings.out}: {len(packed)} episodes, {len(packed.queries(['episode']))} queries, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
