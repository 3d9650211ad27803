"""Which heads look at the object that the task is about, wherever it stands?

    mass(sample, head)      = sum over patches of (attention on the patch) * (share of the patch that shows the object)
    even(sample, head)      = what the mass would be if the head spread its attention on pictures evenly: area only
    elsewhere(sample, head) = the same head and sample, with the object's masks of the other samples: habit only
    gain(head)              = mean over samples of mass - elsewhere

A head that always looks at the middle of the table has mass on the bowl and no gain; a head that follows the bowl has
both. Intervals of the gain come from a bootstrap over groups of samples (tasks), because samples of one task share
where things stand.

Where it misleads. The mask is only as fine as the patches, and an object in front of the plate shares patches with it:
compare with other objects in the same call (the twin bowl, the plate). Objects that stand at nearly the same place in
all samples have little gain however well they are tracked. "Tracks" is where a head reads; whether the action depends
on it is asked by `mist_interp.analysis.attention.knockout`. The best of many heads is best partly by luck: rank on some
scenes, judge on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from mist_interp.analysis.result import Result
from mist_interp.analysis.several import Several
from mist_interp.core.errors import UnknownName

PATCH_AXES = ["camera", "row", "col"]


@dataclass(frozen=True, eq=False)
class Tracking(Several):
    """Attention on objects, with what area and habit alone would give.

    Attributes:
        mass: share of the attention on each object, axes (sample, layer, head, from, object).
        even: the same under evenly spread attention on the pictures.
        elsewhere: the same under the masks of the other samples.
        groups: per sample, what it belongs to; samples of one group are resampled together.
    """

    main = "mass"

    mass: Result
    even: Result
    elsewhere: Result
    groups: tuple[Any, ...]

    def gain(self, name: str, query: str | None = None) -> Result:
        """Mean over samples of mass - elsewhere, axes (layer, head).

        Raises:
            UnknownName: no such object or query.
        """
        gain = self._of(self.mass, name, query) - self._of(self.elsewhere, name, query)
        what = f"Attention on {name} beyond what the same head has on where {name} is in other scenes."
        return Result(gain.mean("sample"), "share", what, self.mass.source)

    def ranking(self, name: str, query: str | None = None, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
        """Heads by their gain, largest first.

        Columns: layer, head, mass, even, elsewhere (means over samples), gain, low, high (95 % bootstrap interval over
        groups), lift (mass / elsewhere).

        Args:
            name: the object.
            query: which queries, where there are several.
            draws: of the bootstrap.
            seed: of the bootstrap.

        Raises:
            UnknownName: no such object or query.
        """
        mass, even, elsewhere = (self._of(r, name, query) for r in (self.mass, self.even, self.elsewhere))
        difference = (mass - elsewhere).stack(which=("layer", "head")).transpose("sample", "which")
        low, high = clustered_interval(difference.values, self.groups, draws, seed)
        frame = pd.DataFrame(list(difference["which"].values), columns=["layer", "head"])
        for column, values in (("mass", mass), ("even", even), ("elsewhere", elsewhere)):
            frame[column] = values.mean("sample").stack(which=("layer", "head")).values
        frame["gain"], frame["low"], frame["high"] = difference.values.mean(0), low, high
        frame["lift"] = frame["mass"] / frame["elsewhere"].where(frame["elsewhere"] > 0)
        return frame.sort_values("gain", ascending=False, kind="stable").reset_index(drop=True)

    def _of(self, result: Result, name: str, query: str | None) -> xr.DataArray:
        queries = result.axes["from"]
        if query is None and len(queries) > 1:
            raise UnknownName("query (name one)", query, queries)
        return result.sel(object=name, **{"from": query or queries[0]}).values


def track(attention: Result, shares: Result, groups: Sequence[Any] | None = None) -> Tracking:
    """Attention on objects, per head.

    Args:
        attention: axes (sample, layer, head, from, camera, row, col), from `camera_attention`.
        shares: axes (sample, object, camera, row, col), from `patch_shares`, of the same samples.
        groups: what each sample belongs to, for example its task; default: every sample is its own group.

    Raises:
        ValueError: fewer than two samples, or other samples, cameras or patches.
    """
    for axis in ("sample", *PATCH_AXES):
        if attention.axes.get(axis) != shares.axes.get(axis):
            raise ValueError(f"attention and shares differ along {axis}: {attention.axes.get(axis)} and {shares.axes}")
    count = attention.values.sizes["sample"]
    if count < 2:
        raise ValueError("one sample has no other scenes to compare with; give at least two")
    names = tuple(range(count)) if groups is None else tuple(groups)
    if len(names) != count:
        raise ValueError(f"{len(names)} groups for {count} samples")
    patches = attention.values.sizes["camera"] * attention.values.sizes["row"] * attention.values.sizes["col"]
    others = (shares.values.sum("sample") - shares.values) / (count - 1)
    mass = xr.dot(attention.values, shares.values, dim=PATCH_AXES)
    even = attention.values.sum(PATCH_AXES) * shares.values.sum(PATCH_AXES) / patches
    elsewhere = xr.dot(attention.values, others, dim=PATCH_AXES)
    order = ("sample", "layer", "head", "from", "object")
    texts = {
        "mass": (mass, "Share of the attention that goes to an object."),
        "even": (even, "The same if the head spread its attention on pictures evenly."),
        "elsewhere": (elsewhere, "The same with the masks that the object has in the other samples."),
    }
    results = {k: Result(v.transpose(*order), "share", what, attention.source) for k, (v, what) in texts.items()}
    return Tracking(**results, groups=names)


def clustered_interval(
    values: np.ndarray, groups: Sequence[Any], draws: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean over samples, whole groups drawn at a time.

    Args:
        values: (sample, ...).
        groups: per sample.
        draws: bootstrap samples.
        seed: of the draws.
        level: of the interval.

    Returns:
        Low and high, of shape (...). With one group they are NaN: it says nothing about others.
    """
    _, index = np.unique(np.array([str(group) for group in groups]), return_inverse=True)
    count = int(index.max()) + 1
    if count < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    sums = np.stack([values[index == g].sum(0) for g in range(count)])
    sizes = np.bincount(index)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)  # times each is drawn
    means = np.tensordot(drawn, sums, axes=1) / (drawn @ sizes).reshape(-1, *[1] * (values.ndim - 1))
    tail = (1 - level) / 2
    return np.quantile(means, tail, axis=0), np.quantile(means, 1 - tail, axis=0)
