"""A planted direction is found by every way to make one, with the sign that is promised."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from mist_interp.core.names import Site
from mist_interp.data.activation_set import ActivationSet
from mist_interp.data.records import Unit
from mist_interp.steering import SteeringDirection
from mist_interp.steering.components import principal_component

SITE = Site("blocks.3.hook_resid_post")
WIDTH = 12
PLANTED = np.random.default_rng(99).normal(size=WIDTH)
PLANTED /= np.linalg.norm(PLANTED)


def rows(x: np.ndarray, first_init: int = 0, tasks: int = 1) -> ActivationSet:
    units = tuple(Unit("libero_spatial", k % tasks, first_init + k // tasks) for k in range(len(x)))
    return ActivationSet(x, units, SITE)


def noise(n: int, seed: int, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width))


def kinds(n: int = 300, strength: float = 2.0) -> tuple[ActivationSet, ActivationSet]:
    return rows(noise(n, 0) + strength * PLANTED), rows(noise(n, 1), first_init=1000)


def along(direction: SteeringDirection, vector: np.ndarray = PLANTED) -> float:
    return float(direction.vector.double().numpy() @ vector / direction.norm / np.linalg.norm(vector))


def varying(seed: int = 0) -> ActivationSet:
    """Rows that vary most along the planted direction."""
    return rows(noise(200, seed) + 4 * np.outer(noise(200, seed + 1, 1)[:, 0], PLANTED))


MADE: dict[str, Callable[..., SteeringDirection]] = {
    "contrast": lambda **o: SteeringDirection.from_contrast(*kinds(), **o),
    "lda": lambda **o: SteeringDirection.from_lda(*kinds(), **o),
    "pca": lambda **o: SteeringDirection.from_pca(varying(), **o),
    "pca of differences": lambda **o: SteeringDirection.from_pca(*pairs(), **o),
}


def pairs(sign: float = 1.0) -> tuple[ActivationSet, ActivationSet]:
    base = 5 * noise(150, 7)
    strength = 2 + 0.5 * noise(150, 8, 1)[:, 0]
    return rows(base + sign * np.outer(strength, PLANTED) + 0.5 * noise(150, 9)), rows(base)


@pytest.mark.parametrize("way", MADE)
def test_the_planted_direction_is_found_and_has_a_unit_and_a_past(way: str) -> None:
    made = MADE[way]()
    assert abs(along(made)) > 0.95
    if way != "pca":
        assert along(made) > 0, "towards the positive kind"
    sets = {"pca": (varying(),), "pca of differences": pairs()}.get(way, kinds())
    x = np.concatenate([one.x for one in sets])
    assert np.std(made.project(x)) == pytest.approx(1.0, rel=1e-5)
    assert made.source["method"] and made.source["versions"] and made.source["pool"] == "mean"
    assert made.trained_on == frozenset(state for one in sets for state in one.start_states)


@pytest.mark.parametrize("way", MADE)
def test_episodes_of_the_evaluation_are_refused_by_every_way(way: str) -> None:
    MADE[way](evaluation=[Unit("libero_spatial", 0, 5000)])
    with pytest.raises(ValueError, match="task 0 init 17"):
        MADE[way](evaluation=[Unit("libero_spatial", 0, 17, policy_seed=3)])


def test_making_directions_needs_no_tracing_backend() -> None:
    code = "import sys, mist_interp.steering.making, mist_interp.probing; print('nnsight' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# -- discriminant


def test_a_discriminant_looks_past_what_varies_anyway() -> None:
    """The kinds differ a little along axis 0 and more along axis 1, where rows vary hugely."""
    spread = np.ones(WIDTH)
    spread[1] = 30.0
    shift = np.zeros(WIDTH)
    shift[:2] = 1.0, 4.0
    pos, neg = rows(noise(600, 0) * spread + shift), rows(noise(600, 1) * spread, first_init=1000)
    lda, contrast = SteeringDirection.from_lda(pos, neg, shrinkage=0.0), SteeringDirection.from_contrast(pos, neg)
    assert along(lda, np.eye(WIDTH)[0]) > 0.9 and along(contrast, np.eye(WIDTH)[1]) > 0.8
    all_of_it = SteeringDirection.from_lda(pos, neg, shrinkage=1.0)
    assert all_of_it.cosine(contrast) == pytest.approx(1.0, abs=1e-6)
    assert SteeringDirection.from_lda(pos, neg).source["shrinkage"] < 0.2


def test_it_is_scikit_learns_discriminant() -> None:
    pos, neg = rows(noise(80, 0) + PLANTED), rows(2 * noise(120, 1), first_init=1000)
    ours = SteeringDirection.from_lda(pos, neg, shrinkage=0.0)
    x, y = np.concatenate([pos.x, neg.x]), np.repeat([1, 0], [80, 120])
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y).coef_[0]
    assert along(ours, theirs) == pytest.approx(1.0, abs=1e-6)


def test_it_sees_no_tasks() -> None:
    """Kinds are unequally spread over two tasks that differ hugely along axis 9."""
    offset = 40 * np.eye(WIDTH)[9]
    x = noise(800, 3)
    task = np.repeat([0, 1, 0, 1], [300, 100, 100, 300])
    positive = np.repeat([True, False], 400)
    x = x + np.outer(task, offset) + 2 * np.outer(positive, PLANTED)
    sets = []
    for kind in (True, False):
        chosen = positive == kind
        units = tuple(Unit("libero_spatial", int(t), 1000 * (not kind) + k) for k, t in enumerate(task[chosen]))
        sets.append(ActivationSet(x[chosen], units, SITE))
    assert along(SteeringDirection.from_lda(*sets, shrinkage=0.5)) > 0.95
    assert along(SteeringDirection.from_lda(*sets, shrinkage=0.5, within_task=False)) < 0.9


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_discriminant_separates_the_same_in_any_coordinates(seed: int) -> None:
    rng = np.random.default_rng(seed)
    linear = rng.normal(size=(WIDTH, WIDTH)) + 3 * np.eye(WIDTH)
    if np.linalg.cond(linear) > 1e3:
        return
    offset = rng.normal(size=WIDTH)
    pos, neg = kinds(60)
    plain = SteeringDirection.from_lda(pos, neg, shrinkage=0.0)
    moved = [replace(one, x=one.x @ linear.T + offset) for one in (pos, neg)]
    other = SteeringDirection.from_lda(*moved, shrinkage=0.0)
    a = plain.project(np.concatenate([pos.x, neg.x]))
    b = other.project(np.concatenate([one.x for one in moved]))
    np.testing.assert_allclose(a - a.mean(), b - b.mean(), atol=1e-3)


def test_too_few_rows_need_shrinkage() -> None:
    pos, neg = rows(noise(5, 0) + PLANTED), rows(noise(5, 1), first_init=1000)
    assert np.isfinite(SteeringDirection.from_lda(pos, neg).norm)
    with pytest.raises(ValueError, match="shrinkage above 0"):
        SteeringDirection.from_lda(pos, neg, shrinkage=0.0)
    for wrong in (1.5, "ledoit"):
        with pytest.raises(ValueError, match="auto"):
            SteeringDirection.from_lda(pos, neg, shrinkage=wrong)


# -- principal components


@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
@settings(max_examples=25, deadline=None)
def test_a_component_does_not_care_about_order_place_or_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    made = varying(seed)
    plain = SteeringDirection.from_pca(made)
    x = scale * (made.x[rng.permutation(len(made))] + 10 * rng.normal(size=WIDTH))
    other = SteeringDirection.from_pca(replace(made, x=x))
    assert along(other, plain.vector.double().numpy()) == pytest.approx(1.0, abs=1e-5), "sign included"
    assert other.norm == pytest.approx(scale * plain.norm, rel=1e-4)
    vector = plain.vector.numpy()
    assert vector[np.abs(vector).argmax()] > 0


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_a_component_of_differences_turns_with_the_space(seed: int) -> None:
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(WIDTH, WIDTH)))[0]
    after, before = pairs()
    plain = SteeringDirection.from_pca(after, before)
    turned = SteeringDirection.from_pca(*(replace(one, x=one.x @ turn.T) for one in (after, before)))
    assert along(turned, turn @ plain.vector.double().numpy()) == pytest.approx(1.0, abs=1e-5)


def test_differences_keep_what_all_pairs_have_in_common_and_its_sign() -> None:
    """All pairs differ by the same: centred, there would be nothing left but noise."""
    base = noise(60, 0)
    after = rows(base + 3 * PLANTED + 0.1 * noise(60, 1))
    assert along(SteeringDirection.from_pca(after, rows(base))) > 0.99
    assert along(SteeringDirection.from_pca(rows(base), after)) < -0.99
    assert along(SteeringDirection.from_pca(*pairs(sign=-1.0))) < -0.95


def test_later_components_are_orthogonal_and_explain_less() -> None:
    made = [SteeringDirection.from_pca(varying(), component=k) for k in range(3)]
    assert abs(made[0].cosine(made[1])) < 1e-5 and abs(made[1].cosine(made[2])) < 1e-5
    shares = [one.source["explained"] for one in made]
    assert shares[0][0] > 0.5 > shares[1][0] >= shares[2][0] and shares[0][1] == pytest.approx(shares[1][0])
    with pytest.raises(ValueError, match="component 12"):
        SteeringDirection.from_pca(varying(), component=12)
    with pytest.raises(ValueError, match="so many directions"):
        SteeringDirection.from_pca(rows(noise(5, 0)), component=4)  # five centred rows span four


def test_few_wide_rows_give_the_same_component() -> None:
    x = noise(8, 0, 30)
    wide, _ = principal_component(x, 1)
    vectors = np.linalg.svd(x)[2]
    assert abs(wide @ vectors[1]) == pytest.approx(1.0, abs=1e-9)


def test_components_see_no_tasks() -> None:
    x = varying().x + 50 * np.outer(np.arange(200) % 2, np.eye(WIDTH)[4])
    made = rows(x, tasks=2)
    assert abs(along(SteeringDirection.from_pca(made))) > 0.95
    assert abs(along(SteeringDirection.from_pca(made, within_task=False), np.eye(WIDTH)[4])) > 0.95


def test_rows_that_are_no_pairs_are_refused() -> None:
    after, before = pairs()
    with pytest.raises(ValueError, match="150 and 149 rows"):
        SteeringDirection.from_pca(after, before.where(np.arange(150) > 0))
    with pytest.raises(ValueError, match=r"150 rows are no pairs, .* row 0"):
        SteeringDirection.from_pca(after, replace(before, units=before.units[1:] + before.units[:1]))
    with pytest.raises(ValueError, match="site"):
        SteeringDirection.from_pca(after, replace(before, site=Site("blocks.2.hook_resid_post")))
