"""How is a direction kept in a folder?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from mist_interp.core.files import write_atomic

FORMAT = 1
FILES = ("direction.json", "direction.safetensors")


def write_direction(folder: Path, vector: Tensor, facts: Mapping[str, Any]) -> None:
    """Write `direction.safetensors` and `direction.json`; the second makes the direction exist."""
    text = json.dumps({"format": FORMAT, **facts}, indent=2, allow_nan=False) + "\n"
    write_atomic(folder / "direction.safetensors", save_tensors({"vector": vector.contiguous()}))
    write_atomic(folder / "direction.json", text)


def read_direction(folder: Path) -> tuple[Tensor, dict[str, Any]]:
    """Inverse of `write_direction`.

    Raises:
        FileNotFoundError: there is no direction in this folder.
        ValueError: it was written in a format that this version does not know.
    """
    path = folder / "direction.json"
    if not path.is_file():
        raise FileNotFoundError(f"no steering direction in {folder}: direction.json is missing")
    facts = json.loads(path.read_text())
    if facts["format"] != FORMAT:
        raise ValueError(f"{path} has format {facts['format']}; this package reads {FORMAT}")
    return load_tensors((folder / "direction.safetensors").read_bytes())["vector"], facts
