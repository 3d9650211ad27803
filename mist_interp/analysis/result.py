"""What does an analysis hand back?

A `Result`: numbers whose axes have names and whose places have labels, with the unit, one sentence on what they are,
and where they came from. The numbers are an xarray.DataArray, so everything that xarray can do is there
(`result.values.sel(dim="dz").max("layer")`); here are the few things that every analysis is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import xarray as xr

from mist_interp.core.errors import UnknownName
from mist_interp.core.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Result:
    """Labelled numbers of one analysis.

    Attributes:
        values: the numbers; every axis has a name and a label per place.
        unit: of the numbers, as it is to be read ("m per step", "normalised action", "share").
        what: one sentence that says what one number means.
        source: where it came from: policy, sites, inputs, seeds, versions.
    """

    values: xr.DataArray
    unit: str = ""
    what: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bare = [str(axis) for axis in self.values.dims if axis not in self.values.coords]
        if bare:
            raise ValueError(f"the axes {', '.join(bare)} of this result have no labels")

    @property
    def axes(self) -> dict[str, list[Any]]:
        """Labels of every axis, in the order of the axes."""
        return {str(axis): self.values[axis].values.tolist() for axis in self.values.dims}

    def sel(self, **labels: Any) -> Self:
        """Some places by their labels: `sel(layer=3, dim=["dx", "dz"])`; a single label drops its axis.

        Raises:
            UnknownName: no such axis or label.
        """
        for axis, wanted in labels.items():
            if axis not in self.axes:
                raise UnknownName("axis", axis, self.axes)
            missing = [label for label in np.atleast_1d(wanted).tolist() if label not in self.axes[axis]]
            if missing:
                raise UnknownName(f"{axis} of this result", missing[0], map(str, self.axes[axis]))
        return replace(self, values=self.values.sel(labels, drop=True))

    def to_frame(self) -> pd.DataFrame:
        """One row per number: a column per axis, and `value`."""
        if not self.values.dims:
            return pd.DataFrame({"value": [self.values.item()]})
        return self.values.rename("value").to_dataframe().reset_index()[[*self.axes, "value"]]

    def top(self, k: int = 10) -> pd.DataFrame:
        """The k rows of `to_frame` with the largest magnitude, largest first; numbers that are not finite come last."""
        frame = self.to_frame()
        order = np.argsort(-np.nan_to_num(frame["value"].abs().to_numpy(), nan=-1.0, posinf=-1.0), kind="stable")
        return frame.iloc[order[:k]].reset_index(drop=True)

    def plot(self, **options: Any) -> Figure:
        """A figure: lines over one axis, a heat map over two, small multiples over three.

        See `mist_interp.analysis.figures.draw`, which takes the options.
        """
        from mist_interp.analysis.figures import draw

        return draw(self, **options)

    def save(self, path: str | Path) -> None:
        """Write one JSON file: the numbers, their labels, and the texts."""
        content = {
            "format": "mist_interp.Result/1",
            "axes": self.axes,
            "values": _plain(self.values.values),
            "unit": self.unit,
            "what": self.what,
            "source": dict(self.source),
        }
        write_atomic(Path(path), json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file written by `save` as the class that is asked; numbers come back exactly, as float64.

        Raises:
            ValueError: the file is not a saved result.
        """
        content = json.loads(Path(path).read_text())
        if not isinstance(content, dict) or content.get("format") != "mist_interp.Result/1":
            raise ValueError(f"{path} is no saved result")
        values = labelled(np.array(content["values"], dtype=float), **content["axes"])
        return cls(values, content["unit"], content["what"], content["source"])


def labelled(values: Any, **axes: Sequence[Any]) -> xr.DataArray:
    """An array with named axes: `labelled(numbers, layer=range(4), dim=names)`, in the order of its dimensions.

    Raises:
        ValueError: labels and numbers do not have the same sizes.
    """
    array = np.asarray(values.detach().double().cpu() if hasattr(values, "detach") else values)
    sizes = tuple(len(labels) for labels in axes.values())
    if array.shape != sizes:
        raise ValueError(f"numbers of shape {array.shape} cannot have the axes {dict(zip(axes, sizes, strict=True))}")
    return xr.DataArray(array, dims=list(axes), coords={name: list(labels) for name, labels in axes.items()})


def _plain(values: np.ndarray) -> Any:
    """Nested lists; what is not finite becomes null, which is read back as NaN."""
    if values.ndim:
        return [_plain(row) for row in values]
    return float(values) if np.isfinite(values) else None
