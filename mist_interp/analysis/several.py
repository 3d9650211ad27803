"""What does an analysis hand back that has more than one result?

A record of several results, one of which is the main one. It answers what a `Result` is asked for, of the main one:
`to_frame`, `top`, `sel` and `plot`; `save` keeps all of them. The others are attributes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from mist_interp.analysis.result import Result
from mist_interp.core.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Described:
    """Of a dataclass some of whose fields are results: what is asked of its main one.

    Attributes:
        main: name of the field.
    """

    main: ClassVar[str]

    @property
    def results(self) -> dict[str, Result]:
        """All results, by the names of their fields."""
        assert is_dataclass(self)
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: found for name, found in named.items() if isinstance(found, Result)}

    def to_frame(self) -> pd.DataFrame:
        """The main result as `Result.to_frame`."""
        return self.results[self.main].to_frame()

    def sel(self, **labels: Any) -> Result:
        """Places of the main result, as `Result.sel`."""
        return self.results[self.main].sel(**labels)

    def plot(self, *args: Any, **options: Any) -> Figure:
        """The main result as `Result.plot`."""
        return self.results[self.main].plot(*args, **options)

    def save(self, folder: str | Path) -> None:
        """Write a folder: `<name>.json` per result (`Result.load`), `rows.csv` (`to_frame`), and facts.json, the rest.

        What neither is a result nor fits into JSON, such as the tokens of an attribution, is in the rows.
        """
        folder = Path(folder)
        facts: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        assert is_dataclass(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Result):
                value.save(folder / f"{field.name}.json")
                continue
            try:
                facts[field.name] = json.loads(json.dumps(value, default=_record))
            except TypeError:
                continue
        write_atomic(folder / "rows.csv", self.to_frame().to_csv(index=False))
        write_atomic(folder / "facts.json", json.dumps(facts) + "\n")


class Several(Described):
    """The same, with the largest rows of the main result."""

    def top(self, k: int = 10) -> pd.DataFrame:
        """The k rows of the main result with the largest magnitude, as `Result.top`."""
        return self.results[self.main].top(k)


def _record(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} does not fit into JSON")
