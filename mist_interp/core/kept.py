"""How is a fitted object kept in a folder, and read again without running foreign code?

Numbers go into `<name>.safetensors`, everything else into `<name>.json`. The JSON makes the object exist: it is written
last, and that of an older object is removed first, so a cut leaves none rather than one that is half old, half new.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from mist_interp.core.files import write_atomic

FORMAT = 1


def keep(
    folder: str | Path,
    name: str,
    facts: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
    others: Mapping[str, bytes | None] = MappingProxyType({}),
) -> None:
    """Write an object; an older one of this name is replaced.

    Args:
        folder: where; made when it does not exist.
        name: of the files.
        facts: plain values.
        tensors: its numbers; None for an object that has none beside its facts.
        others: file name -> content of what else belongs to it; None removes that of an older object.

    Raises:
        ValueError: a fact is NaN or infinite, which JSON cannot say; nothing is written.
    """
    path = Path(folder) / f"{name}.json"
    named = None if tensors is None else sorted(tensors)
    text = json.dumps({"format": FORMAT, **facts, "tensors": named}, indent=2, allow_nan=False) + "\n"
    path.unlink(missing_ok=True)
    for other, data in others.items():
        if data is None:
            path.with_name(other).unlink(missing_ok=True)
        else:
            write_atomic(path.with_name(other), data)
    if tensors is None:
        path.with_suffix(".safetensors").unlink(missing_ok=True)
    else:
        content = save_tensors({key: value.contiguous() for key, value in tensors.items()})
        write_atomic(path.with_suffix(".safetensors"), content)
    write_atomic(path, text)


def kept(folder: str | Path, name: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Inverse of `keep`: facts and tensors.

    Args:
        folder: where it was kept.
        name: of the files.
        what: is looked for, in words, for the errors.

    Raises:
        FileNotFoundError: there is none of this name in this folder, or its numbers are gone.
        ValueError: it was written in a format that this version does not know.
    """
    path = Path(folder) / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {what} in {folder}: {path.name} is missing")
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if facts.get("format") != FORMAT:
        raise ValueError(f"{path} has format {facts.get('format')}; this package reads {FORMAT}")
    if facts.pop("tensors", []) is None:
        return facts, {}
    return facts, load_tensors(path.with_suffix(".safetensors").read_bytes())


def triples(rows: Iterable[Sequence[Any]]) -> frozenset[tuple[str, int, int]]:
    """Start states as JSON has them -> (suite, task, init state)."""
    return frozenset((str(suite), int(task), int(init_state)) for suite, task, init_state in rows)
