"""Planted dictionaries: rows whose features are known."""

from __future__ import annotations

import numpy as np


def planted(
    rows: int = 6000, width: int = 24, features: int = 32, active: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are sparse positive sums of unit vectors around a mean far from zero; the rows, and the vectors."""
    rng = np.random.default_rng(seed)
    dictionary = rng.normal(size=(features, width))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    codes = np.zeros((rows, features))
    for row in codes:
        row[rng.choice(features, active, replace=False)] = rng.uniform(1.0, 3.0, active)
    x = codes @ dictionary + rng.normal(size=width) * 5 + 0.01 * rng.normal(size=(rows, width))
    return x.astype(np.float32), dictionary.astype(np.float32)


def best_cosines(found: np.ndarray, planted: np.ndarray) -> np.ndarray:
    """Per planted vector, the largest cosine with a found one."""
    return (planted @ found.T).max(1)
