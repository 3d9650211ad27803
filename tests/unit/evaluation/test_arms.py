"""Arms on a real (random) network: edits are measured, gated and gone afterwards."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site
from mist_interp.data.plan import weights_fingerprint
from mist_interp.data.records import Unit
from mist_interp.evaluation.arms import Intervene, NoEdit, Query, Steer, fingerprint, random_direction
from mist_interp.evaluation.detector import Detector, ProbeScore
from mist_interp.evaluation.folder import ResultsFolder
from mist_interp.evaluation.subject import model_facts
from mist_interp.models.random import random_policy
from mist_interp.steering.direction import SteeringDirection
from mist_interp.tracing.hooked import HookedVLA
from mist_interp.tracing.interventions import Intervention, load_edits
from mist_interp.tracing.verbs import ablate, skip

UNIT = Unit("libero_spatial", 0, 0)


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return HookedVLA(random_policy(0).requires_grad_(False))


@pytest.fixture(scope="module")
def inputs(vla: HookedVLA) -> PolicyInputs:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 255, (64, 64, 3), generator=generator, dtype=torch.uint8).numpy()
    observation = {
        "agentview_image": image,
        "robot0_eye_in_hand_image": image[::-1].copy(),
        "robot0_eef_pos": torch.zeros(3).numpy(),
        "robot0_eef_quat": torch.tensor([0.0, 0, 0, 1]).numpy(),
        "robot0_gripper_qpos": torch.zeros(2).numpy(),
    }
    return vla.prepare(observation, "pick up the black bowl")


@pytest.fixture(scope="module")
def direction() -> SteeringDirection:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    return SteeringDirection(Site("blocks.1.hook_resid_post"), vector, trained_on=frozenset({("s", 1, 2)}))


def query(**changes: Any) -> Query:
    return replace(Query(UNIT, 0, 0, {}, "pick up the black bowl"), **changes)


def test_none_is_the_policy_itself_and_uses_the_clean_answer(vla: HookedVLA, inputs: PolicyInputs) -> None:
    chunk, log = NoEdit().act(vla, inputs, query())
    assert torch.equal(chunk.values, vla(inputs).values) and (log.edit, log.edit_norm) == ("", 0.0)
    assert NoEdit().act(vla, inputs, query(clean=chunk))[0] is chunk


def test_the_measured_norm_is_what_the_direction_adds(
    vla: HookedVLA, inputs: PolicyInputs, direction: SteeringDirection
) -> None:
    for tokens, count in (("action_read", 56), ("action_read.dz", 8), ("proprio", 1)):
        chosen = replace(direction, tokens=tokens)
        chunk, log = Steer(chosen, -1.5).act(vla, inputs, query())
        assert log.edit_norm == pytest.approx(1.5 * chosen.norm * count**0.5, rel=1e-4)
        assert not torch.equal(chunk.values, vla(inputs).values)
    assert vla.edits() == ()


def test_an_outer_edit_at_the_same_site_is_not_counted(
    vla: HookedVLA, inputs: PolicyInputs, direction: SteeringDirection
) -> None:
    alone = Steer(direction, 1.0).act(vla, inputs, query())[1].edit_norm
    with vla.hooks((direction.site, lambda x, site: x * 3)):
        assert Steer(direction, 1.0).act(vla, inputs, query())[1].edit_norm == pytest.approx(alone, rel=1e-4)


def test_a_lost_edit_would_show(vla: HookedVLA, inputs: PolicyInputs, direction: SteeringDirection) -> None:
    class Lost(SteeringDirection):
        def edit(self, coef: float = 1.0) -> Intervention:
            return super().edit(0.0)

    lost = Lost(direction.site, direction.vector)
    assert Steer(lost, 1.0).act(vla, inputs, query())[1].edit_norm == 0.0


def test_any_edits_that_are_data_make_an_arm(vla: HookedVLA, inputs: PolicyInputs) -> None:
    edits = (ablate(("z", 1), head=2, tokens="action_read"), skip(3))
    arm = Intervene(edits, name="cut")
    chunk, log = arm.act(vla, inputs, query())
    assert torch.equal(chunk.values, vla.run_with_hooks(inputs, edits).values) and vla.edits() == ()
    rows = log.details["changes"]
    assert [row["edit"].split(" ")[2] for row in rows] == [
        "blocks.1.attn.hook_z",
        "blocks.3.hook_attn_out",
        "blocks.3.hook_mlp_out",
    ]
    assert all(row["norm"] > 0 for row in rows) and rows[0]["touched"] == 56 < rows[1]["touched"] == rows[1]["tokens"]
    assert log.edit == "cut" and log.edit_norm == pytest.approx(sum(row["norm"] ** 2 for row in rows) ** 0.5)
    assert json.loads(json.dumps(arm.config()))["edits"] == [edit.to_dict() for edit in edits]
    assert Intervene(edits, "fired").act(vla, inputs, query(fired=False))[1].edit == ""
    with pytest.raises(ValueError, match="not a function"):
        Intervene((lambda x, site: x,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'always', 'fired', 'triggered'"):
        Intervene(edits, "sometimes")


def test_a_run_keeps_what_its_arms_do(tmp_path: Path, direction: SteeringDirection) -> None:
    folder = ResultsFolder(tmp_path)
    for arm in (Steer(direction, 1.5), Intervene((skip(3),), name="cut")):
        for _ in range(2):
            folder.keep_edits(arm.name, arm.edits())
    assert load_edits(tmp_path / "edits" / "steer.safetensors") == [direction.edit(1.5)]
    assert load_edits(tmp_path / "edits" / "cut.safetensors") == [skip(3)]


@pytest.mark.parametrize(
    ("when", "fired", "triggered", "live"),
    [
        ("always", False, False, True),
        ("fired", False, True, False),
        ("fired", True, True, True),
        ("triggered", False, True, True),
        ("triggered", False, False, False),
    ],
)
def test_gates(
    vla: HookedVLA,
    inputs: PolicyInputs,
    direction: SteeringDirection,
    when: str,
    fired: bool,
    triggered: bool,
    live: bool,
) -> None:
    log = Steer(direction, 1.0, when).act(vla, inputs, query(fired=fired, triggered=triggered))[1]
    assert (log.edit != "") == live and (log.edit_norm > 0) == live


def test_coefficient_zero_is_bit_identical(vla: HookedVLA, inputs: PolicyInputs, direction: SteeringDirection) -> None:
    chunk, log = Steer(direction, 0.0).act(vla, inputs, query())
    assert torch.equal(chunk.values, vla(inputs).values) and log.edit == ""


def test_the_placebo_has_the_same_norm_another_direction_and_a_seed(direction: SteeringDirection) -> None:
    one, again, two = (random_direction(direction, 2.0, seed=seed) for seed in (1, 1, 2))
    assert one.direction.norm == pytest.approx(direction.norm, rel=1e-6)
    assert abs(one.direction.cosine(direction)) < 0.5
    assert one.config() == again.config() != two.config()
    assert fingerprint(one.direction.vector) != fingerprint(two.direction.vector)


def test_units_of_the_training_are_refused(direction: SteeringDirection) -> None:
    Steer(direction).check_units([Unit("s", 1, 3)])
    with pytest.raises(ValueError, match="s"):
        Steer(direction).check_units([Unit("s", 1, 2)])


def test_detectors_fire_above_the_threshold(vla: HookedVLA, inputs: PolicyInputs) -> None:
    assert Detector(lambda v, i: 0.6, 0.5).look(vla, inputs) == (0.6, True, None)
    assert Detector(lambda v, i: 0.5, 0.5).look(vla, inputs)[1] is False, "with ties, 'at least' would fire too often"
    assert Detector(lambda v, i: 1e9, float("inf")).look(vla, inputs)[1] is False
    with pytest.raises(ValueError, match="NaN"):
        Detector(lambda v, i: float("nan"), 0.5).look(vla, inputs)


class FittedProbe:
    """What `ProbeScore` needs of a probe: the score is the mean of the row that it is given."""

    site_ = Site("blocks.1.hook_resid_post")
    tokens, pool, outputs_, trained_on_ = "action_read", "mean", ("failure", "contact"), frozenset({("s", 1, 2)})

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([rows.mean(axis=1), rows.max(axis=1)], axis=1)


def test_a_probe_scores_the_unedited_pass_where_it_was_fitted(
    vla: HookedVLA, inputs: PolicyInputs, direction: SteeringDirection
) -> None:
    detector = Detector(ProbeScore(FittedProbe(), "contact"), threshold=0.0)
    score, _, clean = detector.look(vla, inputs)
    _, cache = vla.run_with_cache(inputs, names=[("resid_post", 1)], tokens="action_read")
    expected = float(cache["resid_post", 1].as_subclass(torch.Tensor)[0].mean(dim=0).max())
    assert score == pytest.approx(expected, rel=1e-5)
    assert torch.equal(clean.values, vla(inputs).values)
    assert detector.config()["output"] == "contact" and detector.config()["site"] == "blocks.1.hook_resid_post"
    with pytest.raises(ValueError):
        detector.check_units([Unit("s", 1, 2)])
    with pytest.raises(ValueError, match="failure, contact"):
        ProbeScore(FittedProbe())
    with pytest.raises(UnknownName, match="contact"):
        ProbeScore(FittedProbe(), "contacts")


def test_model_facts_name_the_weights(vla: HookedVLA) -> None:
    facts = model_facts(vla)
    assert facts["dtype"] == "float32" and facts["device"] == "cpu" and facts["attention"]
    assert facts["weights"] == weights_fingerprint(random_policy(0)) != weights_fingerprint(random_policy(1))


def test_model_facts_name_what_was_chosen_at_loading() -> None:
    policy = random_policy(0)
    (key,) = policy.config.norm_stats
    chosen = {"unnorm_key": key, "num_images": "2", "use_proprio": "True", "chunk": "8", "center_crop": "True"}
    assert chosen.items() <= model_facts(HookedVLA(policy)).items()
    policy.config.norm_stats["other"] = policy.config.norm_stats[key]
    policy.unnorm_key, policy.revision = "other", "0123abc"
    policy.processor = replace(policy.processor, center_crop=False)
    changed = model_facts(HookedVLA(policy))
    assert changed.items() >= {"unnorm_key": "other", "revision": "0123abc", "center_crop": "False"}.items()
    assert changed["weights"] == model_facts(HookedVLA(random_policy(0)))["weights"]


def test_one_changed_value_in_a_small_tensor_changes_the_fingerprint() -> None:
    policy = random_policy(0)
    before = weights_fingerprint(policy)
    with torch.no_grad():
        policy.language_model.model.norm.weight[3] += 1e-3
    assert weights_fingerprint(policy) != before


def test_an_arm_says_whether_it_waits_for_the_trigger(direction: SteeringDirection) -> None:
    waits = {when: Steer(direction, 1.0, when).gated for when in ("always", "fired", "triggered")}
    assert waits == {"always": False, "fired": True, "triggered": True}
    assert {when: Intervene((skip(0),), when).gated for when in waits} == waits
    assert NoEdit().gated
