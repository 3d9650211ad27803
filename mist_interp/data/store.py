"""Where do the episodes of a policy live on disk, and how is one layer of all of them read?

    folder/
      manifest.json                    settings, token groups, column -> site, schema version
      queries/<episode>.parquet        one row per policy query
      activations/<group>/<episode>.parquet   one column per site, float16 (or float32)
      episodes/<episode>.parquet       one row; written last, so an episode exists exactly when this file does
      audit.jsonl                      findings of a knockout audit of these episodes, where there was one
      videos/<task>/<episode>.mp4      what the policy saw, where that was asked for

Every file is replaced atomically: a killed process loses at most the episode in flight, several processes may append
different episodes to one folder, and the same command goes on where the last one stopped. Files of an unfinished
episode are overwritten by the next attempt and never read. Episodes of a published store share larger files, see
`mist_interp.data.packs`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from mist_interp.core.errors import UnknownName
from mist_interp.core.files import write_atomic
from mist_interp.core.names import SiteKey
from mist_interp.data.findings import AUDIT
from mist_interp.data.manifest import CHOSEN, IID, INPUTS, NO_RATES, Manifest, TokenGroup, differences
from mist_interp.data.packs import Packs, read_rows, single_keys
from mist_interp.data.records import Array, EpisodeRecord, Unit
from mist_interp.data.tables import activation_table, column_matrix, episode_table, query_table, read_episode


@dataclass(frozen=True)
class RolloutStore:
    """Episodes in a folder, or some of them.

    Attributes:
        folder: where they are.
        manifest: what they have in common.
        kept: keys of the episodes that this view shows; None shows all, including those that are still to come.
        packs: files that hold many episodes.
    """

    folder: Path
    manifest: Manifest
    kept: tuple[str, ...] | None = None
    packs: Packs = field(default_factory=Packs)

    @classmethod
    def open(cls, folder: str | Path) -> RolloutStore:
        """Open an existing store.

        Raises:
            FileNotFoundError: there is no store in this folder.
        """
        path = Path(folder) / "manifest.json"
        if not path.is_file():
            raise FileNotFoundError(f"no rollouts in {Path(folder)}: manifest.json is missing")
        return cls(Path(folder), Manifest.from_json(path.read_text()), packs=Packs.read(Path(folder)))

    @classmethod
    def create(cls, folder: str | Path, manifest: Manifest) -> RolloutStore:
        """Open the store in `folder`, or begin one.

        Raises:
            ValueError: the folder holds rollouts of another layout, or made with other settings; the message names the
                fields.
        """
        folder = Path(folder)
        path = folder / "manifest.json"
        if path.is_file():
            store = cls.open(folder)
            if store.manifest.version != manifest.version:
                raise ValueError(
                    f"{folder} holds rollouts of layout {store.manifest.version}, and these would be of layout "
                    f"{manifest.version}. Use another folder; mist_interp.data.replay.upgrade replays rollouts of "
                    f"LIBERO into the present layout (mist label {folder} --upgrade OUT)"
                )
            old, new = (replace(one, counts={}).to_json() for one in (store.manifest, manifest))
            differing = differences(json.loads(old), json.loads(new))
            if differing:
                raise ValueError(
                    f"{folder} holds rollouts with other settings: {'; '.join(differing)}. "
                    "Use the same settings to continue, or another folder"
                )
            return store
        write_atomic(path, manifest.to_json())
        return cls(folder, manifest)

    # -- writing

    def append(self, episode: EpisodeRecord) -> None:
        """Store a finished episode; one with the same key is replaced.

        Raises:
            OverflowError: an activation does not fit float16.
            KeyError, ValueError: an activation is missing, not finite, or of changing width. Nothing is stored then.
        """
        if self.kept is not None:
            raise ValueError("this is a view of some episodes; append to the whole store")
        tables = {
            self.folder / "activations" / group.name: activation_table(
                episode, {site: group.key(site) for site in group.sites}, group.dtype
            )
            for group in self.manifest.groups
        }
        tables[self.folder / "queries"] = query_table(episode)
        tables[self.folder / "episodes"] = episode_table(episode)
        for folder, table in tables.items():  # the episodes table comes last: it is what makes the episode exist
            _write(folder / f"{episode.key}.parquet", table)

    # -- reading

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the episodes, sorted."""
        if self.kept is not None:
            return self.kept
        return tuple(sorted(single_keys(self.folder) | self.packs.homes.keys()))

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: str) -> bool:
        if self.kept is not None:
            return key in self.kept
        return key in self.packs.homes or (self.folder / "episodes" / f"{key}.parquet").is_file()

    def only(self, keys: Iterable[str]) -> RolloutStore:
        """The same store, restricted to some episodes.

        Why these is not known here, and it may be their outcome. So the selection of the view is `chosen` where it was
        `iid`, unless it has all episodes; `where` keeps it.

        Raises:
            UnknownName: one of them is not here.
        """
        chosen = tuple(sorted(set(keys)))
        here = set(self.keys)
        for key in chosen:
            if key not in here:
                raise UnknownName("episode", key, self.keys)
        if self.manifest.selection != IID or len(chosen) == len(here):
            return replace(self, kept=chosen)
        return replace(self, kept=chosen, manifest=replace(self.manifest, selection=CHOSEN))

    def where(
        self,
        *,
        tasks: Iterable[int] | None = None,
        inits: Iterable[int] | None = None,
        perturbations: Iterable[str] | None = None,
        simulator_seeds: Iterable[int] | None = None,
        policy_seeds: Iterable[int] | None = None,
        units: Iterable[Unit] | None = None,
    ) -> RolloutStore:
        """The same store, restricted by what was run; how its episodes were selected stays as it is.

        Whoever picks start states because of how they ended has picked episodes by outcome: use `only`, which says so.

        Args:
            tasks: keep these; None keeps all.
            inits: keep these start states.
            perturbations: keep these.
            simulator_seeds: keep these.
            policy_seeds: keep these.
            units: keep these, where the other arguments do not suffice; a list of single units may have been picked by
                how they ended, so the selection is then that of `only`.

        Raises:
            UnknownName: no episode has this value.
            ValueError: there is no episode at all.
        """
        fields = list(Unit.__dataclass_fields__)
        rows = self.episodes(["episode", *fields])
        asked: dict[str, Iterable[Any] | None] = {"task": tasks, "init_state": inits, "perturbation": perturbations}
        asked |= {"simulator_seed": simulator_seeds, "policy_seed": policy_seeds}
        if units is not None:
            rows["unit"] = [Unit(*row).key for row in rows[fields].itertuples(index=False)]
            asked["unit"] = [unit.key for unit in units]
        kept = pd.Series(True, index=rows.index)
        for name, values in asked.items():
            if values is None:
                continue
            wanted, here = list(values), set(rows[name])
            for value in wanted:
                if value not in here:
                    raise UnknownName(name.replace("_", " "), value, map(str, sorted(here)))
            kept &= rows[name].isin(wanted)
        chosen = tuple(rows.loc[kept, "episode"])
        return replace(self, kept=chosen) if units is None else self.only(chosen)

    def episodes(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per episode, sorted by key; `contacts` and `touches` hold lists of dictionaries.

        How the episodes were selected is in `attrs` and, unless `columns` are given, a column, so that frames of
        several stores that are put together still know it; `check_rates` asks for it.

        Args:
            columns: read only these.
        """
        frame = self._read("episodes", columns).to_pandas()
        frame.attrs["selection"] = self.manifest.selection
        return frame if columns is not None else frame.assign(selection=self.manifest.selection)

    def check_rates(self) -> None:
        """Refuse a store from which no success rate may be computed.

        Raises:
            ValueError: its episodes were selected by outcome, or perhaps were, or have none.
        """
        if self.manifest.selection in NO_RATES:
            raise ValueError(f"{self.folder}: {NO_RATES[self.manifest.selection]}")

    def check_outcomes(self) -> None:
        """Refuse a store whose queries were given and not run.

        Raises:
            ValueError: it is one.
        """
        if self.manifest.selection == INPUTS:
            raise ValueError(f"{self.folder} holds queries that were given and not run: they have no outcome")

    def row(self, key: str) -> dict[str, Any]:
        """One row of `episodes`, without looking at the others."""
        row: dict[str, Any] = read_rows(self.folder, "episodes", [key], self.packs).to_pylist()[0]
        return row

    def queries(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per policy query, in the order of `load`.

        Args:
            columns: read only these.
        """
        return self._read("queries", columns).to_pandas()

    def load(
        self, site: SiteKey, tokens: str = "action_read", pool: str = "mean"
    ) -> tuple[Float[Array, "queries width"], pd.DataFrame]:
        """One site of all queries.

        Args:
            site: `("resid_post", 3)`, `"blocks.3.hook_resid_post"`, ...; negative layers count from the last stored.
            tokens: token selector under which the activations were kept.
            pool: how they were pooled.

        Returns:
            X as float32, and the rows that X belongs to, with the columns `episode` and `query`, in the order of
            `queries`.

        Raises:
            UnknownName: the store has no such site, token group or pooling.
        """
        group = self.group(tokens, pool)
        column = group.one(site).name
        table = self._read(f"activations/{group.name}", ["episode", "query", column])
        found = column_matrix(table[column]), table.select(["episode", "query"]).to_pandas()
        del table
        pa.default_memory_pool().release_unused()  # it would keep half of the matrix, for every later reading
        return found

    def group(self, tokens: str, pool: str = "mean") -> TokenGroup:
        """The token group with this selector and pooling.

        Raises:
            UnknownName: there is none.
        """
        for group in self.manifest.groups:
            if (group.tokens, group.pool) == (tokens, pool):
                return group
        raise UnknownName("token group", f"{tokens}:{pool}", [f"{g.tokens}:{g.pool}" for g in self.manifest.groups])

    def episode(self, key: str) -> EpisodeRecord:
        """One episode as a record, activations included (in the precision in which they are stored).

        Raises:
            UnknownName: there is no such episode.
        """
        if key not in self:
            raise UnknownName("episode", key, self.keys)
        one = replace(self, kept=(key,))
        activations: dict[str, Array] = {}
        for group in self.manifest.groups:
            table = one._read(f"activations/{group.name}")
            activations |= {group.key(site): column_matrix(table[site]) for site in group.sites}
        return read_episode(one._read("episodes").to_pylist()[0], one._read("queries").to_pylist(), activations)

    @property
    def audit_path(self) -> Path:
        """Where the findings of a knockout audit lie, if there was one (`data/findings.py`, `probing/audit.py`)."""
        return self.folder / AUDIT

    def video(self, key: str) -> Path:
        """Where the film of an episode lies, if one was kept: frame i is what the policy saw at query i."""
        return self.folder / video_name(key)

    def videos(self) -> dict[str, Path]:
        """The films that there are, path in the store -> file."""
        return {video_name(key): self.video(key) for key in self.keys if self.video(key).is_file()}

    def _read(self, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
        keys = self.keys
        if not keys:
            raise ValueError(f"no finished episode in {self.folder}")
        return read_rows(self.folder, kind, keys, self.packs, columns)


def video_name(key: str) -> str:
    """Path of the film of an episode in its store; a folder per task, because the Hub limits the files of one."""
    return f"videos/{key.partition('-i')[0]}/{key}.mp4"


def _write(path: Path, table: pa.Table) -> None:
    buffer = io.BytesIO()
    # Activations hardly compress; dictionary encoding would build, and drop, a dictionary of every distinct float.
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False)
    write_atomic(path, buffer.getvalue())
