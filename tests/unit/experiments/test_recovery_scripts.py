"""The study of recovery: every arm of its lists can be made, and its tables say what the twins say."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mist_interp.core.names import Site
from mist_interp.evaluation.arm_texts import parse_arm
from mist_interp.probing import Deviation

SCRIPTS = Path(__file__).resolve().parents[3] / "experiments" / "recovery"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(SCRIPTS))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    return load


def test_every_arm_of_the_lists_can_be_made_and_has_a_name_of_its_own(script: Any, tmp_path: Path) -> None:
    arms = script("arms")
    width = len(Deviation("resid_post").tokens) * 4
    stored = Deviation(("resid_post", 2))
    stored.site_, stored.source_, stored.trained_on_ = Site("blocks.2.hook_resid_post"), {}, frozenset()
    stored.mean_, stored.scale_ = np.zeros(width), np.ones(width)
    stored.weights_, stored.intercept_ = np.zeros((14, width)), np.zeros(14)
    stored.save(tmp_path / "deviation")
    settings = arms.Settings(fit=tmp_path)
    mist = arms.edit(settings)
    listed = [mist, *({**mist, "kind": kind} for kind in (*arms.PLACEBOS, "action-correction"))]
    made = [parse_arm(one) for one in [*listed, {"kind": "sham-triggers", "arm": mist, "of": "results"}]]
    made += [parse_arm(one) for one in arms.ablations(settings, mist)[2:]]
    names = [arm.name for arm in made]
    assert len(set(names)) == len(names) == 7 + 12
    assert made[0].dims == ("dx", "dy", "dz", "gripper") and made[0].target.segments == 2


def test_the_main_table_has_counts_beside_the_rates_and_a_dash_where_nothing_can_be_said(script: Any) -> None:
    tables = script("tables")
    rate = {"value": 0.5, "low": 0.25, "high": 1.0}
    nothing = {"value": None, "low": None, "high": None}
    facts = {"recovered": 2, "bad_under_reference": 4, "harmed": 0, "good_under_reference": 0}
    facts |= {"causal_recovery": rate, "harm_rate": nothing}
    arm = {"metrics": dict.fromkeys(tables.SHOWN, rate), "edited_query_share": 0.25}
    summary = {"labels": {"success_rate": "SR"}, "arms": {"none": arm, "mist": arm}}
    summary["twins"] = {"arms": {"mist": dict.fromkeys(tables.OUTCOMES, facts)}}
    table = tables.main_table(summary)
    assert table.loc["mist", "SR"] == "50 (25–100)" and table.loc["none", "failure: causal RR"] == "–"
    assert (
        table.loc["mist", "failure: causal RR"] == "2/4 50 (25–100)" and table.loc["mist", "failure: harm"] == "0/0 –"
    )
    assert tables.draw(summary["twins"]).axes[0].get_yticklabels()[0].get_text() == "mist"


def test_what_is_fitted_on_calibrated_on_chosen_on_and_judged_on_are_different_start_states(script: Any) -> None:
    fit, runs = script("fit").Settings(), (SCRIPTS / "run.sh").read_text()
    spans = [set(range(*fit.train)), set(range(*fit.calibrate))]
    for pattern in (r"evaluated ablations (\d+)-(\d+)", r"INITS:-(\d+)-(\d+)"):
        first, last = (int(number) for number in re.search(pattern, runs).groups())  # type: ignore[union-attr]
        spans.append(set(range(first, last + 1)))
    assert len(set.union(*spans)) == sum(map(len, spans)) and len(spans[-1]) >= 20
    assert script("tutor").Settings().inits == script("arms").Settings().train == fit.train
