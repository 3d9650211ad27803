"""Compaction: the same episodes in few files, readable as before and one layer at a time, and never half done."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.cli import main
from mist_interp.core.files import append_json_line
from mist_interp.data import compaction
from mist_interp.data.compaction import compact, contents, plan_packs
from mist_interp.data.findings import read_findings
from mist_interp.data.hub import load_rollouts
from mist_interp.data.packs import Packed, Packs, read_rows
from mist_interp.data.store import RolloutStore, video_name
from tests.unit.data.test_rollout_store import GROUPS, MANIFEST, SITES, episode


@pytest.fixture
def store(tmp_path: Path) -> RolloutStore:
    store = RolloutStore.create(tmp_path / "rollouts", MANIFEST)
    for init_state, n_queries in ((2, 3), (0, 5), (1, 4), (4, 2), (3, 6)):
        store.append(episode(init_state, n_queries))
    return store


def assert_same(a: RolloutStore, b: RolloutStore) -> None:
    assert a.keys == b.keys and a.manifest == b.manifest
    for kind in a.manifest.kinds:
        ours, theirs = (read_rows(one.folder, kind, one.keys, one.packs) for one in (a, b))
        assert ours.schema == theirs.schema and ours.equals(theirs), kind
    for group in GROUPS:
        for site in group.sites:
            (x, rows), (y, others) = (one.load(site, group.tokens, group.pool) for one in (a, b))
            np.testing.assert_array_equal(x, y)
            pd.testing.assert_frame_equal(rows, others)
    pd.testing.assert_frame_equal(a.queries(["query", "state_hash"]), b.queries(["query", "state_hash"]))


def test_the_same_episodes_in_few_files(store: RolloutStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "GROUP_ROWS", 9)
    size = max(one.size for one in contents(store).values())
    packed = compact(store.folder, tmp_path / "packed", pack_bytes=3 * size)
    files = sorted((packed.folder / "queries").glob("*.parquet"))
    assert [len(pack.episodes) for pack in packed.packs.packs] == [3, 2] and len(files) == 2
    assert [pq.ParquetFile(files[0]).metadata.row_group(i).num_rows for i in range(2)] == [9, 3]  # 5 + 4, 3
    assert_same(packed, store)
    assert_same(load_rollouts(packed.folder), store)
    assert_same(compact(packed, tmp_path / "again"), store)
    some = store.keys[1:4]
    assert_same(packed.only(some), store.only(some))
    assert packed.row(some[0])["instruction"] == "pick up the bowl" and some[0] in packed and "x" not in packed
    one, other = packed.episode(some[1]), store.episode(some[1])
    assert one.contacts == other.contacts and one.queries[1].state_hash == other.queries[1].state_hash
    name = GROUPS[0].key(SITES[1])
    np.testing.assert_array_equal(one.queries[2].activations[name], other.queries[2].activations[name])


def test_one_layer_of_one_episode_is_one_column_of_one_row_group(
    store: RolloutStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "GROUP_ROWS", 7)
    packed = compact(store, tmp_path / "packed")
    (path,) = (packed.folder / "activations" / "action_read-mean").glob("*.parquet")
    (fragment,) = pads.dataset(str(path), format="parquet").get_fragments()
    assert fragment.num_row_groups == 4  # of 5, 4 + 3, 6, 2 rows
    seen: list[pads.Expression] = []
    among = compaction.read_rows.__globals__["_among"]
    monkeypatch.setitem(compaction.read_rows.__globals__, "_among", lambda keys: seen.append(among(keys)) or seen[-1])
    for key in packed.keys:
        x, _ = packed.only([key]).load(SITES[1])
        np.testing.assert_array_equal(x, store.only([key]).load(SITES[1])[0])
        assert len(fragment.subset(seen[-1]).row_groups) == 1
    chunk = fragment.metadata.row_group(0).column(2)
    assert chunk.path_in_schema.startswith(SITES[0]) and fragment.metadata.num_columns == 2 + len(SITES)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), st.integers(1, 100), min_size=1), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_every_episode_lies_in_one_pack_in_order(sizes: dict[str, int], limit: int) -> None:
    known = {key: Packed(f"{key}{size}", size) for key, size in sizes.items()}
    packs = plan_packs(known, limit, first=7)
    assert [key for pack in packs for key in pack.episodes] == sorted(sizes)
    totals = [sum(one.size for one in pack.episodes.values()) for pack in packs]
    assert all(total <= limit or len(pack.episodes) == 1 for total, pack in zip(totals, packs, strict=True))
    firsts = [next(iter(pack.episodes.values())).size for pack in packs[1:]]
    assert all(total + after > limit for total, after in zip(totals, firsts, strict=False)), "a pack is filled"
    assert [pack.name[:6] for pack in packs] == [f"{7 + i:05d}-" for i in range(len(packs))]
    assert plan_packs(dict(reversed(known.items())), limit, first=7) == packs
    assert Packs.from_json(Packs(packs).to_json()) == Packs(packs)
    other = {key: replace(one, digest="new") if key == min(sizes) else one for key, one in known.items()}
    assert plan_packs(other, limit, first=7)[0].name != packs[0].name


def test_episodes_beside_the_packs_belong_to_the_store(store: RolloutStore, tmp_path: Path) -> None:
    """Collection goes on in a compacted folder; an episode that is written again wins."""
    packed = compact(store, tmp_path / "packed")
    new, changed = episode(9), replace(episode(1, 4), instruction="put it down")
    for one in (store, RolloutStore.create(packed.folder, MANIFEST)):
        one.append(new)
        one.append(changed)
    packed = RolloutStore.open(packed.folder)
    assert_same(packed, store)
    assert packed.row(changed.key)["instruction"] == "put it down" and new.key in packed
    assert_same(compact(packed, tmp_path / "again"), store)


def test_a_killed_compaction_leaves_nothing_and_the_same_call_completes(store: RolloutStore, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    code = (
        "import os, sys; from mist_interp.data import compaction\n"
        "real, done = compaction._write, []\n"
        "def write(path, groups):\n"
        "    done.append(path)\n"
        "    real(path, (os._exit(9) if len(done) == 6 else table for table in groups))\n"
        "compaction._write = write\n"
        f"compaction.compact({str(store.folder)!r}, {str(out)!r}, pack_bytes=1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not out.exists()
    partial = tmp_path / ".packed.partial"
    written = {path: path.stat().st_mtime_ns for path in partial.rglob("*.parquet") if path.name[0] != "."}
    assert len(written) == 5, "one pack of four tables, and one table"
    with pytest.raises(FileNotFoundError, match="no rollouts"):
        RolloutStore.open(partial)
    (partial / "queries" / "00009-0123456789abcdef.parquet").write_bytes(b"of an earlier call with other episodes")
    packed = compact(store, out, pack_bytes=1)
    assert_same(packed, store)
    assert not partial.exists()
    kept = {out / path.relative_to(partial): when for path, when in written.items()}
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items()), "what was written is not written again"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["README.md", "activations", "episodes", "manifest.json", "packs.json", "queries"]
    )
    assert len(list(out.rglob("*.parquet"))) == 20 and not [p for p in out.rglob("*") if p.name[0] == "."]


def test_what_cannot_be_compacted_is_said(store: RolloutStore, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="exists"):
        compact(store, store.folder)
    with pytest.raises(ValueError, match="no finished episode"):
        compact(RolloutStore.create(tmp_path / "empty", MANIFEST), tmp_path / "out")
    wide = episode(7)
    name = GROUPS[1].key(SITES[1])
    queries = tuple(replace(q, activations={**q.activations, name: np.zeros(11)}) for q in wide.queries)
    store.append(replace(wide, queries=queries))
    with pytest.raises(ValueError, match=r"differ in the columns of activations/action_read_dz-flat"):
        compact(store, tmp_path / "out")
    (store.folder / "queries" / f"{store.keys[1]}.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks queries/{store.keys[1]}"):
        compact(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_how_episodes_were_selected_comes_along(store: RolloutStore, tmp_path: Path) -> None:
    for name, view, selection in (
        ("where", store.where(inits=[0, 1]), "iid"),
        ("only", store.only(store.keys[:2]), "chosen"),
    ):
        packed = compact(view, tmp_path / name)
        assert packed.keys == store.keys[:2] and packed.manifest.selection == selection
        assert f"`{selection}`" in (packed.folder / "README.md").read_text()
    with pytest.raises(ValueError, match="picked one by one"):
        packed.check_rates()


def test_films_come_along(store: RolloutStore, tmp_path: Path) -> None:
    film = store.video(store.keys[2])
    film.parent.mkdir(parents=True)
    film.write_bytes(b"film")
    (film.parent / "unknown.mp4").write_bytes(b"of no episode")
    packed = compact(store, tmp_path / "packed")
    assert packed.videos() == {video_name(store.keys[2]): packed.video(store.keys[2])}
    assert [path.read_bytes() for path in packed.folder.rglob("*.mp4")] == [b"film"]


def finding(key: str, step: int = 8, event: int = 12, asked: str = "0a") -> dict[str, object]:
    return {"episode": key, "step": step, "event": event, "rule": "r", "asked": asked, "shares": [0.1, None]}


def test_an_audit_comes_along(store: RolloutStore, tmp_path: Path) -> None:
    assert not compact(store, tmp_path / "without").audit_path.exists()
    first, second, third = (finding(key) for key in store.keys[:3])
    for row in (third, first, {**second, "asked": "old"}, second):
        append_json_line(store.audit_path, row)
    packed = compact(store, tmp_path / "packed")
    assert read_findings(packed.audit_path) == [first, second, third]
    assert "holds 3 findings of a knockout audit" in (packed.folder / "README.md").read_text()
    some = compact(packed.only(store.keys[1:2]), tmp_path / "some")
    assert read_findings(some.audit_path) == [second], "of a view, only those of its episodes"
    none = compact(packed.only(store.keys[3:]), tmp_path / "none")
    assert not none.audit_path.exists() and "audit" not in (none.folder / "README.md").read_text()


def test_the_command(store: RolloutStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    assert main(["compact", str(store.folder), str(out), "--megabytes", "1"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: 5 episodes in 4 files\n" and said.err == "0/1 packs\n1/1 packs\n"
    assert main(["compact", str(store.folder), str(out)]) == 1
    assert re.fullmatch(r"mist compact: .* exists; give a folder that does not\n", capsys.readouterr().err)


def test_datasets_reads_a_layer_in_the_three_lines_of_the_card(store: RolloutStore, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    packed = compact(store, tmp_path / "packed", pack_bytes=3 * max(one.size for one in contents(store).values()))
    card = (packed.folder / "README.md").read_text()
    lines = next(block for block in card.split("```python\n") if block.startswith("from datasets")).split("```")[0]
    assert len(lines.strip().splitlines()) == 3
    code = lines + "import json; print(json.dumps([list(rows['episode']), list(rows['query']), x.tolist()]))"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    ours, rows = store.load(SITES[1])
    assert json.loads(run.stdout.splitlines()[-1]) == [list(rows["episode"]), list(rows["query"]), ours.tolist()]
