"""How does a long patching sweep survive being killed?

    config.json     what decides the numbers, and the versions of the first start
    unpatched.jsonl what the metric is without a patch, per pair: tells other weights apart
    cells.jsonl     one line per finished forward: site, pairs and cells of its rows, their numbers

A line is on the disk before the next forward starts, so the same command goes on with the cells that have none. Other
settings in the same folder are an error that names them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mist_interp.core.files import append_json_line, read_json_lines, write_atomic
from mist_interp.core.provenance import provenance

Key = tuple[str, int, int]  # site, pair, cell


class OtherSweep(ValueError):
    """The folder holds a sweep with other settings; the text names every field."""


class SweepFolder:
    """The files of one sweep.

    Raises:
        OtherSweep: the folder belongs to another one.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]):
        self.path = Path(path)
        asked = json.loads(json.dumps(dict(settings)))
        config = self.path / "config.json"
        if config.exists():
            found = json.loads(config.read_text())["settings"]
            fields = [name for name in {**found, **asked} if found.get(name) != asked.get(name)]
            if fields:
                lines = [f"  {name}: there {found.get(name)!r}, asked {asked.get(name)!r}" for name in fields]
                raise OtherSweep("\n".join([f"{self.path} holds a sweep with other settings:", *lines]))
        else:
            content = {"settings": asked, "provenance": provenance()}
            write_atomic(config, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def finished(self) -> dict[Key, Any]:
        """Numbers of every finished cell."""
        found: dict[Key, Any] = {}
        for row in read_json_lines(self.path / "cells.jsonl"):
            for pair, cell, values in zip(row["pairs"], row["cells"], row["values"], strict=True):
                found[row["site"], pair, cell] = values
        return found

    def same_policy(self, pairs: Sequence[int], actions: Sequence[Any]) -> None:
        """Check that the unpatched runs act as they did when the sweep began, or note how they act.

        Raises:
            OtherSweep: they do not: the name of the policy is the same, its weights are not.
        """
        before = {row["pair"]: row["values"] for row in read_json_lines(self.path / "unpatched.jsonl")}
        for pair, values in zip(pairs, actions, strict=True):
            if pair not in before:
                append_json_line(self.path / "unpatched.jsonl", {"pair": pair, "values": values})
            elif not np.allclose(before[pair], values, rtol=1e-3, atol=1e-3):
                raise OtherSweep(
                    f"{self.path} holds a sweep with other weights: there the unpatched run of pair {pair} gave "
                    f"{before[pair]}, now {values}"
                )

    def store(self, site: str, cells: Sequence[tuple[int, int]], values: Sequence[Any]) -> None:
        """Keep the numbers of one forward.

        Raises:
            ValueError: a number is not finite, which JSON cannot hold.
            OSError: the disk is full; earlier forwards are safe.
        """
        pairs, numbers = [pair for pair, _ in cells], [cell for _, cell in cells]
        row = {"site": site, "pairs": pairs, "cells": numbers, "values": list(values)}
        append_json_line(self.path / "cells.jsonl", row)
