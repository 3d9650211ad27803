"""`mist compact`: how do thousands of small files become a few large ones?"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Command:
    """Write recorded rollouts into few large files, for copying, archives and thousands of episodes.

    What comes out is read as before: RolloutStore.open(OUT), load_rollouts(OUT), and by datasets without this package
    (OUT/README.md says how). The new folder appears when all is written; the same command finishes an interrupted one.
    mist push does the same on the way, so this is not needed before it. Example:

    mist compact data/mini data/mini-packed
    """

    folder: tyro.conf.Positional[Path]
    """Folder of recorded rollouts; it stays as it is."""

    out: tyro.conf.Positional[Path]
    """Folder to write; it must not exist."""

    megabytes: int = 256
    """Size at which a file is full; an episode is never cut."""

    def run(self) -> int:
        """Compact, and say what came out."""
        from mist_interp.data.compaction import compact

        if self.megabytes < 1:
            raise ValueError(f"--megabytes {self.megabytes}: a file needs at least 1")
        store = compact(self.folder, self.out, pack_bytes=self.megabytes * 2**20, on_pack=_show)
        files = len(store.packs.packs) * len(store.manifest.kinds)
        print(f"{self.out}: {len(store)} episodes in {files} files")
        return 0


def _show(done: int, total: int) -> None:
    print(f"{done}/{total} packs", file=sys.stderr, flush=True)
