"""A cosine table says how like directions are, and how like random ones would be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mist_interp.analysis.directions import cosine_table, random_cosine
from mist_interp.core.names import Site
from mist_interp.steering import SteeringDirection

SITE = Site("blocks.3.hook_resid_post")


def direction(*entries: float) -> SteeringDirection:
    return SteeringDirection(SITE, torch.tensor(entries), source={"method": "by hand"})


def test_the_table_has_the_cosines_under_their_names() -> None:
    table = cosine_table({"a": direction(1, 0, 0), "b": direction(-3, 0, 0), "c": direction(1, 1, 0)})
    values = table.values
    assert values.dims == ("direction", "other") and table.axes["other"] == ["a", "b", "c"]
    assert float(values.sel(direction="a", other="b")) == pytest.approx(-1)
    assert float(values.sel(direction="c", other="a")) == pytest.approx(0.5**0.5)
    np.testing.assert_allclose(np.diag(values), 1, atol=1e-12)
    np.testing.assert_allclose(values, values.T)
    assert table.source["directions"]["b"] == {"method": "by hand"}
    assert f"{random_cosine(3):.2f}" in table.what and table.source["random"]["sd"] == pytest.approx(3**-0.5)
    assert table.plot() is not None


@pytest.mark.parametrize("width", [2, 3, 64])
def test_random_directions_are_as_like_as_said(width: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20000, width))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert np.mean(np.abs(cosines) < random_cosine(width)) == pytest.approx(0.95, abs=0.006)
    assert np.mean(np.abs(cosines) < random_cosine(width, 0.5)) == pytest.approx(0.5, abs=0.012)
    assert np.std(cosines) == pytest.approx(width**-0.5, rel=0.03)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="no direction"):
        cosine_table({})
    with pytest.raises(ValueError, match="different places"):
        cosine_table({"a": direction(1, 0), "b": SteeringDirection(SITE, torch.ones(2), "vision")})
    for width, share in ((1, 0.95), (10, 1.0)):
        with pytest.raises(ValueError, match="width="):
            random_cosine(width, share)
