"""Steering directions: planted concepts are found, units mean what they say, leaks are refused, zero is nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Site
from mist_interp.data.activation_set import ActivationSet
from mist_interp.data.records import Unit
from mist_interp.steering import SteeringDirection
from mist_interp.tracing.edits import Edit
from mist_interp.tracing.interventions import load_edits, save_edits

SITE = Site("blocks.3.hook_resid_post")
WIDTH = 24
LAYOUT = TokenLayout.build([9, 7], n_images=2, grid=(2, 2), use_proprio=True)


def rows(mean: np.ndarray, n: int, *, task: int = 0, first_init: int = 0, seed: int = 0) -> ActivationSet:
    x = np.random.default_rng(seed).normal(size=(n, WIDTH)) + mean
    units = tuple(Unit("libero_spatial", task, first_init + i) for i in range(n))
    return ActivationSet(x, units, SITE)


def joined(*parts: ActivationSet) -> ActivationSet:
    units = tuple(unit for part in parts for unit in part.units)
    return replace(parts[0], x=np.concatenate([part.x for part in parts]), units=units)


def axis(place: int) -> np.ndarray:
    return np.eye(WIDTH)[place]


@dataclass
class FakeVLA:
    """Applies its edits to one tensor, newest last, as the real one does."""

    live: list[Any] = field(default_factory=list)

    @contextmanager
    def hooks(self, *pairs: Any) -> Iterator[None]:
        self.live.extend(pairs)
        try:
            yield
        finally:
            for pair in pairs:
                self.live.remove(pair)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        for edit in self.live:
            values = Edit(SITE, edit, edit.tokens).apply(values, 0, LAYOUT)
        return values


@pytest.fixture
def direction() -> SteeringDirection:
    return SteeringDirection.from_contrast(
        rows(2 * axis(5), 400), rows(np.zeros(WIDTH), 400, first_init=1000, seed=1), within_task=False
    )


def test_a_planted_concept_is_found(direction: SteeringDirection) -> None:
    assert direction.vector[5] / direction.norm > 0.98


def test_one_unit_is_one_standard_deviation_of_the_training_projection() -> None:
    pos, neg = rows(2 * axis(5), 500), rows(np.zeros(WIDTH), 500, seed=1)
    direction = SteeringDirection.from_contrast(pos, neg)
    # Two unit Gaussians whose means are 2 apart have together a standard deviation of sqrt(1 + 1).
    assert direction.norm == pytest.approx(np.sqrt(2.0), rel=0.05)
    projected = direction.project(np.concatenate([pos.x, neg.x]))
    assert np.std(projected) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_unit_follows_the_scale_of_the_layer(scale: float) -> None:
    pos, neg = rows(2 * axis(5), 200), rows(np.zeros(WIDTH), 200, seed=1)
    small = SteeringDirection.from_contrast(pos, neg)
    large = SteeringDirection.from_contrast(replace(pos, x=pos.x * scale), replace(neg, x=neg.x * scale))
    assert large.norm == pytest.approx(scale * small.norm, rel=1e-4)


def test_within_task_ignores_what_only_tells_the_task() -> None:
    """Successes are mostly task 0 and failures mostly task 1, and the tasks differ hugely along axis 9."""
    pos = joined(rows(axis(5), 300), rows(axis(5) + 50 * axis(9), 30, task=1, seed=1))
    neg = joined(rows(0 * axis(5), 30, seed=2), rows(50 * axis(9), 300, task=1, seed=3))
    across = SteeringDirection.from_contrast(pos, neg, within_task=False)
    within = SteeringDirection.from_contrast(pos, neg)
    assert abs(across.vector[9]) / across.norm > 0.99
    assert within.vector[5] / within.norm > 0.8 and abs(within.vector[9]) / within.norm < 0.3


def test_no_task_with_both_kinds_is_an_error() -> None:
    with pytest.raises(ValueError, match="within a task"):
        SteeringDirection.from_contrast(rows(axis(1), 5), rows(axis(2), 5, task=1))


def test_episodes_of_the_evaluation_are_refused() -> None:
    pos, neg = rows(axis(5), 10), rows(0 * axis(5), 10, first_init=10)
    fresh = [Unit("libero_spatial", 0, 40), Unit("libero_spatial", 1, 3), Unit("libero_object", 0, 3)]
    SteeringDirection.from_contrast(pos, neg, evaluation=fresh)
    for seen in (Unit("libero_spatial", 0, 3), Unit("libero_spatial", 0, 13, simulator_seed=5, policy_seed=7)):
        with pytest.raises(ValueError, match=f"task 0 init {seen.init_state}"):
            SteeringDirection.from_contrast(pos, neg, evaluation=[*fresh, seen])
        with pytest.raises(ValueError, match="training and in the evaluation"):
            SteeringDirection.from_contrast(pos, neg).check_disjoint([seen])


def test_a_combination_remembers_all_episodes() -> None:
    a = SteeringDirection.from_contrast(rows(axis(5), 10), rows(0 * axis(5), 10))
    b = SteeringDirection.from_contrast(rows(axis(5), 10, first_init=50), rows(0 * axis(5), 10, first_init=60, seed=1))
    with pytest.raises(ValueError, match="init 55"):
        (0.5 * a - b).check_disjoint([Unit("libero_spatial", 0, 55)])
    with pytest.raises(ValueError, match="init 3"):
        SteeringDirection.random(like=-a / 3, seed=0).check_disjoint([Unit("libero_spatial", 0, 3)])


def test_incomparable_or_empty_sets_are_errors() -> None:
    pos, neg = rows(axis(5), 10), rows(0 * axis(5), 10)
    with pytest.raises(ValueError, match="site"):
        SteeringDirection.from_contrast(pos, replace(neg, site=Site("blocks.2.hook_resid_post")))
    with pytest.raises(ValueError, match="flat"):
        SteeringDirection.from_contrast(replace(pos, pool="flat"), replace(neg, pool="flat"))
    with pytest.raises(ValueError, match="0 negative"):
        SteeringDirection.from_contrast(pos, neg.where(np.zeros(10, dtype=bool)))
    with pytest.raises(ValueError, match="no length"):
        SteeringDirection.from_contrast(pos, pos)


# -- the scope


def test_zero_is_exactly_no_steering(direction: SteeringDirection) -> None:
    vla = FakeVLA()
    for coef in (0, 0.0, -0.0):
        with direction.scope(vla, coef):
            assert vla.live == []


@given(coef=st.floats(-10, 10).filter(lambda c: abs(c) > 1e-3), tokens=st.sampled_from(["action_read", "wrist", "all"]))
@settings(max_examples=25, deadline=None)
def test_steering_moves_the_selected_tokens_by_that_many_units(coef: float, tokens: str) -> None:
    direction = SteeringDirection(SITE, torch.tensor(1.5 * axis(5), dtype=torch.float32), tokens)
    vla, values = FakeVLA(), torch.randn(2, LAYOUT.length, WIDTH)
    with direction.steer(vla, coef):
        steered = vla(values)
    mask = LAYOUT.mask(tokens)
    assert torch.equal(steered[~mask], values[~mask])
    moved = (steered - values)[mask]
    np.testing.assert_allclose(direction.project(moved.numpy()), coef, rtol=1e-4, atol=1e-4)
    # The mean over the tokens, which is what a probe reads, moves by the same.
    read = steered[0][mask[0]].mean(0) - values[0][mask[0]].mean(0)
    np.testing.assert_allclose(direction.project(read[None].numpy()), coef, rtol=1e-4, atol=1e-4)


def test_scopes_add_up_and_leave_nothing_behind(direction: SteeringDirection) -> None:
    vla, values = FakeVLA(), torch.randn(2, LAYOUT.length, WIDTH)
    with pytest.raises(RuntimeError), direction.scope(vla, 1.0), direction.scope(vla, 2.0):
        shift = (vla(values) - values)[LAYOUT.mask("action_read")]
        torch.testing.assert_close(shift, (3 * direction.vector).expand_as(shift), atol=1e-4, rtol=1e-4)
        raise RuntimeError
    assert vla.live == [] and torch.equal(vla(values), values)


def test_low_precision_is_kept(direction: SteeringDirection) -> None:
    vla = FakeVLA()
    with direction.scope(vla, 1.0):
        assert vla(torch.zeros(2, LAYOUT.length, WIDTH, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_bad_coefficient_or_width_is_an_error(direction: SteeringDirection) -> None:
    vla = FakeVLA()
    with pytest.raises(ValueError, match="finite"), direction.scope(vla, float("nan")):
        pass
    with direction.scope(vla, 1.0), pytest.raises(ValueError, match="8 wide"):
        vla(torch.zeros(2, LAYOUT.length, 8))


def test_the_edit_of_a_scope_can_be_written_down(direction: SteeringDirection, tmp_path: Path) -> None:
    vla = FakeVLA()
    with direction.scope(vla, -2.0):
        assert vla.live == [direction.edit(-2.0)] != [direction.edit(2.0)]
        save_edits(tmp_path / "edits", vla.live)
    assert load_edits(tmp_path / "edits") == [direction.edit(-2.0)]


# -- algebra, placebo, files


def test_algebra(direction: SteeringDirection) -> None:
    other = SteeringDirection.random(like=direction, seed=3)
    torch.testing.assert_close((2 * direction - other / 4).vector, 2 * direction.vector - other.vector / 4)
    assert direction.cosine(-direction) == pytest.approx(-1) and direction.cosine(3 * direction) == pytest.approx(1)
    assert (2 * direction).unit != direction.unit
    with pytest.raises(ValueError, match="different places"):
        direction + replace(direction, tokens="vision")
    with pytest.raises(ValueError, match="different places"):
        direction.cosine(replace(direction, site=Site("blocks.2.hook_resid_post")))


def test_random_has_the_same_length_and_place_and_another_direction(direction: SteeringDirection) -> None:
    placebos = [SteeringDirection.random(like=direction, seed=seed) for seed in range(200)]
    assert all(p.norm == pytest.approx(direction.norm, rel=1e-5) for p in placebos)
    assert all((p.site, p.tokens, p.unit) == (direction.site, direction.tokens, direction.unit) for p in placebos)
    cosines = np.array([direction.cosine(p) for p in placebos])
    assert abs(cosines.mean()) < 0.1 and np.std(cosines) == pytest.approx(1 / np.sqrt(WIDTH), rel=0.25)
    assert torch.equal(placebos[3].vector, SteeringDirection.random(like=direction, seed=3).vector)


def test_a_direction_survives_being_saved(direction: SteeringDirection, tmp_path: Path) -> None:
    direction.save(tmp_path / "d")
    again = SteeringDirection.load(tmp_path / "d")
    assert torch.equal(again.vector, direction.vector)
    for name in ("site", "tokens", "unit", "trained_on"):
        assert getattr(again, name) == getattr(direction, name)
    assert json.dumps(again.source) == json.dumps(direction.source) and "versions" in again.source
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["direction.json", "direction.safetensors"]


def test_loading_nothing_or_the_future_is_an_error(direction: SteeringDirection, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"direction\.json"):
        SteeringDirection.load(tmp_path)
    direction.save(tmp_path)
    path = tmp_path / "direction.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(ValueError, match="format 9"):
        SteeringDirection.load(tmp_path)
