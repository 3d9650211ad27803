"""Atomic files and append-only logs survive cuts, full disks and several writers."""

import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.core.files import append_json_line, json_lines_from, read_json_lines, write_atomic


def test_write_atomic_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    write_atomic(target, "one")
    write_atomic(target, b"two")
    assert target.read_text() == "two"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


def test_write_atomic_keeps_the_old_content_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "old")
    monkeypatch.setattr(Path, "replace", _no_space)
    with pytest.raises(OSError, match="No space"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=8)), min_size=1, max_size=5),
    cut=st.integers(min_value=1, max_value=200),
)
def test_a_cut_tail_loses_only_the_last_row(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict], cut: int
) -> None:
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    for row in rows:
        append_json_line(log, row)
    assert read_json_lines(log) == rows
    data = log.read_bytes()
    last = len(data) - data[:-1].rfind(b"\n") - 1
    log.write_bytes(data[: -min(cut, last)])
    assert read_json_lines(log) == rows[:-1]
    append_json_line(log, {"after": "the cut"})
    assert read_json_lines(log) == [*rows[:-1], {"after": "the cut"}]


def test_absent_log_is_empty_and_damage_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert read_json_lines(log) == []
    log.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_json_lines(log)


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    append_json_line(log, {"a": 1})
    with pytest.raises(ValueError):
        append_json_line(log, {"a": float("nan")})
    assert read_json_lines(log) == [{"a": 1}]


def _write_many(path: str, who: int) -> None:
    for i in range(40):
        append_json_line(path, {"who": who, "i": i, "pad": "x" * 3000})


def test_several_processes_share_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(str(log), who)) for who in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = read_json_lines(log)
    assert len(rows) == 120
    for who in range(3):
        assert [r["i"] for r in rows if r["who"] == who] == list(range(40))
    assert all(json.dumps(r) for r in rows)


def test_whoever_follows_a_log_reads_each_row_once_and_no_cut_one(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert json_lines_from(log, 0) == ([], 0)
    append_json_line(log, {"n": 1})
    rows, end = json_lines_from(log, 0)
    assert rows == [{"n": 1}] and end == log.stat().st_size and json_lines_from(log, end) == ([], end)
    with log.open("ab") as file:
        file.write(b'{"n": 2')  # a process that is writing, or was killed
    assert json_lines_from(log, end) == ([], end)
    append_json_line(log, {"n": 3})
    append_json_line(log, {"n": 4})
    assert json_lines_from(log, end) == ([{"n": 3}, {"n": 4}], log.stat().st_size)
    with log.open("ab") as file:
        file.write(b"no JSON\n")
    with pytest.raises(ValueError, match="line 3 from byte"):
        json_lines_from(log, end)
