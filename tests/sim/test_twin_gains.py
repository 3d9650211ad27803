"""The heads that foresee a benefit are fitted on what the gate saw when its alarm came on: in real LIBERO."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("libero")

from test_twin_worlds import Clock

from mist_interp.data.records import Unit
from mist_interp.evaluation import Detector, NoEdit, Protocol, evaluate
from mist_interp.evaluation.arms import ArmLog, Query
from mist_interp.evaluation.plan import PlannedEpisode
from mist_interp.probing.benefit import Benefit
from mist_interp.tracing.hooked import HookedVLA

pytestmark = pytest.mark.sim

SCRIPTS = Path(__file__).parents[2] / "experiments" / "recovery"
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


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    return loaded("choice", monkeypatch)


def test_each_triggered_unit_gives_what_was_read_at_its_trigger_and_what_became_of_it(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    ended = script.finished(result.folder)
    twins = list(script.at_triggers(result.folder, ended, vla, head))
    assert len(twins) == len(spy.seen) == 2
    for one in twins:
        np.testing.assert_allclose(one.row, spy.seen[one.unit], atol=1e-6)
        assert {arm: row["arm"] for arm, row in one.ends.items()} == {"none": "none", "spy": "spy"}
        assert one.ends["none"]["prefix_hash"] == one.ends["spy"]["prefix_hash"]
        assert one.gain("spy", contact=0.9) == 0
    assert not np.allclose(twins[0].row, twins[1].row)
    pool, one = script.environments(result.folder, "libero_spatial"), twins[1]
    trigger = one.ends["none"]["trigger_query"]
    rows, asked = loaded("contrast", monkeypatch).read_at(
        pool.get(one.unit), result.folder.record(one.ends["spy"]), range(trigger + 1), vla, vla.site(SITE)
    )
    pool.close()
    np.testing.assert_allclose(rows[trigger], one.row, atol=1e-6)
    assert len(rows) == len(asked) == trigger + 1 > 1 and not np.allclose(rows[0], rows[trigger], atol=1e-3)


def test_a_failure_and_a_contact_go_wrong_and_units_without_every_arm_are_left_out(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = [(success, contact) for success in (True, False) for contact in (False, True)]
    loss = [script.wrong({"success": success, "collision_1n": contact}, 0.9) for success, contact in kinds]
    assert loss == [0, 0.9, 1, 1.9]
    units = [Unit("libero_spatial", 0, init) for init in (4, 5)]
    plan = [PlannedEpisode(unit, arm) for unit in units for arm in ("none", "up")]
    rows = [{**one.as_row(), "status": "ok" if one.key != plan[3].key else "error"} for one in plan]
    folder = SimpleNamespace(path=tmp_path, plan=lambda: plan, rows=lambda: rows)
    assert list(script.finished(folder)) == units[:1]
    assert "1 units without an episode of every arm are left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no unit with an episode of each of none, up"):
        script.finished(SimpleNamespace(path=tmp_path, plan=lambda: plan, rows=lambda: rows[:1]))
