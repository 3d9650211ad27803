"""How much of the difference between two runs does each place carry?

A `PatchGrid` holds the raw effect of every cell, metric(patched) - metric(unpatched), and the full difference between
the two runs, metric(source) - metric(unpatched). Their ratio is the share: 0 for no effect, 1 for a cell that alone
makes the patched run act like the other. Where the runs hardly differ a share would be noise divided by noise; it is
NaN there, and the text of the result says where.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr

from mist_interp.analysis.result import Result, labelled
from mist_interp.core.errors import UnknownName
from mist_interp.core.files import write_atomic


@dataclass(frozen=True, eq=False)
class PatchGrid(Result):
    """Effects of a patching grid; see the module's text.

    Attributes:
        full: difference between the two runs, over those axes that are not places: pair, step, dim. NaN where the
            values come from no run (mean ablation).
        floor: smallest difference of which a share is stated.
    """

    full: xr.DataArray = field(default_factory=lambda: xr.DataArray(np.nan))
    floor: float = 0.0

    @property
    def share(self) -> Result:
        """Effect divided by the full difference; not bounded: a cell may overshoot (> 1) or push away (< 0)."""
        enough = abs(self.full) >= self.floor
        values = (self.values / self.full.where(enough)).transpose(*self.values.dims)
        said = "share of the difference between the runs that the cell alone makes: 0 none, 1 all"
        return Result(values, "share", f"{said}{self._missing(enough)}", self.source)

    def pooled(self, *axes: str) -> Result:
        """One share for several pairs, chunk steps or dimensions: sum(effect * full) / sum(full ** 2).

        The mean of shares would be ruled by the pairs that hardly differ; this is the least-squares slope of the effect
        on the full difference, in which a pair counts by how much there is to explain.

        Args:
            *axes: among pair, step and dim; none means all that there are.

        Raises:
            UnknownName: an axis that is not one of them.
        """
        names = list(axes) or [str(name) for name in self.full.dims]
        for name in names:
            if name not in self.full.dims:
                raise UnknownName("axis to pool", name, map(str, self.full.dims))
        weight = (self.full**2).sum(names, skipna=False)
        enough = weight**0.5 >= self.floor
        order = [name for name in self.values.dims if name not in names]
        values = ((self.values * self.full).sum(names, skipna=False) / weight.where(enough)).transpose(*order)
        said = f"share of the difference between the runs that the cell alone makes, pooled over {', '.join(names)}"
        return Result(values, "share", f"{said}{self._missing(enough)}", self.source)

    def sel(self, **labels: Any) -> Self:
        """Some places by their labels, as `Result.sel`; the full difference follows."""
        picked = super().sel(**labels)
        shared = {name: wanted for name, wanted in labels.items() if name in self.full.dims}
        return replace(picked, full=self.full.sel(shared, drop=True))

    def save(self, path: str | Path) -> None:
        """Write one JSON file; `Result.load` reads it too, without the full difference."""
        super().save(path)
        content = json.loads(Path(path).read_text())
        axes = {str(name): self.full[name].values.tolist() for name in self.full.dims}
        numbers = [float(x) if np.isfinite(x) else None for x in np.ravel(self.full.values)]
        content |= {"full": {"axes": axes, "values": numbers}, "floor": self.floor}
        write_atomic(Path(path), json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file written by `save`.

        Raises:
            ValueError: the file is no saved patching grid.
        """
        plain = Result.load(path)
        content = json.loads(Path(path).read_text())
        if "full" not in content:
            raise ValueError(f"{path} is a saved result, but no patching grid: it has no full difference")
        axes = content["full"]["axes"]
        numbers = np.array(content["full"]["values"], dtype=float).reshape([len(labels) for labels in axes.values()])
        full = labelled(numbers, **axes)
        return cls(plain.values, plain.unit, plain.what, plain.source, full, content["floor"])

    def _missing(self, enough: xr.DataArray) -> str:
        if bool(enough.all()):
            return ""
        if not enough.dims:
            where = "everywhere"
        else:
            bad = enough.where(~enough, drop=True)
            where = "for some " + " x ".join(
                f"{name} ({', '.join(map(str, bad[name].values.tolist()[:7]))})" for name in bad.dims
            )
        return f"; NaN {where}, where the runs differ by less than {self.floor:g}"
