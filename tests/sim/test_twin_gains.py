"""The head that foresees a benefit is fitted on what the gate saw when its alarm came on: in real LIBERO."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("libero")

from test_twin_worlds import Clock

from mist_interp.evaluation import Detector, NoEdit, Protocol, evaluate
from mist_interp.evaluation.arms import ArmLog, Query
from mist_interp.probing.benefit import Benefit
from mist_interp.tracing.hooked import HookedVLA

pytestmark = pytest.mark.sim

SCRIPT = Path(__file__).parents[2] / "experiments" / "recovery" / "benefit.py"
SITE = ("resid_post", 2)


@dataclass
class Spy:
    """Leaves the policy alone and notes what a head would read at the trigger."""

    head: Benefit
    seen: dict[Any, np.ndarray] = field(default_factory=dict)
    name: str = "spy"
    gated: bool = True
    sites: tuple[Any, ...] = (SITE,)

    def config(self) -> dict[str, Any]:
        return {"kind": self.name}

    def act(self, vla: Any, inputs: Any, query: Query) -> Any:
        said, cache = vla.run_with_cache(inputs, names=[SITE])
        if query.triggered and query.unit not in self.seen:
            self.seen[query.unit] = self.head.row_of(cache)
        return said, ArmLog()


def test_each_triggered_unit_gives_what_was_read_at_its_trigger_and_what_acting_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("recovery_benefit", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)  # dataclasses look their module up
    spec.loader.exec_module(script)
    vla = HookedVLA.from_pretrained("mini")
    head = Benefit(SITE)
    spy = Spy(head)
    result = evaluate(
        vla,
        "libero_spatial",
        (NoEdit(), spy),
        out=tmp_path,
        tasks=(1,),
        inits=(45,),
        perturbations=("none", "noise0.3"),
        protocol=Protocol(max_steps=24, profile="fast"),
        detector=Detector(Clock(2), 0.5, "clock"),
    )
    assert all(row["triggered"] for row in result.folder.rows())
    twins = script.twin_gains(script.Settings(run=tmp_path, arm="spy"), vla, head)
    assert len(twins) == len(spy.seen) == 2
    for twin in twins:
        np.testing.assert_allclose(twin.row, spy.seen[twin.unit], atol=1e-6)
        assert twin.gain == 0
    assert not np.allclose(twins[0].row, twins[1].row)
