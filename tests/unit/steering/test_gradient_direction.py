"""The direction of an action number moves it by what its slope predicts."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from mist_interp.core.inputs import PolicyInputs
from mist_interp.data.activation_set import ActivationSet
from mist_interp.data.records import Unit
from mist_interp.models import random_policy
from mist_interp.steering import SteeringDirection
from mist_interp.tracing.checks import noise_inputs
from mist_interp.tracing.hooked import HookedVLA

SITE = ("resid_post", 1)


@cache
def vla() -> HookedVLA:
    return HookedVLA(random_policy(seed=3).requires_grad_(False))


@cache
def inputs() -> PolicyInputs:
    return PolicyInputs.cat([noise_inputs(vla(), seed) for seed in range(2)])


@cache
def direction(target: str = "t0.dz", tokens: str = "action_read") -> SteeringDirection:
    return SteeringDirection.from_gradient(vla(), inputs(), target, SITE, tokens, batch=3)


def mean_action(made: SteeringDirection, coef: float) -> torch.Tensor:
    with torch.no_grad(), made.scope(vla(), coef):
        return vla()(inputs()).values.mean(0)


@pytest.mark.parametrize(
    ("target", "tokens", "step", "dim"),
    [("t0.dz", "action_read", 0, 2), ("t1.gripper", "action_read.t1", 1, 6), ("dx", "text", slice(None), 0)],
)
def test_it_moves_its_number_by_what_the_slope_predicts(target: str, tokens: str, step: int | slice, dim: int) -> None:
    made = direction(target, tokens)
    for coef in (0.02, -0.02):
        change = (mean_action(made, coef) - mean_action(made, 0.0))[step, dim].mean()
        assert float(change) / coef == pytest.approx(made.source["slope"], rel=0.1)
    assert made.source["slope"] > 0


def test_no_other_direction_of_its_length_moves_the_number_more() -> None:
    made = direction()
    best = float((mean_action(made, 0.02) - mean_action(made, -0.02))[0, 2])
    for seed in range(5):
        placebo = SteeringDirection.random(made, seed)
        assert abs(float((mean_action(placebo, 0.02) - mean_action(placebo, -0.02))[0, 2])) < 0.8 * best


def test_batches_and_weights_add_up() -> None:
    alone = SteeringDirection.from_gradient(vla(), inputs(), "t0.dz", SITE, batch=4)
    assert alone.cosine(direction()) == pytest.approx(1.0, abs=1e-5)
    opposite = SteeringDirection.from_gradient(vla(), inputs(), {"t0.dz": -2.0}, SITE)
    assert opposite.cosine(direction()) == pytest.approx(-1.0, abs=1e-5)
    assert opposite.source["slope"] == pytest.approx(2 * direction().source["slope"], rel=1e-4)
    assert 0 < alone.source["agreement"] <= 1


def test_the_unit_comes_from_the_training_rows_if_there_are_any() -> None:
    rng = np.random.default_rng(0)
    units = tuple(Unit("libero_spatial", 0, k) for k in range(50))
    rows = ActivationSet(7 * rng.normal(size=(50, vla().cfg.d_model)), units, vla().site(SITE))
    made = SteeringDirection.from_gradient(vla(), inputs(), "t0.dz", SITE, rows=rows)
    assert made.cosine(direction()) == pytest.approx(1.0, abs=1e-5)
    assert np.std(made.project(rows.x)) == pytest.approx(1.0, rel=1e-4)
    assert made.source["slope"] / direction().source["slope"] == pytest.approx(made.norm / direction().norm, rel=1e-4)
    for given in ({"rows": rows}, {"units": units}):
        with pytest.raises(ValueError, match="task 0 init 4"):
            SteeringDirection.from_gradient(
                vla(), inputs(), "t0.dz", SITE, **given, evaluation=[Unit("libero_spatial", 0, 4)]
            )
    with pytest.raises(ValueError, match="same place"):
        SteeringDirection.from_gradient(vla(), inputs(), "t0.dz", SITE, "text", rows=rows)


def test_what_has_no_gradient_is_refused() -> None:
    for variant in ("discrete", "diffusion", "base"):
        other = HookedVLA(random_policy(variant=variant).requires_grad_(False))
        with pytest.raises(ValueError, match="no gradient"):
            SteeringDirection.from_gradient(other, noise_inputs(other), "t0.dz", SITE)
    with pytest.raises(ValueError, match="did you mean"):
        SteeringDirection.from_gradient(vla(), inputs(), "t0.dzz", SITE)
    with pytest.raises(ValueError, match="does not depend"):
        # After the last layer nobody looks at the images any more.
        SteeringDirection.from_gradient(vla(), inputs(), "t0.dz", ("resid_post", -1), "wrist")
