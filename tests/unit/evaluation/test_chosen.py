"""The choice among arms, on a real (random) network: whose turn it is, for how long, and what is refused."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site
from mist_interp.data.records import Unit
from mist_interp.evaluation.arm_texts import parse_arms
from mist_interp.evaluation.arms import Chosen, Mist, Query, ShamTriggers
from mist_interp.probing.benefit import Benefit, TwinGain
from mist_interp.tracing.hooked import HookedVLA

UNIT = Unit("libero_spatial", 0, 0)
UP, LEFT = Mist(size=0.02, name="up"), Mist(wanted="shift", shift={"dy": 0.02}, size=1, name="left")


@dataclass
class Expected:
    """A benefit that says what it is told to, and from how much on that is enough."""

    gain: float
    limit: float = 0.0
    sites: tuple[Any, ...] = (("resid_post", 0),)

    def of(self, cache: Any) -> float:
        assert self.sites[0] in cache or cache is None
        return self.gain

    def allows(self, gain: float) -> bool:
        return gain > self.limit

    def config(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def check_units(self, units: Any) -> None:
        raise ValueError("taught the benefit")


def query(index: int, fired: bool, memory: dict[str, Any]) -> Query:
    one = Query(UNIT, index, 8 * index, {}, "pick up the black bowl", memory=memory)
    return replace(one, fired=fired, triggered=fired, flagged=("dz",) if fired else ())


@pytest.mark.parametrize(
    ("gains", "limits", "chosen"),
    [
        ((0.2, 0.1), (0, 0), "up"),
        ((0.2, 0.3), (0, 0), "left"),
        ((0.2, 0.3), (0, 0.4), "up"),
        ((-1, -1), (0, 0), "none"),
    ],
)
def test_the_arm_of_the_largest_expected_gain_acts_if_it_is_allowed(
    vla: HookedVLA, inputs: PolicyInputs, gains: tuple[float, float], limits: tuple[float, float], chosen: str
) -> None:
    heads = [Expected(gain, limit) for gain, limit in zip(gains, limits, strict=True)]
    arm = Chosen(((UP, heads[0]), (LEFT, heads[1])))
    chunk, log = arm.act(vla, inputs, query(2, True, {}))
    assert log.details["chosen"] == chosen and log.details["expected"] == dict(zip(("up", "left"), gains, strict=True))
    alone = {"up": UP, "left": LEFT}.get(chosen)
    expected = alone.act(vla, inputs, query(2, True, {}))[0] if alone else vla(inputs)
    assert torch.equal(chunk.values, expected.values)
    assert (log.edit, log.edit_norm > 0) == (("chosen", True) if alone else ("", False))


def test_the_choice_holds_for_the_episode_and_is_made_where_the_gate_opens(
    vla: HookedVLA, inputs: PolicyInputs
) -> None:
    first, second = Expected(1.0), Expected(0.5)
    arm, memory = Chosen(((UP, first), (LEFT, second))), dict[str, Any]()
    before = arm.act(vla, inputs, query(0, False, memory))[1]
    assert before.edit == "" and "chosen" not in before.details
    assert arm.act(vla, inputs, query(1, True, memory))[1].details["chosen"] == "up"
    first.gain, second.gain = 0.0, 9.0
    later = arm.act(vla, inputs, query(2, True, memory))[1]
    assert later.edit and later.details["flagged"] == ["dz"] and "chosen" not in later.details
    assert arm.act(vla, inputs, query(3, False, memory))[1].edit == ""
    assert arm.act(vla, inputs, query(2, True, {}))[1].details["chosen"] == "left"  # another episode


def test_a_sham_of_a_choice_chooses_where_it_acts(vla: HookedVLA, inputs: PolicyInputs) -> None:
    sham = ShamTriggers(Chosen(((UP, Expected(1.0)),)), rate=1.0)
    memory: dict[str, Any] = {}
    log = sham.act(vla, inputs, replace(query(0, False, memory), nearest="dz"))[1]
    assert log.details["chosen"] == "up" and log.edit == "chosen"


def test_what_cannot_be_chosen_among_is_refused() -> None:
    good = Expected(1.0)
    for among in ((), ((UP, good), (replace(LEFT, name="up"), good)), ((replace(UP, name="none"), good),)):
        with pytest.raises(ValueError, match="different names"):
            Chosen(among)
    with pytest.raises(ValueError, match="too late for up"):
        Chosen(((replace(UP, when="always"), good),))
    with pytest.raises(ValueError, match="taught the benefit"):
        Chosen(((UP, good),)).check_units([UNIT])


def test_it_is_read_from_a_file_and_says_what_it_is(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    twins = [TwinGain(Unit("libero_spatial", 0, place), draw.normal(size=4), place % 3 - 1) for place in range(40)]
    head = Benefit(("resid_post", 0)).fit(twins[:20], Site("blocks.0.hook_resid_post")).calibrate(twins[20:], 0.3)
    head.save(tmp_path / "up")
    option = {"kind": "mist", "size": 0.3, "name": "up", "benefit": str(tmp_path / "up")}
    placebo = {**option, "kind": "random-direction"}
    listed = [{"kind": "chosen", "among": [one], "name": name} for one, name in ((option, "real"), (placebo, "sham"))]
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(listed))
    real, sham = parse_arms([str(tmp_path / "arms.yaml")])
    assert (real.name, real.gated, "placebo" in real.config()) == ("real", True, False)
    assert sham.config()["placebo"] and real.config()["among"][0]["benefit"] == head.config()
    with pytest.raises(ValueError, match="init 3"):
        real.check_units([Unit("libero_spatial", 0, 3)])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="benefit: FOLDER"):
        parse_arms(["chosen:among=mist"])
