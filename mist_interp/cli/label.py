"""`mist label`: which dimension is to blame, how often, and why?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mist_interp.core.errors import UnknownName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mist_interp.data.store import RolloutStore
    from mist_interp.probing.explanation import Explanation
    from mist_interp.probing.risk import Risk

CAMERA = "agentview"
RESOLUTION = 768


@dataclass(frozen=True)
class Command:
    """Count the risk labels of recorded rollouts, or explain those of one query.

    A label says that an action dimension is about to cause a collision. It follows from the recorded contacts: where,
    with which normal, and how far each dimension of the executed actions closed the gap. Examples:

    mist label results/rollouts

    mist label results/rollouts --explain libero_spatial-t04-i032-none-s0-p0-none 3

    mist label results/rollouts --upgrade results/rollouts2 (older rollouts, replayed to record what they lack)
    """

    folder: tyro.conf.Positional[Path]
    """Folder of recorded rollouts."""

    explain: Annotated[tuple[str, int] | None, tyro.conf.arg(metavar="EPISODE QUERY")] = None
    """Key of an episode (its beginning is enough if it is the only one) and number of a query: why are its labels what
    they are? Prints a table, and draws the contact on the frame of that moment, for which the episode is replayed."""

    picture: Path | None = None
    """Where the picture of --explain goes; default: label-EPISODE-QUERY.png here."""

    draw: bool = True
    """Draw a picture; it needs the simulator, the table does not."""

    contrast: Literal["detection", "attribution"] = "detection"
    """To blame against no event, or to blame against not, given an event."""

    horizon: int = 10
    """Control steps beyond the end of the chunk."""

    force: float = 1.0
    """An event counts from this peak force (N) on."""

    audit: bool = False
    """Where the rollouts' knockout audit (experiments/labels/audit.py) disagrees with geometry, its labels count."""

    upgrade: Path | None = None
    """Replay rollouts of an older layout in the simulator and store them there, with what they lack: layout 1 what
    labels need, layout 2 allowed contacts."""

    def run(self) -> int:
        """Count, explain or upgrade."""
        from mist_interp.data.store import RolloutStore

        store = RolloutStore.open(self.folder)
        if self.upgrade is not None:
            return _upgrade(store, self.upgrade)
        if self.explain is not None:
            return self._explain(store, *self.explain)
        return _count(store, self.risk())

    def risk(self) -> Risk:
        """The labels that these options ask for."""
        from mist_interp.probing.risk import Risk

        return Risk(horizon=self.horizon, force=self.force, contrast=self.contrast, audit=self.audit)

    def _explain(self, store: RolloutStore, beginning: str, query: int) -> int:
        from mist_interp.probing.explanation import explain

        explained = explain(store, the_episode(beginning, store.keys), query, self.risk())
        print("\n".join([explained.headline(), *(explained.events() or ["nothing begins there"]), ""]))
        print(explained.table().to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep="–"))
        if self.draw:
            path = self.picture or Path(f"label-{explained.record.key}-{query}.png")
            draw(explained, path)
            print(f"\n{path}")
        return 0


def the_episode(beginning: str, keys: Sequence[str]) -> str:
    """The key that begins so.

    Raises:
        UnknownName: none does.
        ValueError: several do.
    """
    found = [key for key in keys if key.startswith(beginning)]
    if beginning in found or len(found) == 1:
        return beginning if beginning in found else found[0]
    if not found:
        raise UnknownName("episode", beginning, keys)
    raise ValueError(f"{len(found)} episodes begin with {beginning!r}: {', '.join(found[:4])}, ...")


def draw(explained: Explanation, path: Path) -> None:
    """Replay the episode up to the first event of the query's window (or up to the query) and draw what happened."""
    from mist_interp.data.replay import Environments, replay_until
    from mist_interp.libero.projection import pixels
    from mist_interp.report.label_figure import label_figure

    first = explained.first
    shown = explained.step if first is None else min(first.step + 1, explained.record.steps)
    with Environments() as environments:
        env = environments.of(explained.record)
        replay_until(env, explained.record, shown)
        frame = env.frame(CAMERA, RESOLUTION)
        figure = label_figure(explained, frame, lambda points: pixels(env, points, CAMERA, RESOLUTION), shown)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _count(store: RolloutStore, risk: Risk) -> int:
    import numpy as np
    import pandas as pd

    labels = risk.labels(store)
    rows = []
    for place, name in enumerate(labels.outputs):
        values = labels.values[:, place]
        rows.append(
            {
                "dimension": name,
                "1": int((values == 1).sum()),
                "0": int((values == 0).sum()),
                "masked": int(np.isnan(values).sum()),
                "episodes with 1": len(np.unique(labels.episode[values == 1])),
                "episodes with 0": len(np.unique(labels.episode[values == 0])),
            }
        )
    print(f"{risk.name}: {len(labels)} queries of {len(store)} episodes, selection {store.manifest.selection}\n")
    print(pd.DataFrame(rows).to_string(index=False))
    print("\nmasked queries by reason")
    for reason, number in labels.masked.items():
        print(f"  {number:6d}  {reason}")
    return 0


def _upgrade(store: RolloutStore, out: Path) -> int:
    from mist_interp.data.replay import upgrade

    print(f"{len(upgrade(store, out))} episodes in {out}, each replayed bit for bit")
    return 0
