"""What was the small policy trained on, and for how long?

Counts the episode files of the demonstrations and reads the log of the training.

    python experiments/mini/training_table.py --demos runs/mini/demos runs/mini/dagger1 --policy runs/mini/policy
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import card
import numpy as np
import tyro
from rich.console import Console

from mist_interp.core.files import read_json_lines

console = Console(highlight=False)


@dataclass(frozen=True)
class Settings:
    """What the small policy was trained on."""

    demos: tuple[Path, ...] = (Path("runs/mini/demos"), Path("runs/mini/dagger"))
    """Folders of demonstrations, as they were given to the training."""

    policy: Path = Path("runs/mini/policy")
    """Folder of the training: its log is read."""

    fill: tuple[Path, ...] = ()
    """Pages whose marked places get the numbers, e.g. mist_interp/models/mini/README.md."""


def main(settings: Settings) -> None:
    """Count, print, fill."""
    rows = [count(folder) for folder in settings.demos]
    heads = ["demonstrations", "episodes", "tasks", "of them solved", "samples"]
    total = ["**all**", sum(int(row[1]) for row in rows), "", "", sum(int(row[4]) for row in rows)]
    measured = {"data": card.table(heads, [*rows, total])}
    log = read_json_lines(settings.policy / "losses.jsonl")
    if log:
        last = log[-1]
        measured["training"] = (
            f"{last['update']} updates, {last['spent'] / 60:.0f} minutes of wall time, "
            f"mean loss of the last 100 updates {last['loss']:.3f}"
        )
    for text in measured.values():
        console.print(f"\n{text}", soft_wrap=True, markup=False)
    for page in settings.fill:
        console.print(f"{page}: filled {', '.join(card.fill(page, measured)) or 'nothing'}")


def count(folder: Path) -> list[object]:
    """Name, episodes, tasks, solved episodes and samples of one folder."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise SystemExit(f"{folder} holds no demonstrations (*.npz)")
    tasks, solved, samples = set(), 0, 0
    for file in files:
        with np.load(file) as episode:
            tasks.add(int(episode["task"]))
            solved += int(episode["success"])
            samples += len(episode["chunk"])
    return [f"`{folder.name}`", len(files), len(tasks), solved, samples]


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
