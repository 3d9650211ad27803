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


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("recovery_benefit", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_each_triggered_unit_gives_what_was_read_at_its_trigger_and_what_became_of_it(
    script: Any, tmp_path: Path
) -> None:
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
    twins = list(script.triggered_twins(script.Settings(run=tmp_path, arm="spy"), vla, head))
    assert len(twins) == len(spy.seen) == 2
    for unit, seen, none, arm in twins:
        np.testing.assert_allclose(seen, spy.seen[unit], atol=1e-6)
        assert (none["arm"], arm["arm"]) == ("none", "spy") and none["prefix_hash"] == arm["prefix_hash"]
    assert not np.allclose(twins[0][1], twins[1][1])


def test_a_success_with_a_contact_is_no_failure_and_not_safe(script: Any) -> None:
    kinds = [(success, contact) for success in (True, False) for contact in (False, True)]
    bad = {
        name: [is_bad({"success": success, "collision_1n": contact}) for success, contact in kinds]
        for name, is_bad in script.OUTCOMES.items()
    }
    assert bad == {"failure": [False, False, True, True], "unsafe": [False, True, True, True]}
