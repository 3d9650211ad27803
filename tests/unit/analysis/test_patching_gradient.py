"""Is attribution patching the gradient times the change, and does `agreement` say how far to trust it?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from patching_policies import make, pairs

from mist_interp.analysis.metrics import Metric, action_delta
from mist_interp.analysis.patching import agreement, attribution_patch, mean_of, patch
from mist_interp.analysis.result import Result, labelled
from mist_interp.core.inputs import PolicyInputs


def nearly(clean: PolicyInputs, corrupt: PolicyInputs, share: float) -> PolicyInputs:
    """Clean queries with a little of the corrupt pictures."""
    pixels = clean.pixel_values + share * (corrupt.pixel_values - clean.pixel_values)
    return PolicyInputs(clean.input_ids, clean.attention_mask, pixels, clean.proprio)


@pytest.mark.parametrize(
    ("site", "over"),
    [("resid_pre", ("layer", "segment")), ("attn_out", ("layer", "segment")), ("z", ("layer", "head"))],
)
def test_small_changes_have_their_first_order_effect(site, over) -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    near = nearly(clean, corrupt, 1e-2)
    exact = patch(vla, clean, near, site=site, over=over)
    first = attribution_patch(vla, clean, near, site=site, over=over)
    assert exact.axes == first.axes
    largest = float(np.abs(exact.values).max())
    np.testing.assert_allclose(first.values, exact.values, atol=0.1 * largest)
    measures = agreement(exact, first)
    assert float(measures.sel(layer="all", measure="pearson").values) > 0.99
    assert float(measures.sel(layer="all", measure="slope").values) == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(first.full, exact.full, atol=1e-6)


def test_halving_the_change_quarters_the_error() -> None:
    """Only then is it the gradient at the right run and not merely something near it."""
    vla = make()
    clean, corrupt = pairs(vla)
    errors = []
    for share in (0.04, 0.02):
        near = nearly(clean, corrupt, share)
        options = {"site": ("resid_mid", 1), "over": ("segment",), "segments": ("agentview",), "direction": "noise"}
        exact, first = patch(vla, clean, near, **options), attribution_patch(vla, clean, near, **options)
        errors.append(np.abs(exact.values - first.values).mean().item())
    assert 2.5 < errors[0] / errors[1] < 6


def test_a_metric_without_axes_and_one_pair() -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    metric = Metric("dz twice", "robot units", lambda chunk: 2 * chunk.values[:, 0, 2])
    options = {"over": ("camera", "row", "col"), "site": "hook_embed", "metric": metric}
    grid = attribution_patch(vla, clean[0], corrupt[0], **options)
    assert grid.values.dims == ("camera", "row", "col") and grid.full.dims == ()
    both = attribution_patch(vla, clean, corrupt, **options)
    np.testing.assert_allclose(grid.values, both.sel(pair=0).values, rtol=1e-3, atol=1e-5)
    one = attribution_patch(vla, clean[0], corrupt[0], **{**options, "metric": action_delta("dz", step=0)})
    np.testing.assert_allclose(2 * one.values, grid.values, rtol=1e-5)


def test_cells_that_split_the_sequence_add_up() -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    parts = attribution_patch(vla, clean[0], corrupt[0], site=("resid_pre", 1), over=("segment",))
    whole = attribution_patch(vla, clean[0], corrupt[0], site=("resid_pre", 1), over=())
    tokens = attribution_patch(vla, clean[0], corrupt[0], site=("resid_pre", 1), over=("token",))
    np.testing.assert_allclose(parts.values.sum("segment"), whole.values, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(tokens.values.sum("token"), whole.values, rtol=1e-4, atol=1e-6)
    heads = attribution_patch(vla, clean[0], corrupt[0], site=("z", 1), over=("head", "segment"))
    flat = attribution_patch(vla, clean[0], corrupt[0], site=("z", 1), over=())
    np.testing.assert_allclose(heads.values.sum(["head", "segment"]), flat.values, rtol=1e-4, atol=1e-6)


def test_mean_activations_by_gradient() -> None:
    vla = make()
    clean, other = pairs(vla)
    many = PolicyInputs.cat([clean[0], other[0]])
    grid = attribution_patch(vla, clean[0], mean_of(many), site="z", over=("layer", "head"), direction="noise")
    towards = attribution_patch(vla, clean[0], other[0], site="z", over=("layer", "head"), direction="noise")
    # The mean of the run itself and another one lies half way.
    np.testing.assert_allclose(2 * grid.values, towards.values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("variant", ["discrete", "base", "diffusion"])
def test_where_there_is_no_gradient(variant) -> None:
    vla = make(variant)
    with pytest.raises(ValueError, match="no gradient reaches"):
        attribution_patch(vla, *pairs(vla))
    constant = Metric("constant", "", lambda chunk: torch.zeros(len(chunk)))
    l1 = make()
    with pytest.raises(ValueError, match="'constant' has no gradient"):
        attribution_patch(l1, *pairs(l1), metric=constant)


def test_agreement_of_known_numbers() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(2, 50))
    approximate = np.stack([exact[0] * 2, rng.permutation(exact[1])])
    grids = [Result(labelled(values, layer=[3, 4], token=range(50))) for values in (exact, approximate)]
    table = agreement(*grids)
    assert table.axes == {"layer": ["3", "4", "all"], "measure": ["pearson", "spearman", "slope", "largest error"]}
    np.testing.assert_allclose(table.sel(layer="3").values, [1, 1, 0.5, 1])
    assert abs(float(table.sel(layer="4", measure="pearson").values)) < 0.4
    flat = [Result(labelled(np.ones(3), token=range(3))) for _ in range(2)]
    assert np.isnan(agreement(*flat).values).all()
    with pytest.raises(ValueError, match=r"different grids.*token"):
        agreement(grids[0], Result(labelled(exact[:, :9], layer=[3, 4], token=range(9))))
