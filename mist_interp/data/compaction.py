"""How do episodes in thousands of small files become a few large ones?

    compact("data/mini", "data/mini-packed")      # or: mist compact data/mini data/mini-packed

Episodes are packed in the order of their keys, whole, until a table of the pack reaches about 256 MiB; see
`mist_interp.data.packs` for what a pack is. The same episodes give the same packs with the same names. What comes out
is a store like any other: read by `RolloutStore.open`, by `load_rollouts`, and by `datasets` without this package.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mist_interp.core.files import write_atomic
from mist_interp.data.cards import rollout_card
from mist_interp.data.findings import AUDIT, findings_text, read_findings
from mist_interp.data.packs import INDEX, Pack, Packed, Packs, read_rows, single_keys, sorted_by_episode
from mist_interp.data.store import RolloutStore

# The Hub's viewer refuses row groups of more than 286 MiB; one of 300 rows has 80 MB at 33 layers of width 4096.
PACK_BYTES = 256 * 2**20
GROUP_ROWS = 300
# Changes with how a pack is laid out, so that packs of different layouts have different names.
LAYOUT = 1

OnPack = Callable[[int, int], None]


def compact(
    store: str | Path | RolloutStore,
    out: str | Path,
    *,
    pack_bytes: int = PACK_BYTES,
    on_pack: OnPack = lambda done, total: None,
) -> RolloutStore:
    """Write the finished episodes of a store into few large files, in a new folder.

    The folder appears in one step when all is written. After a kill the same call goes on with what was written (kept
    beside it as `.<name>.partial`).

    Args:
        store: a store or its folder; a view (`where`, `only`) gives its episodes, and what an audit found in them.
        out: the new folder.
        pack_bytes: size at which a file is full; one episode is never cut.
        on_pack: is told how many packs of how many are written.

    Returns:
        The new store.

    Raises:
        FileNotFoundError: there is no store in the folder, or a file of an episode is missing.
        FileExistsError: `out` exists.
        ValueError: there is no episode, or the episodes have different columns or widths.
    """
    store = store if isinstance(store, RolloutStore) else RolloutStore.open(store)
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists; give a folder that does not")
    packs = plan_packs(contents(store), pack_bytes)
    if not packs:
        raise ValueError(f"no finished episode in {store.folder}")
    staging = out.with_name(f".{out.name}.partial")
    expected = {f"{kind}/{pack.name}.parquet" for pack in packs for kind in store.manifest.kinds}
    for path in staging.rglob("*"):  # of an earlier call with other episodes
        if path.is_file() and str(path.relative_to(staging)) not in expected:
            path.unlink()
    on_pack(0, len(packs))
    for done, pack in enumerate(packs, start=1):
        write_pack([store], pack, staging)
        on_pack(done, len(packs))
    for name, film in store.videos().items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(film, staging / name)
    findings = read_findings(store.audit_path, store.keys)
    if findings:
        write_atomic(staging / AUDIT, findings_text(findings))
    card = rollout_card(out.name, store.manifest, store.episodes(), schemas(store), findings=len(findings))
    write_atomic(staging / "README.md", card)
    write_atomic(staging / INDEX, Packs(packs).to_json())
    write_atomic(staging / "manifest.json", store.manifest.to_json())
    staging.rename(out)
    return RolloutStore.open(out)


def contents(store: RolloutStore) -> dict[str, Packed]:
    """What a store holds, by key.

    Raises:
        FileNotFoundError: a file of an episode is missing.
    """
    single = single_keys(store.folder)
    packed = store.packs.homes.keys() - single
    return {key: store.packs[key] if key in packed else _measured(store, key) for key in store.keys}


def plan_packs(episodes: Mapping[str, Packed], pack_bytes: int = PACK_BYTES, first: int = 0) -> tuple[Pack, ...]:
    """Share episodes out to packs, in the order of their keys; packs are numbered from `first`."""
    groups: list[dict[str, Packed]] = []
    size = 0
    for key in sorted(episodes):
        one = episodes[key]
        if not groups or size + one.size > pack_bytes:
            groups.append({})
            size = 0
        groups[-1][key] = one
        size += one.size
    return tuple(Pack(f"{first + number:05d}-{_name(group)}", group) for number, group in enumerate(groups))


def write_pack(stores: Sequence[RolloutStore], pack: Pack, folder: Path) -> None:
    """Write the files of a pack; those that are there are left, because their name says their content.

    Args:
        stores: where the episodes are, each in the first that has it.
        pack: what to write.
        folder: of the new store.

    Raises:
        ValueError: the episodes have different columns or widths.
    """
    manifest = stores[0].manifest
    sources = _sources(stores, pack.episodes)
    counts = [source.store.episodes(["episode", "n_queries"]) for source in sources]
    rows = {key: int(number) for count in counts for key, number in count.itertuples(index=False)}
    for kind in manifest.kinds:
        path = folder / kind / f"{pack.name}.parquet"
        if path.is_file():
            continue
        one = dict.fromkeys(rows, 1)
        groups = _row_groups(list(pack.episodes), one if kind == "episodes" else rows)
        try:
            _write(path, (_rows(sources, kind, keys) for keys in groups))
        except pa.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the episodes differ in the columns of {kind}, so they share no file: {reason}") from None


def schemas(store: RolloutStore) -> dict[str, pa.Schema]:
    """Columns of the tables without activations, for the card."""
    first = store.keys[:1]
    return {kind: read_rows(store.folder, kind, first, store.packs).schema for kind in ("episodes", "queries")}


def _measured(store: RolloutStore, key: str) -> Packed:
    digest, size = hashlib.sha256(), 0
    for kind in store.manifest.kinds:
        path = store.folder / kind / f"{key}.parquet"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"{store.folder} lacks {kind}/{key}.parquet") from None
        digest.update(kind.encode() + hashlib.sha256(content).digest())
        size = max(size, len(content))
    return Packed(digest.hexdigest()[:32], size)


def _name(episodes: Mapping[str, Packed]) -> str:
    facts = [LAYOUT, GROUP_ROWS, *((key, one.digest) for key, one in episodes.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Source:
    """Episodes of one store: the view of them, and which of them have files of their own."""

    store: RolloutStore
    keys: frozenset[str]
    single: frozenset[str]


def _sources(stores: Sequence[RolloutStore], keys: Iterable[str]) -> list[_Source]:
    left, sources = set(keys), []
    for store in stores:
        here = left & set(store.keys)
        if here:
            single = here & single_keys(store.folder)
            sources.append(_Source(store.only(here), frozenset(here), frozenset(single)))
        left -= here
    return sources


def _row_groups(keys: Sequence[str], rows: Mapping[str, int]) -> Iterator[list[str]]:
    group: list[str] = []
    count = 0
    for key in keys:
        if group and count + rows[key] > GROUP_ROWS:
            yield group
            group, count = [], 0
        group.append(key)
        count += rows[key]
    yield group


def _rows(sources: Sequence[_Source], kind: str, keys: Sequence[str]) -> pa.Table:
    """Rows of a row group. Files are joined one by one: read as one data set, columns of the first would be taken."""
    tables = []
    for source in sources:
        folder, packs = source.store.folder, source.store.packs
        chosen = [key for key in keys if key in source.keys]
        packed = [key for key in chosen if key not in source.single]
        tables += [pq.read_table(folder / kind / f"{key}.parquet") for key in chosen if key in source.single]
        tables += [read_rows(folder, kind, packed, packs)] if packed else []
    return sorted_by_episode(pa.concat_tables(tables))


def _write(path: Path, groups: Iterable[pa.Table]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    writer: pq.ParquetWriter | None = None
    try:
        with temporary.open("wb") as file:
            for table in groups:
                writer = writer or pq.ParquetWriter(
                    file,
                    table.schema,
                    compression="zstd",
                    use_dictionary=False,  # activations are near-incompressible
                    write_statistics=["episode", "query"],
                    write_page_index=True,
                )
                if table.schema != writer.schema:
                    raise pa.ArrowInvalid(f"{writer.schema.names} with widths that later episodes do not have")
                writer.write_table(table, row_group_size=len(table))
            if writer is not None:
                writer.close()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
