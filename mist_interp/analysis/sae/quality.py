"""How much of the activations does a sparse autoencoder keep, and with how many features?

    explained variance = 1 - sum |x - x'|^2 / sum |x - mean|^2        over the rows judged, mean of these rows

Beside it stands the explained variance of as many principal components as features are active on average (L0): they
have the same number of coordinates per row, but must use the same directions for every row.

Where it misleads: a few directions of large variance decide the number; the mean of the rows judged is a harder
reference than the mean of the training rows; a feature that is dead here may fire on other rows, so give many, from
episodes that were not trained on (`split_by_start_state`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.sae.autoencoder import ROWS_AT_ONCE, SparseAutoencoder, token_rows
from mist_interp.analysis.sae.rows import TokenRows
from mist_interp.analysis.several import Several
from mist_interp.data.activation_set import ActivationSet
from mist_interp.data.records import Array


@dataclass(frozen=True, eq=False)
class SaeReport(Several):
    """What an autoencoder keeps of some rows.

    Attributes:
        explained_variance: of the reconstruction; 1 is perfect, 0 as good as the mean.
        pca_explained_variance: of as many principal components of the training rows as `l0`, rounded.
        l0: active features per row.
        dead: features that never fired on these rows.
        features: of the dictionary.
        rows: how many were judged.
        held_out: no start state of these rows was trained on; None where either is unknown.
        frequency: per feature, the share of the rows in which it is active.
    """

    main = "frequency"

    explained_variance: float
    pca_explained_variance: float
    l0: float
    dead: int
    features: int
    rows: int
    held_out: bool | None
    frequency: Result

    def __str__(self) -> str:
        kind = {True: "held-out ", False: "training ", None: ""}[self.held_out]
        return (
            f"{100 * self.explained_variance:.1f} % of the variance of {self.rows} {kind}rows with {self.l0:.1f} "
            f"active features ({round(self.l0)} principal components: {100 * self.pca_explained_variance:.1f} %); "
            f"{self.dead} of {self.features} features never fire"
        )


def report(sae: SparseAutoencoder, rows: TokenRows | ActivationSet | Array) -> SaeReport:
    """Judge an autoencoder on rows, block by block.

    Raises:
        ValueError: the rows have another width, are not finite, or are all equal.
    """
    given = token_rows(rows)
    fired = np.zeros(len(sae.decoder_))
    total, squares = np.zeros(given.width), 0.0
    # Squared error of the reconstruction, and of 0, 1, 2, ... principal components.
    error, count, components = 0.0, 0, principal_components(sae)
    kept = np.zeros(given.width)
    for block in given.in_order():
        for part in torch.from_numpy(block).split(ROWS_AT_ONCE):
            codes = sae.encode(part)
            error += float((part - sae.decode(codes)).double().square().sum())
            fired += (codes > 0).sum(0).numpy()
            precise = part.double()
            total += precise.sum(0).numpy()
            squares += float((precise - sae.mean_.double()).square().sum())
            kept += ((precise - sae.mean_.double()) @ components.double().T).square().sum(0).numpy()
            count += len(part)
    variance = squares - count * float(((total / count - sae.mean_.numpy()) ** 2).sum())
    if variance <= 1e-12 * max(squares, 1e-30):
        raise ValueError(f"the {count} rows are all equal: there is no variance to explain")
    l0 = float(fired.sum() / count)
    states = given.trained_on
    return SaeReport(
        explained_variance=1 - error / variance,
        pca_explained_variance=1 - (squares - float(kept[: round(l0)].sum())) / variance,
        l0=l0,
        dead=int((fired == 0).sum()),
        features=len(fired),
        rows=count,
        held_out=not states & sae.trained_on_ if states and sae.trained_on_ else None,
        frequency=Result(
            labelled(fired / count, feature=range(len(fired))),
            unit="share of rows",
            what="how often a feature is active",
            source=sae.source_,
        ),
    )


def principal_components(sae: SparseAutoencoder) -> Float[Tensor, "width width"]:
    """Principal components of the training rows, largest variance first, one per row."""
    _, vectors = torch.linalg.eigh(sae.covariance_.double())
    return vectors.flip(1).T.float()
