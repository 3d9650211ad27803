"""Arms as data, on texts and files; arms on a real (random) network, at given queries."""

import json
from dataclasses import asdict, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mist_interp.core.actions import ACTION_NAMES, ActionChunk
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site
from mist_interp.data.activation_set import ActivationSet
from mist_interp.data.records import Unit
from mist_interp.evaluation import arm_texts
from mist_interp.evaluation.arm_texts import kinds, parse_arm, parse_arms
from mist_interp.evaluation.arms import (
    ActionCorrection,
    ConceptNeurons,
    FailsafeStyle,
    GenericSlow,
    LearnedDirections,
    Mist,
    NoEdit,
    Query,
    SafeStop,
    ShamTriggers,
    placebo,
)
from mist_interp.evaluation.arms.motion import action_scale
from mist_interp.evaluation.folder import ResultsFolder
from mist_interp.probing.deviation import Deviation
from mist_interp.steering.direction import SIGMA, STATE, SteeringDirection
from mist_interp.tracing.hooked import HookedVLA

UNIT = Unit("libero_spatial", 0, 0)
DIM = {name: place for place, name in enumerate(ACTION_NAMES)}


@pytest.fixture(scope="module")
def seen(vla: HookedVLA, inputs: PolicyInputs) -> dict[str, Any]:
    clean, cache = vla.run_with_cache(inputs, names=[("resid_post", -2)])
    return {"clean": clean, "cache": cache}


def query(**changes: Any) -> Query:
    return replace(Query(UNIT, 3, 24, {}, "pick up the black bowl", memory={}), **changes)


def alarmed(seen: dict[str, Any], **changes: Any) -> Query:
    return query(**{"fired": True, "triggered": True, "flagged": ("dz",), **seen, **changes})


def shift(chunk: ActionChunk, seen: dict[str, Any]) -> torch.Tensor:
    return (chunk.normalized - seen["clean"].normalized)[0].double().mean(0)


# -- as data -------------------------------------------------------------------------------------------------------

TEXTS = {
    "none": {},
    "safe-stop:when=fired": {"when": "fired"},
    "generic-slow:factor=0.3,name=slow": {"factor": 0.3, "name": "slow"},
    "failsafe-style:up=0.5,queries=3": {"up": 0.5, "queries": 3},
    "mist:layer=2,size=0.3,steps=0+1,dims=dx+dz,hold=no,gains=0.8+1.5": {
        "layer": 2,
        "size": 0.3,
        "steps": [0, 1],
        "dims": ["dx", "dz"],
        "hold": False,
        "gains": [0.8, 1.5],
    },
    "mist:wanted=shift,shift=dx:1+dz:-0.5": {"wanted": "shift", "shift": {"dx": 1, "dz": -0.5}},
    "action-correction:size=0.3": {"size": 0.3},
    "random-direction:seed=4": {"seed": 4},
    "reversed": {},
    "wrong-dimension:wanted=brake": {"wanted": "brake"},
    "noise:adapt=false": {"adapt": False},
    "sham-triggers:arm=mist:size=0.3,rate=0.2": {"arm": {"kind": "mist", "size": 0.3}, "rate": 0.2},
    "concept-neurons:neurons=2.17+3.40,value=2": {"neurons": [[2, 17], [3, 40]], "value": 2},
}


@pytest.mark.parametrize("text", TEXTS)
def test_an_arm_is_the_same_from_a_text_from_yaml_and_from_its_file(text: str, tmp_path: Path) -> None:
    kind = text.partition(":")[0]
    arm = parse_arm(text)
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump([text, {"kind": kind, **TEXTS[text]}]))
    first, second = parse_arms([str(tmp_path / "arms.yaml")])
    config = json.loads(json.dumps(arm.config(), allow_nan=False))
    assert arm.config() == first.config() == second.config() and (first.name, second.name) == (arm.name, arm.name)
    assert config["kind"] == kind and isinstance(arm.gated, bool)
    changed = parse_arm({"kind": "mist", "size": 0.31}) if kind != "mist" else parse_arm("mist")
    assert changed.config() != arm.config()


def test_every_mandatory_arm_of_a_main_table_has_a_name_of_its_own() -> None:
    names = "none safe-stop generic-slow mist failsafe-style random-direction sham-triggers reversed action-correction"
    assert [parse_arm(name).name for name in names.split()] == names.split()
    assert [parse_arm(name).gated for name in names.split()] == [name != "sham-triggers" for name in names.split()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mst", "did you mean 'mist'"),
        ("mist:sice=1", "did you mean 'size'"),
        ("mist:size", "write size=value"),
        ("mist:size=big", "size='big' does not work"),
        ("mist:size=nan", "finite"),
        ("mist:dims=dxx", "did you mean 'dx'"),
        ("mist:steps=1.5", "whole number"),
        ("mist:wanted=retret", "did you mean 'retreat'"),
        ("mist:wanted=shift", "belong together"),
        ("mist:shift=dx:1", "belong together"),
        ("mist:wanted=shift,shift=dxx:1", "did you mean 'dx'"),
        ("mist:wanted=shift,shift=dx:inf", "finite numbers"),
        ("mist:wanted=shift,shift=dx", "does not work"),
        ("mist:wanted=shift,shift=dx:1+dx:2", "named twice"),
        ("mist:when=fird", "did you mean 'fired'"),
        ("mist:gains=2+3", "around 1"),
        ("generic-slow:factor=2", "from 0 to 1"),
        ("steer:coef=1", "needs direction, as in"),
        ("concept-neurons", "needs neurons, as in"),
        ("random-direction:coef=2", "no meaning"),
        ("sham-triggers:rate=2", "probability"),
        ("failsafe-style:queries=0", "queries >= 1"),
        ("learned:probe=nowhere", "nowhere"),
        ("learned", "mode=add takes probe=FOLDER"),
        ("learned:mode=replace", "mode=replace takes safe=FOLDER"),
        ("learned:mode=replace,safe=nowhere", "nowhere has no folders, one per output"),
    ],
)
def test_wrong_texts_say_what_is_possible(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_arm(text)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("mist: {size: 1}")
    with pytest.raises(ValueError, match="list of arms"):
        parse_arms([str(tmp_path / "a.yaml")])
    with pytest.raises(ValueError, match="has no kind"):
        parse_arm({"size": 1})
    with pytest.raises(FileNotFoundError):
        parse_arms([str(tmp_path / "b.yaml")])


def backwards(speed: float = 1.0, label: str = "") -> GenericSlow:
    return GenericSlow(speed, name=label or "backwards")


def test_another_package_brings_an_arm_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("backwards", f"{__name__}:backwards", arm_texts.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: backwards)
    monkeypatch.setattr(arm_texts, "entry_points", lambda group: [point] if group == arm_texts.GROUP else [])
    arm = parse_arm("backwards:speed=0.25,label=b")
    assert isinstance(arm, GenericSlow) and (arm.factor, arm.name) == (0.25, "b") and "backwards" in kinds()


# -- doing nothing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "safe-stop",
        "generic-slow",
        "failsafe-style",
        "mist",
        "action-correction",
        "noise",
        "concept-neurons:neurons=1.1,when=fired",
    ],
)
def test_without_a_trigger_an_arm_is_none_bit_for_bit(vla: HookedVLA, inputs: PolicyInputs, text: str) -> None:
    chunk, log = parse_arm(text).act(vla, inputs, query())
    assert torch.equal(chunk.values, NoEdit().act(vla, inputs, query())[0].values) and log.edit == ""


@pytest.mark.parametrize("text", ["mist:size=0", "generic-slow:factor=1", "action-correction:size=0"])
def test_an_arm_of_no_strength_is_none_bit_for_bit(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any], text: str
) -> None:
    chunk, log = parse_arm(text).act(vla, inputs, alarmed(seen))
    assert chunk is seen["clean"] and log.edit == ""


# -- changing the action ---------------------------------------------------------------------------------------------


def test_safe_stop_holds_pose_and_gripper_from_the_trigger_on(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any]
) -> None:
    for last, gripper in ((None, -1), (np.array([0.3, 0, 0, 0, 0, 0, 1.0]), 1), (np.array([0.3] + [0] * 5 + [-1]), -1)):
        chunk, log = SafeStop().act(vla, inputs, query(**seen, triggered=True, last_action=last))
        sent = chunk.to_env()[0]
        assert float(sent[:, :6].abs().max()) == 0 and set(sent[:, 6].tolist()) == {gripper} and log.edit == "safe-stop"
        again = vla.policy.as_chunk(chunk.normalized)
        assert torch.allclose(again.values, chunk.values, atol=1e-6)


def test_generic_slow_scales_motion_and_not_the_gripper(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any]
) -> None:
    chunk, _ = GenericSlow(0.25).act(vla, inputs, alarmed(seen))
    assert torch.allclose(chunk.values[..., :6], 0.25 * seen["clean"].values[..., :6])
    assert torch.equal(chunk.values[..., 6], seen["clean"].values[..., 6])


def test_the_script_retreats_hands_back_and_does_not_begin_again_at_once(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any]
) -> None:
    arm, memory = FailsafeStyle(up=0.5, back=0.2, queries=2, pause=1), {}
    held = np.array([0, 0, 0, 0, 0, 0, 1.0])

    def at(index: int, fired: bool) -> tuple[ActionChunk, str]:
        asked = query(**seen, index=index, fired=fired, memory=memory, last_action=held)
        chunk, log = arm.act(vla, inputs, asked)
        return chunk, log.edit

    assert at(0, False)[1] == ""
    chunk, name = at(1, True)
    assert name == "failsafe-style" and chunk.to_env()[0, 0].tolist() == pytest.approx([-0.2, 0, 0.5, 0, 0, 0, 1])
    assert [at(index, True)[1] != "" for index in (2, 3, 4, 5, 6)] == [True, False, True, True, False]
    empty = query(**seen, fired=True, last_action=held, observation={"robot0_gripper_qpos": np.array([0.001, -0.001])})
    assert float(arm.act(vla, inputs, empty)[0].to_env()[0, 0, 6]) == -1


# -- changing activations ----------------------------------------------------------------------------------------------


def test_mist_moves_what_is_flagged_against_its_motion_and_logs_it(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any]
) -> None:
    chunk, log = Mist(size=0.02).act(vla, inputs, alarmed(seen, flagged=("dz", "dyaw")))
    moved, motion = shift(chunk, seen), seen["clean"].values[0].mean(0)
    for name in ACTION_NAMES:
        place, wanted = DIM[name], -0.02 * float(motion[DIM[name]].sign()) if name in ("dz", "dyaw") else 0.0
        assert float(moved[place]) == pytest.approx(wanted, abs=0.001)
        assert log.details["wanted"][0][place] == pytest.approx(wanted)
    assert log.details["realised"][0] == pytest.approx(moved.tolist(), rel=1e-4)
    assert log.details["predicted"][0] == pytest.approx(log.details["wanted"][0], abs=1e-5)
    assert log.edit == "mist" and log.edit_norm > 0 and json.dumps(log.details)
    assert vla.edits() == ()


@pytest.mark.parametrize("kind", ["", "wrong-dimension", "random-direction"])
def test_an_edit_that_holds_nothing_predicts_what_it_moves_alone(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any], kind: str
) -> None:
    real = Mist(size=0.02, hold=False)
    log = (placebo(real, kind) if kind else real).act(vla, inputs, alarmed(seen))[1]
    predicted, realised = log.details["predicted"][0], log.details["realised"][0]
    if kind == "wrong-dimension":  # its edit is one for other dimensions, so it needs their derivative as well
        assert None not in predicted and log.details["moved"] != ["dz"]
    else:
        assert [ACTION_NAMES[place] for place, value in enumerate(predicted) if value is not None] == ["dz"]
    known = [(one, other) for one, other in zip(predicted, realised, strict=True) if one is not None]
    assert known == [(pytest.approx(other, abs=0.002), other) for _, other in known]
    assert json.dumps(log.details, allow_nan=False)


def test_mist_looks_itself_where_no_detector_has(vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any]) -> None:
    mine, theirs = (
        Mist(size=0.02, when="always").act(vla, inputs, one)[0] for one in (query(flagged=("dz",)), alarmed(seen))
    )
    assert torch.equal(mine.values, theirs.values)


def test_braking_takes_a_share_of_the_motion(vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any]) -> None:
    chunk, log = Mist(size=0.1, wanted="brake").act(vla, inputs, alarmed(seen))
    before, after = (float(one.values[0, :, DIM["dz"]].mean()) for one in (seen["clean"], chunk))
    assert after == pytest.approx(0.9 * before, rel=0.02) and log.details["flagged"] == ["dz"]


def test_the_wrong_dimensions_of_a_shift_get_its_amounts(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any]
) -> None:
    real = Mist(size=1.0, wanted="shift", shift={"dx": 0.02, "dy": -0.01})
    chunk, log = placebo(real, "wrong-dimension").act(vla, inputs, alarmed(seen))
    moved, others = shift(chunk, seen), log.details["moved"]
    assert len(others) == 2 and not {"dx", "dy", "dz"} & set(others)  # dz is flagged
    first, second = (float(moved[DIM[other]]) for other in others)
    assert first > 0 > second and first == pytest.approx(-2 * second, rel=0.2)
    assert float(moved[[DIM["dx"], DIM["dy"]]].abs().max()) < 0.2 * first


def test_a_shift_is_the_same_whatever_moves_and_whatever_is_flagged(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any]
) -> None:
    chunk, log = Mist(size=0.5, wanted="shift", shift={"dx": 0.04, "dy": -0.02}).act(vla, inputs, alarmed(seen))
    wanted = [0.02, -0.01, 0, 0, 0, 0, 0]
    assert log.details["wanted"] == [wanted] and log.details["flagged"] == ["dx", "dy"]
    assert shift(chunk, seen).tolist() == [pytest.approx(one, abs=0.001) for one in wanted]


def test_the_gain_follows_the_measured_effect_within_the_episode_and_its_bounds(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, asked = Mist(size=0.02, gains=(0.5, 2.0)), alarmed(seen)
    arm.act(vla, inputs, asked)
    assert asked.memory["gain"] == pytest.approx(1, abs=0.06)
    wanted = torch.tensor([[0, 0, 0.1, 0, 0, 0, 0]]).double()
    assert arm._next_gain(1.0, wanted, 0.8 * wanted) == pytest.approx(1.25)
    assert arm._next_gain(1.0, wanted, 0.1 * wanted) == 1.5 and arm._next_gain(1.8, wanted, 0.1 * wanted) == 2.0
    assert arm._next_gain(1.0, wanted, -wanted) == 1.5 and arm._next_gain(0.6, wanted, 9 * wanted) == 0.5
    asked.memory["gain"] = 2.0
    twice = arm.act(vla, inputs, asked)[1]
    assert twice.details["gain"] == 2.0 and twice.details["predicted"][0][2] == pytest.approx(
        2 * twice.details["wanted"][0][2]
    )
    assert "gain" not in alarmed(seen).memory  # another episode


@pytest.mark.parametrize("kind", ["random-direction", "noise", "reversed", "wrong-dimension"])
def test_a_placebo_keeps_the_norm_of_the_edit_whose_gain_follows_its_effect(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any], kind: str
) -> None:
    real = Mist(size=0.5, gains=(0.25, 4.0))
    mine, theirs = alarmed(seen), alarmed(seen)
    norms = [(real.act(vla, inputs, mine)[1], placebo(real, kind).act(vla, inputs, theirs)[1]) for _ in range(3)]
    assert mine.memory["gain"] == theirs.memory["gain"] != 1.0
    for edit, instead in norms:
        assert instead.edit_norm == pytest.approx(edit.edit_norm, rel=1e-3)


@pytest.mark.parametrize("kind", ["random-direction", "noise", "reversed", "wrong-dimension"])
def test_placebos_have_the_norm_of_the_edit_and_do_something_else(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any], kind: str
) -> None:
    real = Mist(size=0.02)
    sham = placebo(real, kind)
    norm = real.act(vla, inputs, alarmed(seen))[1].edit_norm
    chunk, log = sham.act(vla, inputs, alarmed(seen))
    assert log.edit_norm == pytest.approx(norm, rel=1e-4) and log.edit == kind and sham.config()["placebo"]
    moved, wanted = shift(chunk, seen), log.details["wanted"][0]
    if kind == "reversed":
        assert float(moved[DIM["dz"]]) == pytest.approx(-wanted[DIM["dz"]], rel=0.1)
    else:
        assert abs(float(moved[DIM["dz"]])) < 0.5 * 0.02
    if kind == "wrong-dimension":
        (other,) = log.details["moved"]
        assert other != "dz" and abs(float(moved[DIM[other]])) > 0.5 * float(moved.abs().max())
    again = sham.act(vla, inputs, alarmed(seen))[0]
    assert torch.equal(again.values, chunk.values)  # drawn from unit and seed, from nothing else
    later = sham.act(vla, inputs, alarmed(seen, index=4))[0]
    assert torch.equal(later.values, chunk.values) == (kind != "noise")
    elsewhere = sham.act(vla, inputs, alarmed(seen, unit=Unit("libero_spatial", 0, 1)))[0]
    assert torch.equal(elsewhere.values, chunk.values) == (kind == "reversed") or kind == "wrong-dimension"


def test_action_correction_shifts_the_flagged_dimension_by_what_mist_realises(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any]
) -> None:
    real = Mist(size=0.2)
    by_mist = shift(real.act(vla, inputs, alarmed(seen))[0], seen)
    chunk, log = ActionCorrection(real).act(vla, inputs, alarmed(seen))
    each = (chunk.normalized - seen["clean"].normalized)[0].double()
    assert torch.allclose(each[:, DIM["dz"]], by_mist[DIM["dz"]].expand(len(each)), atol=1e-5)
    assert float(each[:, [place for name, place in DIM.items() if name != "dz"]].abs().max()) < 1e-6
    assert log.edit == "action-correction" and log.edit_norm == 0


def test_action_correction_shifts_all_dimensions_where_the_edit_holds_none(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any]
) -> None:
    real = Mist(size=0.2, hold=False)
    by_mist = shift(real.act(vla, inputs, alarmed(seen))[0], seen)
    chunk = ActionCorrection(real).act(vla, inputs, alarmed(seen))[0]
    each = (chunk.normalized - seen["clean"].normalized)[0].double()
    assert int((by_mist.abs() > 1e-4).sum()) > 3
    assert torch.allclose(each, by_mist.expand_as(each), atol=1e-5)


def test_an_edit_that_is_not_a_number_is_an_error_and_not_an_action(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mist, "_edit", lambda self, meant, *_: (meant * np.nan, ("dz",)))
    with pytest.raises(FloatingPointError, match="NaN"):
        Mist(size=0.02).act(vla, inputs, alarmed(seen))


def test_neurons_are_overwritten_at_every_token_and_only_they(vla: HookedVLA, inputs: PolicyInputs) -> None:
    arm = ConceptNeurons(((1, 5), (1, 2), (3, 7)), 2.5)
    with vla.hooks(*arm.edits()):
        _, cache = vla.run_with_cache(inputs, names="mlp.post")
    _, before = vla.run_with_cache(inputs, names="mlp.post")
    now, then = (one["mlp.post", 1].detach().as_subclass(torch.Tensor) for one in (cache, before))
    assert bool((now[..., [2, 5]] == 2.5).all()) and torch.equal(now[..., 6:], then[..., 6:])
    assert bool((cache["mlp.post", 3].detach().as_subclass(torch.Tensor)[..., 7] == 2.5).all())
    chunk, log = arm.act(vla, inputs, query())
    assert log.edit_norm > 0 and not torch.equal(chunk.values, vla(inputs).values)


@pytest.mark.parametrize("mode", ["add", "clamp", "project_out", "replace"])
def test_learned_directions_act_on_what_is_flagged(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any], mode: str
) -> None:
    site, draw = Site("blocks.2.hook_resid_post"), torch.Generator().manual_seed(0)
    unit = STATE if mode == "replace" else SIGMA
    made = {name: SteeringDirection(site, torch.randn(64, generator=draw), unit=unit) for name in ("dx", "dz")}
    arm = LearnedDirections(made, mode, coef=1.5, high=-1.0)
    _, log = arm.act(vla, inputs, alarmed(seen, flagged=("dz", "dyaw")))
    assert log.details["flagged"] == ["dz"] and len(log.details["changes"]) == 1 and len(arm.edits()) == 2
    with vla.hooks(arm.edit("dz")):
        _, cache = vla.run_with_cache(inputs, names=[site], tokens="action_read")
    _, before = vla.run_with_cache(inputs, names=[site], tokens="action_read")
    now, then = (one[site].detach().as_subclass(torch.Tensor)[0] for one in (cache, before))
    vector = made["dz"].vector
    along = now @ vector / vector.norm() ** 2
    expected = {
        "add": torch.allclose(now, then - 1.5 * vector, atol=1e-5),
        "clamp": bool((along <= -1 + 1e-4).all()),
        "project_out": bool((along.abs() < 1e-5).all()),
        "replace": torch.allclose(now, vector.expand_as(now)),
    }
    assert expected[mode]
    assert arm.act(vla, inputs, alarmed(seen, flagged=("dy",)))[0] is seen["clean"]
    with pytest.raises(UnknownName, match="did you mean 'clamp'"):
        LearnedDirections(made, "clmp")
    with pytest.raises(ValueError, match=f"mode={'add' if mode == 'replace' else 'replace'} with dx="):
        LearnedDirections(made, "add" if mode == "replace" else "replace")


def test_the_mean_of_safe_states_is_kept_and_read_by_an_arm(tmp_path: Path) -> None:
    rows, units = np.random.default_rng(0).normal(size=(5, 64)), [Unit("libero_spatial", 3, init) for init in range(5)]
    safe = ActivationSet(rows, tuple(units), Site("blocks.2.hook_resid_post"), "proprio")
    state = SteeringDirection.mean_state(safe)
    np.testing.assert_allclose(state.vector.numpy(), rows.mean(axis=0), rtol=1e-5)
    assert state.source["rows"] == 5 and state.trained_on == safe.start_states and state.tokens == "proprio"
    with pytest.raises(ValueError, match="libero_spatial"):
        SteeringDirection.mean_state(safe, evaluation=units[:1])
    state.save(tmp_path / "dz")
    arm = parse_arm(f"learned:mode=replace,safe={tmp_path}")
    assert isinstance(arm, LearnedDirections) and list(arm.directions) == ["dz"]
    assert torch.equal(arm.directions["dz"].vector, state.vector) and arm.directions["dz"].tokens == "proprio"
    with pytest.raises(ValueError, match="libero_spatial"):
        arm.check_units(units)


# -- at random times -------------------------------------------------------------------------------------------------


def test_shams_act_as_often_as_none_was_alarmed_at_times_of_the_unit(tmp_path: Path) -> None:
    for init in range(6):
        acted(tmp_path, Unit("s", 0, init), "none", [""] * 20, [place < init for place in range(20)])
    arm = ShamTriggers(GenericSlow(), of=tmp_path)
    times = [arm.times(Unit("s", 0, init)) for init in range(6)]
    assert [len(one) for one in times] == list(range(6)) and max(max(one, default=0) for one in times) < 20
    assert times == [arm.times(Unit("s", 0, init)) for init in range(6)]
    assert times != [ShamTriggers(GenericSlow(), of=tmp_path, seed=1).times(Unit("s", 0, init)) for init in range(6)]
    with pytest.raises(ValueError, match="run the arm none first"):
        arm.times(Unit("s", 0, 9))


def test_no_sham_draws_a_time_that_the_untouched_policy_did_not_live_to_see(tmp_path: Path) -> None:
    units = [Unit("s", 0, init) for init in range(20)]
    for unit in units:
        acted(tmp_path, unit, "none", [""] * 4, [False] * 4)
        acted(tmp_path, unit, "strong", ["strong"] * 2 + [""] * 18, [True] * 20)
    times = [ShamTriggers(GenericSlow(), of=tmp_path, like="strong").times(unit) for unit in units]
    assert {len(one) for one in times} == {2} and frozenset().union(*times) == {0, 1, 2, 3}
    acted(tmp_path, units[0], "strong", ["strong"] * 9, [True] * 9)  # more than it had: as many as it can
    assert ShamTriggers(GenericSlow(), of=tmp_path, like="strong").times(units[0]) == frozenset(range(9))


def acted(folder: Path, unit: Unit, arm: str, edits: list[str], fired: list[bool]) -> None:
    """A finished episode of an arm, with the edit and the gate of each query; triggered from the first alarm on."""
    row = {"key": f"{arm}/{unit.key}", "arm": arm, **asdict(unit), "status": "ok"}
    both = enumerate(zip(edits, fired, strict=True))
    queries = [
        {
            "query": place,
            "edit": edit,
            "edit_norm": 0.25 * (place + 1) if edit else 0.0,
            "fired": fire,
            "triggered": any(fired[: place + 1]),
        }
        for place, (edit, fire) in both
    ]
    ResultsFolder(folder).store(row, queries)


def test_a_yoked_arm_acts_at_the_very_queries_of_another(tmp_path: Path) -> None:
    unit, other = Unit("s", 0, 0), Unit("s", 0, 1)
    acted(tmp_path, unit, "strong", ["", "", "strong", "", "strong", ""], [False, False, True, True, True, False])
    acted(tmp_path, other, "strong", [""] * 4, [False] * 4)
    yoked = ShamTriggers(Mist(placebo="noise"), of=tmp_path, like="strong", exact=True)
    assert yoked.times(unit) == {2, 4} and yoked.times(other) == frozenset() and yoked.gated
    counted = replace(yoked, exact=False)
    assert yoked.config() != counted.config() and counted.config()["counts"] == "as strong" and not counted.gated
    with pytest.raises(ValueError, match="run the arm none first"):
        counted.times(unit)
    with pytest.raises(ValueError, match="run the arm absent first"):
        replace(yoked, like="absent").times(unit)


@pytest.mark.parametrize("kind", ["random-direction", "wrong-dimension", "reversed", "noise"])
@pytest.mark.parametrize(
    "real",
    [
        Mist(size=0.02, adapt=False),
        Mist(size=0.02, adapt=False, wanted="brake", generic=True, dims=("dx", "dy", "dz"), hold=False),
        Mist(size=1.0, adapt=False, wanted="shift", shift={"dy": -0.02, "dz": 0.01}),
    ],
    ids=lambda real: real.wanted,
)
def test_a_yoked_placebo_is_as_long_as_what_was_done_there(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any], tmp_path: Path, real: Mist, kind: str
) -> None:
    acted(tmp_path, UNIT, "strong", ["", "", "strong", "strong"], [False, False, True, True])
    yoked, memory = ShamTriggers(placebo(real, kind), of=tmp_path, like="strong", exact=True), {}
    norms = [yoked.act(vla, inputs, alarmed(seen, index=index, memory=memory))[1].edit_norm for index in range(5)]
    assert norms == [0, 0, pytest.approx(0.75, rel=1e-3), pytest.approx(1.0, rel=1e-3), 0]
    drawn, memory = ShamTriggers(placebo(real, kind), of=tmp_path, like="strong"), {}
    acted(tmp_path, UNIT, "none", [""] * 4, [False] * 4)
    norms = [drawn.act(vla, inputs, alarmed(seen, index=index, memory=memory))[1].edit_norm for index in range(4)]
    own = real.act(vla, inputs, alarmed(seen))[1].edit_norm
    assert sorted(norms) == [0, 0, *[pytest.approx(own, rel=1e-3)] * 2]


def test_nothing_is_yoked_to_an_arm_that_does_not_wait_for_the_trigger(tmp_path: Path) -> None:
    acted(tmp_path, UNIT, "always", ["", "always", "always", "always"], [False, False, False, True])
    with pytest.raises(ValueError, match="always acts before the trigger"):
        ShamTriggers(GenericSlow(), of=tmp_path, like="always", exact=True).times(UNIT)
    with pytest.raises(ValueError, match="needs of=RUN"):
        ShamTriggers(GenericSlow(), exact=True)


def test_a_sham_ignores_the_alarm_and_flags_the_dimension_nearest_to_its_alarm(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any]
) -> None:
    arm, memory = ShamTriggers(Mist(size=0.02), rate=0.3), {}
    times = arm.times(UNIT)
    acted = []
    for index in range(10):
        flagged = ("dx",) if index not in times else ()
        asked = query(**seen, index=index, fired=index not in times, flagged=flagged, memory=memory)
        _, log = arm.act(vla, inputs, replace(asked, risk={"dx": 0.9, "dyaw": 0.4}, nearest="dyaw"))
        acted.append(bool(log.edit))
        assert not log.edit or log.details["flagged"] == ["dyaw"]
    assert acted == [index in times for index in range(10)] and 0 < sum(acted) < 10


# -- a learned target --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target(vla: HookedVLA) -> Deviation:
    """A read-out of the states that stands for a fitted one: two segments, every number somewhere in -0.1 to 0.1."""
    found = Deviation(("resid_post", -1), tokens=("action_read",), segments=2)
    draw, width = np.random.default_rng(0), vla.cfg.d_model
    found.mean_, found.scale_ = np.zeros(width), np.ones(width)
    found.weights_, found.intercept_ = np.zeros((14, width)), draw.uniform(0.02, 0.05, 14) * draw.choice([-1, 1], 14)
    found.site_, found.source_ = vla.site(("resid_post", -1)), {}
    found.trained_on_ = frozenset({("libero_spatial", 0, 40)})
    return found


def test_a_learned_target_moves_each_segment_of_the_chunk_as_it_says(
    vla: HookedVLA, inputs: PolicyInputs, seen: dict[str, Any], target: Deviation
) -> None:
    arm = Mist(size=0.5, wanted="learned", target=target, rounds=3, adapt=False)
    asked = query(**seen, fired=True, triggered=True, flagged=("dz", "gripper"))
    chunk, log = arm.act(vla, inputs, asked)
    moved = (chunk.normalized - seen["clean"].normalized)[0].double().unflatten(0, (2, -1)).mean(1)
    says = 0.5 * target.intercept_.reshape(2, 7)
    for name in ACTION_NAMES:
        place = DIM[name]
        expected = says[:, place] if name in ("dz", "gripper") else np.zeros(2)
        assert moved[:, place].tolist() == pytest.approx(expected.tolist(), abs=0.002)
    everything = Mist(size=0.5, wanted="learned", target=target, rounds=3, adapt=False, generic=True)
    moved = (everything.act(vla, inputs, asked)[0].normalized - seen["clean"].normalized)[0].double()
    assert moved.unflatten(0, (2, -1)).mean(1).flatten().tolist() == pytest.approx(says.flatten().tolist(), abs=0.003)
    shifted, _ = ActionCorrection(arm).act(vla, inputs, asked)
    half = vla.cfg.chunk // 2
    by = (shifted.values - seen["clean"].values)[0, :, DIM["dz"]]
    realised = torch.tensor(log.details["realised"])[:, DIM["dz"]]
    scale = float(action_scale(vla, chunk)[0][DIM["dz"]])
    assert by[:half].tolist() == pytest.approx([float(realised[0]) * scale] * half)
    assert by[half:].tolist() == pytest.approx([float(realised[1]) * scale] * half)


def test_a_learned_target_refuses_units_that_it_was_fitted_on(target: Deviation) -> None:
    learned = Mist(wanted="learned", target=target)
    for arm in (learned, ActionCorrection(learned)):
        with pytest.raises(ValueError, match="40"):
            arm.check_units([Unit("libero_spatial", 0, 40)])
        arm.check_units([Unit("libero_spatial", 0, 41)])


def test_a_learned_target_is_one_of_the_whole_chunk(target: Deviation) -> None:
    with pytest.raises(ValueError, match="leave steps out"):
        Mist(wanted="learned", target=target, steps=(0, 1))


@pytest.mark.parametrize("options", [{"wanted": "learned"}, {"rounds": 0}, {"stride": 0.0}])
def test_mist_refuses_what_it_cannot_do(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Mist(**options)
