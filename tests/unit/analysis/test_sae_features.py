"""The table of features counts, ranks and correlates what a dictionary with known features does on known rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mist_interp.analysis.sae.autoencoder import SparseAutoencoder
from mist_interp.analysis.sae.features import feature_table, firing_features
from mist_interp.analysis.sae.rows import TokenRows

TOKENS, QUERIES = 4, 6


def axes_sae(width: int = 5) -> SparseAutoencoder:
    """Feature i is axis i; feature 4 points almost along feature 0."""
    sae = SparseAutoencoder(width, width)
    sae.decoder_ = torch.eye(width)
    sae.encoder_, sae.encoder_bias_, sae.bias_ = torch.eye(width), torch.zeros(width), torch.zeros(width)
    sae.mean_, sae.covariance_, sae.n_rows_ = torch.zeros(width), torch.diag(torch.arange(1.0, width + 1) ** 2), 10
    sae.site_, sae.tokens_, sae.trained_on_, sae.source_ = None, "vision", frozenset(), {}
    return sae


@pytest.fixture
def rows() -> TokenRows:
    """Feature 0 fires at token 2 of the odd queries, the later the stronger; feature 1 everywhere; 2 and 3 never."""
    x = np.zeros((QUERIES, TOKENS, 5), dtype=np.float32)
    x[1::2, 2, 0] = [1, 2, 3]
    x[..., 1] = 0.5
    return TokenRows(
        tuple(lambda part=part: part.reshape(-1, 5) for part in np.split(x, 2)), 5, tokens_per_query=TOKENS
    )


def test_the_table_says_where_and_how_often(rows: TokenRows) -> None:
    table = feature_table(axes_sae(), rows, tokens=["a", "b", "c", "d"], top=2)
    assert table.features == (1, 0) == tuple(firing_features(axes_sae(), rows))
    line = table.summary.loc[0]
    assert line["frequency"] == pytest.approx(3 / 24) and line["queries"] == pytest.approx(0.5)
    assert (line["mean"], line["largest"], line["sigma"]) == (2.0, 3.0, 1.0)
    assert table.place.sel(feature=0).values.values.tolist() == [0, 0, 1, 0]
    first, second = table.top[1]
    assert (first.query, first.token, first.value) == (5, 2, 3.0) and (second.query, second.value) == (3, 2.0)
    assert first.codes == (0, 0, 3, 0)
    assert [firing.query for firing in table.middle[1]] == [5, 1]
    assert table.histogram.sel(feature=0).values.values.sum() == pytest.approx(1)
    assert table.histogram.sel(feature=0, bin=1.0).values.item() == pytest.approx(1 / 3)


def test_correlations_are_over_queries_where_the_fact_is_known(rows: TokenRows) -> None:
    odd = [0, 1, 0, 1, 0, 1]
    facts = {"odd": odd, "not odd": [1 - k for k in odd], "constant": [1] * 6, "half": [0, 1, 0, 1, np.nan, np.nan]}
    table = feature_table(axes_sae(), rows, features=[0], facts=facts)
    strength = np.array([0, 1, 0, 2, 0, 3]) / 4
    expected = np.corrcoef(strength, odd)[0, 1]
    found = table.correlation.sel(feature=0)
    assert float(found.sel(fact="odd").values) == pytest.approx(expected)
    assert float(found.sel(fact="not odd").values) == pytest.approx(-expected)
    assert np.isnan(float(found.sel(fact="constant").values))
    assert float(found.sel(fact="half").values) == pytest.approx(np.corrcoef(strength[:4], odd[:4])[0, 1])


def test_neighbours_are_named_by_their_cosine(rows: TokenRows) -> None:
    sae = axes_sae()
    sae.decoder_[4] = torch.tensor([0.8, 0.0, 0.6, 0.0, 0.0])
    table = feature_table(sae, rows, features=[0], neighbours=1)
    assert table.neighbours == (((4, pytest.approx(0.8)),),)


def test_what_does_not_fit_is_refused(rows: TokenRows) -> None:
    with pytest.raises(ValueError, match="3 labels for 4 tokens"):
        feature_table(axes_sae(), rows, tokens=["a", "b", "c"])
    with pytest.raises(ValueError, match="'odd' has shape"):
        feature_table(axes_sae(), rows, facts={"odd": [1, 2]})
    with pytest.raises(IndexError, match="feature 9"):
        feature_table(axes_sae(), rows, features=[9])
    with pytest.raises(ValueError, match="no feature fires"):
        feature_table(axes_sae(), TokenRows.of_array(-np.ones((4, 5))))
