"""Gate and arms in real LIBERO: equal triggers in all arms, what each does from its trigger on, NaN as an error."""

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("libero")

from mist_interp.evaluation import NoEdit, Protocol, evaluate
from mist_interp.evaluation.arms import ActionCorrection, Mist, SafeStop
from mist_interp.evaluation.gate import Gate
from mist_interp.models.random import random_policy
from mist_interp.tracing.hooked import HookedVLA

pytestmark = pytest.mark.sim


class FromTheSecondQuery:
    """Flags dz from the second query on; a stand-in for a predictor that remembers."""

    outputs = ("dx", "dz")
    sites = (("resid_post", 1),)

    trained_on: frozenset[Any] = frozenset()

    def start(self) -> int:
        return 0

    def step(self, cache: Any, state: int) -> tuple[np.ndarray, int]:
        return np.array([0.1, 0.2 + 0.5 * (state > 0)]), state + 1

    def config(self) -> dict[str, Any]:
        return {"script": True}

    def check_units(self, units: Any) -> None:
        pass


class Broken(Mist):
    """An edit that is not a number."""

    def _edit(self, meant: Any, *others: Any) -> Any:
        return meant * np.nan, ("dz",)


def test_all_arms_share_their_triggers_and_act_from_there(tmp_path: Any) -> None:
    mist = Mist(size=0.05)
    done = evaluate(
        HookedVLA(random_policy(0).requires_grad_(False)),
        "libero_spatial",
        (NoEdit(), SafeStop(), mist, ActionCorrection(mist), Broken(name="broken")),
        out=tmp_path / "run",
        tasks=(0,),
        inits=(0,),
        protocol=Protocol(max_steps=24, resolution=64),
        detector=Gate(FromTheSecondQuery(), 0.5),
    )
    rows = {row["arm"]: row for row in done.folder.rows()}
    assert {arm: row["status"] for arm, row in rows.items()} == {
        "none": "ok",
        "safe-stop": "ok",
        "mist": "ok",
        "action-correction": "ok",
        "broken": "error",
    }
    assert "FloatingPointError" in rows["broken"]["error"]
    tables = {p.arm: done.folder.queries(p) for p in done.folder.plan() if p.arm != "broken"}
    for arm, table in tables.items():
        assert table["fired"].tolist() == [False, True, True], arm
        assert table["state_hash"][:2].tolist() == tables["none"]["state_hash"][:2].tolist(), arm
        assert json.loads(table["details"][1])["gate"]["on"] == ["dz"]
    assert set(tables["none"]["edit"]) == {""}
    stopped = np.stack(tables["safe-stop"]["executed"][1])
    before = np.stack(tables["none"]["executed"][0])[-1]
    assert not stopped[:, :6].any() and (stopped[:, 6] == before[6]).all()
    details = json.loads(tables["mist"]["details"][1])
    realised, wanted = (details[name][0][2] for name in ("realised", "wanted"))
    assert details["flagged"] == ["dz"] and realised == pytest.approx(wanted, rel=0.2)
    assert json.loads(tables["mist"]["details"][2])["gain"] != 1.0 and tables["mist"]["edit_norm"][1] > 0
    shift = np.stack(tables["action-correction"]["chunk"][1]) - np.stack(tables["none"]["chunk"][1])
    assert np.abs(shift[:, [0, 1, 3, 4, 5, 6]]).max() < 1e-9 < np.abs(shift[:, 2]).min()
