"""Read-outs: features of any scale, gradients in the units of the row, rows without variation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mist_interp.probing.readout import estimator_config, estimator_from_config, fit_readout

SCALES = np.array([1e-3, 1.0, 1e3, 10.0])


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400).astype(float)
    return (rng.normal(size=(400, 4)) + y[:, None]) * SCALES + 5.0, y[:, None]


def test_the_weights_are_the_gradient_of_the_score(data: tuple[np.ndarray, np.ndarray]) -> None:
    readout = fit_readout(LogisticRegression(), *data)
    row = data[0][:1]
    for place, scale in enumerate(SCALES):
        step = np.zeros((1, 4))
        step[0, place] = 1e-3 * scale
        slope = (readout.scores(row + step) - readout.scores(row - step))[0, 0] / (2e-3 * scale)
        assert readout.weights(0)[place] == pytest.approx(slope, rel=1e-6)


def test_the_scale_of_a_feature_does_not_matter(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = data
    a, b = fit_readout(LogisticRegression(), x, y), fit_readout(LogisticRegression(), x / SCALES, y)
    np.testing.assert_allclose(a.scores(x), b.scores(x / SCALES), rtol=1e-6, atol=1e-9)


def test_a_feature_without_variation_is_ignored(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = data
    flat = np.hstack([x, np.full((len(x), 1), 0.1), np.zeros((len(x), 1))])
    readout = fit_readout(LogisticRegression(), flat, y)
    assert np.isfinite(readout.scores(flat)).all()
    np.testing.assert_allclose(readout.weights(0)[4:], 0.0, atol=1e-9)


def test_masked_labels_are_left_out_of_their_column_only() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 2))
    y = (x > 0).astype(float)
    y[:150, 0] = np.nan
    x[:150, 0] *= -1  # wrong for output 0, were it not masked
    y[:150, 1] = (x[:150, 1] > 0).astype(float)
    readout = fit_readout(LogisticRegression(), x, y)
    scores = readout.scores(np.array([[2.0, -2.0], [-2.0, 2.0]]))
    assert scores[0, 0] > 0 > scores[1, 0] and scores[1, 1] > 0 > scores[0, 1]


def test_one_label_only_gives_constant_scores_and_no_direction() -> None:
    readout = fit_readout(LogisticRegression(), np.random.default_rng(0).normal(size=(20, 3)), np.zeros((20, 1)))
    assert np.ptp(readout.scores(np.ones((4, 3)))) == 0 and readout.probabilities(np.ones((4, 3))) is None
    with pytest.raises(ValueError, match="one label only"):
        readout.weights(0)


def test_rows_that_cannot_be_fitted_are_errors() -> None:
    with pytest.raises(ValueError, match="no rows"):
        fit_readout(LogisticRegression(), np.zeros((0, 3)), np.zeros((0, 1)))
    with pytest.raises(ValueError, match="not finite"):
        fit_readout(LogisticRegression(), np.full((4, 3), np.nan), np.zeros((4, 1)))


def test_settings_are_stored_as_plain_values() -> None:
    made = LogisticRegression(C=0.3, class_weight={0: 1.0, 1: 2.0}, max_iter=77)
    again = estimator_from_config(json.loads(json.dumps(estimator_config(made))))
    assert again.get_params() == made.get_params()
    with pytest.raises(ValueError, match="random_state"):
        estimator_config(LogisticRegression(random_state=np.random.RandomState(0)))
    with pytest.raises(KeyError, match="LogisticRegression"):
        estimator_from_config({"kind": "Pickle", "settings": {}})
