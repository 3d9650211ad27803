"""Do records of several results answer what a result is asked, and is nothing lost in their folder?"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from small_policies import queries, small

from mist_interp.analysis.attention import Tracking, sink_view
from mist_interp.analysis.attribution import ActionAttribution, direct_action_attribution
from mist_interp.analysis.gradients import gradient_attribution
from mist_interp.analysis.lens import ActionLens, LayerResult, action_lens, logit_lens
from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.sae.effects import Ablation, DoseResponse
from mist_interp.analysis.sae.features import FeatureTable, Firing
from mist_interp.analysis.sae.quality import SaeReport
from mist_interp.analysis.sae.splicing import Splice
from mist_interp.analysis.weights import ActionReadout, composition


def numbers(**axes: list) -> Result:
    sizes = [len(labels) for labels in axes.values()]
    return Result(labelled(np.random.default_rng(0).normal(size=sizes), **axes), "share", "A test.")


def records() -> dict:
    vla = small()
    inputs = queries(vla)
    one = numbers(feature=[3, 5], dim=["dx", "dz"])
    table = FeatureTable(
        (3, 5), pd.DataFrame({"frequency": [0.1, 0.2]}), ((Firing(0, 1, 2.0, (2.0,)),), ()), ((), ()), one, one, one,
        ((), ()), ("a",),
    )  # fmt: skip
    return {
        "Tracking": Tracking(one, one, one, ("a", "b")),
        "SinkView": sink_view(vla, inputs),
        "Composition": composition(vla, draws=2),
        "ActionReadout": ActionReadout(one, one, 0.5, one),
        "DoseResponse": DoseResponse(one, one, one),
        "Ablation": Ablation(one, one, one, one),
        "SaeReport": SaeReport(0.9, 0.8, 3.0, 1, 9, 100, None, one),
        "FeatureTable": table,
        "Splice": Splice(one, one, one),
        "TokenAttribution": gradient_attribution(vla, inputs, "t0.dz"),
        "LogitLens": logit_lens(small("discrete"), queries(small("discrete"))),
    }


@pytest.fixture(scope="module")
def found() -> dict:
    return records()


@pytest.mark.parametrize(
    "name",
    ["Tracking", "SinkView", "Composition", "ActionReadout", "DoseResponse", "Ablation", "SaeReport", "FeatureTable",
     "Splice", "TokenAttribution", "LogitLens"],
)  # fmt: skip
def test_a_record_answers_as_a_result(found, name, tmp_path) -> None:
    record = found[name]
    main = record.results[record.main]
    axis, labels = next(iter(main.axes.items()))
    assert record.sel(**{axis: labels[0]}).values.equals(main.sel(**{axis: labels[0]}).values)
    assert (len(record.to_frame()) and "value" in record.to_frame()) or name == "FeatureTable"
    if name not in ("FeatureTable", "LogitLens"):  # whose `top` is something else
        assert len(record.top(2)) == 2
    if main.values.ndim < 4 or name in ("TokenAttribution", "LogitLens"):
        record.plot().canvas.draw()
    record.save(tmp_path / "r")
    for part, values in record.results.items():
        again = type(values).load(tmp_path / "r" / f"{part}.json")
        assert type(again) is type(values)
        np.testing.assert_array_equal(again.values, values.values)
    assert len(pd.read_csv(tmp_path / "r" / "rows.csv")) == len(record.to_frame())


def test_what_is_no_result_is_kept_too(found, tmp_path) -> None:
    found["SaeReport"].save(tmp_path)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["l0"] == 3.0 and facts["rows"] == 100 and facts["held_out"] is None
    found["FeatureTable"].save(tmp_path)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["top"][0][0]["value"] == 2.0 and facts["features"] == [3, 5]
    assert pd.read_csv(tmp_path / "rows.csv")["feature"].tolist() == [3, 5]


def test_a_saved_result_comes_back_as_what_it_was(tmp_path) -> None:
    vla = small()
    lens, heads = action_lens(vla, queries(vla)), direct_action_attribution(vla, queries(vla), "t0.dz")
    for result in (lens, heads):
        result.save(tmp_path / "r.json")
        again = type(result).load(tmp_path / "r.json")
        assert type(again) is type(result) and again.axes == result.axes
    assert type(Result.load(tmp_path / "r.json")) is Result
    assert ActionAttribution.load(tmp_path / "r.json").total.values.equals(heads.total.values)
    lens.save(tmp_path / "r.json")
    again = ActionLens.load(tmp_path / "r.json")
    assert again.error_to_final().values.equals(lens.error_to_final().values)
    assert LayerResult.load(tmp_path / "r.json").sel(layer=-1).values.equals(lens.sel(layer=-1).values)
