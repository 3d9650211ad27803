"""How do many episodes lie in few files, and how are some of them read back?

    folder/
      packs.json                                  which episode lies in which pack, and the digest of its content
      activations/<group>/00000-<hash>.parquet    one pack: the same episodes in every table
      queries/00000-<hash>.parquet
      episodes/00000-<hash>.parquet

An episode is never cut by a file or by a row group, and a row group has about 300 rows, so one layer of one episode is
one column of one row group. A pack is never changed and its name says what it holds: a hash of the digests of its
episodes. `packs.json` is what makes them exist; a pack that it does not name is no part of the store. Episodes that lie
beside it in files of their own belong to the store too, and win over a pack that has one of the same key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

INDEX = "packs.json"
INDEX_VERSION = 1
PACK_NAME = re.compile(r"\d{5}-[0-9a-f]{16}")


@dataclass(frozen=True)
class Packed:
    """What is known of an episode without reading it.

    Attributes:
        digest: of the content of its tables.
        size: of its largest table, in bytes.
    """

    digest: str
    size: int


@dataclass(frozen=True)
class Pack:
    """Some episodes that share their files.

    Attributes:
        name: of its files, without the ending.
        episodes: key -> what is known of it, sorted by key.
    """

    name: str
    episodes: Mapping[str, Packed]


@dataclass(frozen=True)
class Packs:
    """All packs of a store; an episode lies in one of them at most."""

    packs: tuple[Pack, ...] = ()

    @cached_property
    def homes(self) -> dict[str, Pack]:
        """Key of an episode -> the pack that holds it."""
        return {key: pack for pack in self.packs for key in pack.episodes}

    def __getitem__(self, key: str) -> Packed:
        return self.homes[key].episodes[key]

    def to_json(self) -> str:
        """Content of `packs.json`."""
        packs = {pack.name: {key: [one.digest, one.size] for key, one in pack.episodes.items()} for pack in self.packs}
        return json.dumps({"version": INDEX_VERSION, "packs": packs}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Packs:
        """Inverse of `to_json`.

        Raises:
            ValueError: it was written by a version that this one does not know.
        """
        content = json.loads(text)
        if content["version"] != INDEX_VERSION:
            raise ValueError(f"{INDEX} has version {content['version']}; this package reads {INDEX_VERSION}")
        return cls(
            tuple(
                Pack(name, {key: Packed(*values) for key, values in episodes.items()})
                for name, episodes in content["packs"].items()
            )
        )

    @classmethod
    def read(cls, folder: Path) -> Packs:
        """The packs of a folder; none where there is no index."""
        path = folder / INDEX
        return cls.from_json(path.read_text()) if path.is_file() else cls()


def single_keys(folder: Path) -> set[str]:
    """Keys of the episodes of a folder that have files of their own."""
    names = {path.stem for path in (folder / "episodes").glob("*.parquet")}
    return {name for name in names if not PACK_NAME.fullmatch(name)}


def read_rows(
    folder: Path, kind: str, keys: Sequence[str], packs: Packs, columns: Iterable[str] | None = None
) -> pa.Table:
    """Rows of episodes, sorted by episode, within one as they were stored.

    Args:
        folder: of the store.
        kind: which table: `episodes`, `queries` or `activations/<group>`.
        keys: of the episodes, at least one.
        packs: of the store.
        columns: read only these.
    """
    names = None if columns is None else list(columns)
    single = set(keys)
    if packs.packs:
        single -= packs.homes.keys() - single_keys(folder)
    files = [str(folder / kind / f"{key}.parquet") for key in keys if key in single]
    if len(single) == len(keys):
        return pads.dataset(files, format="parquet").to_table(columns=names)
    wanted = None if names is None else [*names, *({"episode"} - set(names))]
    tables = [pads.dataset(files, format="parquet").to_table(columns=wanted)] if files else []
    for pack in packs.packs:
        chosen = sorted(pack.episodes.keys() & (set(keys) - single))
        if chosen:
            rows = None if len(chosen) == len(pack.episodes) else _among(chosen)
            data = pads.dataset(str(folder / kind / f"{pack.name}.parquet"), format="parquet")
            tables.append(data.to_table(columns=wanted, filter=rows))
    table = sorted_by_episode(pa.concat_tables(tables))
    return table if names is None else table.select(names)


def sorted_by_episode(table: pa.Table) -> pa.Table:
    """The rows sorted by episode, without a copy; rows of one episode lie together and keep their order."""
    keys = table["episode"].combine_chunks().dictionary_encode()
    codes = keys.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    lengths = np.diff(starts, append=len(codes))
    runs = [keys.dictionary[int(code)].as_py() for code in codes[starts]]
    if runs == sorted(runs):
        return table
    order = sorted(range(len(runs)), key=runs.__getitem__)
    return pa.concat_tables([table.slice(int(starts[run]), int(lengths[run])) for run in order])


def _among(keys: Sequence[str]) -> pads.Expression:
    """Rows of these episodes (sorted); the bounds let row groups be left out by their statistics."""
    episode = pads.field("episode")
    return (episode >= keys[0]) & (episode <= keys[-1]) & episode.isin(list(keys))
