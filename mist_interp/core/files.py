"""How does a run keep what it has finished when it is killed at any moment?

Two primitives carry every resumable run of this package. A whole file is replaced atomically (write beside it,
flush to the disk, rename), so a reader sees the old or the new content and never a half. A log grows by one
JSON line per record, each flushed to the disk before the call returns, so `kill -9` and a power cut lose at
most the record that was being written; the reader forgives exactly that one cut last line, and the next append
repairs it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Replace `path` by `content` in one step; parent folders are made.

    Raises:
        OSError: the disk is full or the folder is not writable; `path` then still has its old content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_json_line(path: str | Path, row: Row) -> None:
    """Append `row` as one line of JSON and return once it is on the disk.

    A line that an earlier process left cut is removed first, so the log stays readable for ever. If the disk
    fills up while the line is written, what was written of it is taken back before the error is raised. Several
    processes may share a log: the file is locked while a line is added.

    Raises:
        TypeError, ValueError: `row` is not JSON (NaN and infinity included); nothing is written.
        OSError: the line could not be stored.
    """
    path = Path(path)
    line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # else a half-written line of another process would be taken for a cut one
        end = _end_of_last_whole_line(file)
        file.truncate(end)
        try:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def read_json_lines(path: str | Path) -> list[Row]:
    """Rows of a log written by `append_json_line`; an absent file has none.

    Raises:
        ValueError: a line other than a cut last one is not JSON: the file was edited or is damaged, so nothing
            is guessed.
    """
    return json_lines_from(path, 0)[0]


def json_lines_from(path: str | Path, start: int) -> tuple[list[Row], int]:
    """Rows of a log from a byte on, and the byte behind the last of them: whoever follows a log reads each row once.

    Args:
        path: of the log; an absent file has no rows.
        start: 0, or where the last call ended.

    Raises:
        ValueError: see `read_json_lines`.
    """
    path = Path(path)
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        # What follows the last newline was cut while it was written, or is being written, or is empty.
        whole, newline, _ = file.read().rpartition(b"\n")
    rows = []
    for number, line in enumerate(whole.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            where = f"line {number}" if start == 0 else f"line {number} from byte {start} on"
            raise ValueError(f"{path}, {where} is not JSON ({error}); restore the file or remove that line") from None
    return rows, start + len(whole) + len(newline)


def _end_of_last_whole_line(file: Any) -> int:
    file.seek(0, os.SEEK_END)
    size = file.tell()
    position = size
    while position > 0:
        start = max(0, position - 65536)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0
