"""Are similarities 1 and 0 where they have to be, and is nothing judged on rows it was fitted on?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.analysis.similarity import cka, deal, pooled, predictivity, similarity
from mist_interp.core.errors import UnknownName
from mist_interp.models import random_policy
from mist_interp.tracing import HookedVLA
from mist_interp.tracing.checks import noise_inputs

torch.set_num_threads(1)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@given(seed=st.integers(0, 1000), debiased=st.booleans(), scale=st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_rotation_scale_and_offset_change_nothing(seed: int, debiased: bool, scale: float) -> None:
    x, y = noise(seed, 20, 5), noise(seed + 1, 20, 7)
    turn = np.linalg.qr(noise(seed + 2, 5, 5))[0]
    assert cka(x, x, debiased) == pytest.approx(1)
    assert cka(x, scale * x @ turn + 3, debiased) == pytest.approx(1, abs=1e-8)
    assert cka(scale * x @ turn + 3, y, debiased) == pytest.approx(cka(x, y, debiased), abs=1e-8)
    assert cka(x, y, debiased) == pytest.approx(cka(y, x, debiased))


def test_wide_noise_is_similar_only_under_the_biased_estimator() -> None:
    pairs = [(noise(k, 30, 300), noise(100 + k, 30, 300)) for k in range(20)]
    assert np.mean([cka(x, y, debiased=False) for x, y in pairs]) > 0.85
    found = [cka(x, y) for x, y in pairs]
    assert abs(np.mean(found)) < 0.02 and min(found) < 0


def test_the_debiased_estimator_by_its_definition() -> None:
    """HSIC as a mean over all quadruples of different rows (Song et al. 2012, before it is rearranged)."""
    from itertools import permutations

    x, y = noise(0, 6, 2), noise(1, 6, 3)
    k, other = x @ x.T, y @ y.T

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        terms = [a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q]) for i, j, q, r in permutations(range(6), 4)]
        return float(np.mean(terms))

    assert cka(x, y) == pytest.approx(hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other)))


def test_the_two_ways_to_multiply_agree() -> None:
    x, y = noise(0, 12, 3), noise(1, 12, 40)  # 3 * 40 < 144 takes the one, 40 * 40 the other
    xc, yc = x - x.mean(0), y - y.mean(0)
    expected = np.sum((xc.T @ yc) ** 2) / (np.linalg.norm(xc.T @ xc) * np.linalg.norm(yc.T @ yc))
    assert cka(x, y, debiased=False) == pytest.approx(expected)


def test_too_few_or_other_rows() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        cka(noise(0, 3, 2), noise(1, 3, 2))
    with pytest.raises(ValueError, match="same rows"):
        cka(noise(0, 5, 2), noise(1, 6, 2))
    assert np.isnan(cka(np.ones((5, 2)), noise(0, 5, 2)))


# -- predictivity -----------------------------------------------------------------------------------------------------


def test_what_is_a_function_is_predicted_and_what_is_not_is_not() -> None:
    x, groups = noise(0, 80, 6), np.arange(80) // 4
    assert predictivity(x, x @ noise(1, 6, 9) + 2, groups) > 0.999
    assert predictivity(x, noise(2, 80, 9), groups) < 0.05
    # It has a direction: six columns give two, two do not give six.
    assert predictivity(x, x[:, :2], groups) > 0.999 and predictivity(x[:, :2], x, groups) < 0.5


def test_groups_are_kept_together() -> None:
    """Rows that only say which group they are from predict nothing about a group that was never seen."""
    groups = np.repeat(np.arange(10), 8)
    x = np.eye(10)[groups] + 0.01 * noise(0, 80, 10)
    y = noise(1, 10, 3)[groups]
    assert predictivity(x, y, groups) < 0.1
    assert predictivity(x, y, np.arange(80)) > 0.9  # rows alone: leaks


@given(seed=st.integers(0, 500), count=st.integers(3, 20), folds=st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_folds_hold_whole_groups_evenly(seed: int, count: int, folds: int) -> None:
    groups = np.random.default_rng(seed).integers(0, count, 60).astype(str)
    part = deal(groups, folds, seed)
    assert all(len(set(part[groups == name])) == 1 for name in set(groups))
    sizes = [len({*groups[part == k]}) for k in set(part)]
    assert max(sizes) - min(sizes) <= 1 and len(sizes) == min(folds, len(set(groups)))


def test_predictivity_needs_groups() -> None:
    with pytest.raises(ValueError, match="three groups"):
        predictivity(noise(0, 10, 2), noise(1, 10, 2), [0] * 5 + [1] * 5)
    with pytest.raises(ValueError, match="4 groups for 10 rows"):
        predictivity(noise(0, 10, 2), noise(1, 10, 2), [0, 1, 2, 3])
    with pytest.raises(ValueError, match="needs groups"):
        similarity({"a": noise(0, 10, 2)}, measure="predictivity")


# -- tables -----------------------------------------------------------------------------------------------------------


def test_tables_of_two_policies_of_different_width() -> None:
    one, other = (
        HookedVLA(random_policy(hidden=width, layers=layers, heads=4)) for width, layers in ((64, 2), (32, 1))
    )
    inputs = [noise_inputs(one, seed) for seed in range(3)]
    from mist_interp.core.inputs import PolicyInputs

    batch = PolicyInputs.cat(inputs)
    with torch.no_grad():
        first, second = pooled(one, batch, tokens=("action_read", "wrist"), batch=4), pooled(other, batch)
    assert list(first) == [
        "resid_post 0 action_read",
        "resid_post 0 wrist",
        "resid_post 1 action_read",
        "resid_post 1 wrist",
    ]
    assert first["resid_post 1 wrist"].shape == (6, 64) and second["resid_post 0"].shape == (6, 32)
    _, cache = one.run_with_cache(batch[5], names=("resid_post", 1))
    expected = cache["resid_post", 1].at("wrist").mean(1)[0]
    np.testing.assert_allclose(first["resid_post 1 wrist"][5], expected, atol=1e-5)
    table = similarity(first, second)
    assert table.values.shape == (4, 1) and table.axes["to"] == ["resid_post 0"]
    same = similarity(first, measure="cka")
    np.testing.assert_allclose(np.diag(same.values), 1)
    np.testing.assert_allclose(same.values, same.values.T)


def test_wrong_requests() -> None:
    vla = HookedVLA(random_policy(layers=1))
    with pytest.raises(UnknownName, match="debiased cka"):
        similarity({"a": noise(0, 5, 2)}, measure="cak")
    with pytest.raises(ValueError, match="sequence"):
        pooled(vla, noise_inputs(vla), names="dino.resid_post")
