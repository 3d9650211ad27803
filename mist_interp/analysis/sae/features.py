"""What does each feature of a sparse autoencoder answer to?

A `FeatureTable` holds, for features of one dictionary over some rows: how often and how strongly they fire, at which
tokens (patches, chunk steps), at which queries most, with which facts about the query they go along, and which features
point the same way. `mist_interp.report.features` draws it as one page.

    correlation[feature, fact] = Pearson correlation, over queries, of the mean code of the query's tokens with the fact

Where it misleads: the queries with the highest codes are the extreme of the distribution and not typical of it (look
at the histogram, and at `middle`, drawn from all the queries at which it fires); queries of one episode are alike, so a
correlation rests on far fewer than their number, and the best of many facts is high by chance; a place where a feature
fires is no place where it matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.sae.autoencoder import ROWS_AT_ONCE, SparseAutoencoder
from mist_interp.analysis.sae.rows import TokenRows
from mist_interp.analysis.several import Described
from mist_interp.data.records import Array

BINS = 24


@dataclass(frozen=True)
class Firing:
    """One place at which a feature fires.

    Attributes:
        query: number of the query in the order of the rows.
        token: number of the token among those of a query.
        value: its code: the length that the feature adds, in units of the activations.
        codes: of all tokens of the query.
    """

    query: int
    token: int
    value: float
    codes: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class FeatureTable(Described):
    """What features answer to.

    Attributes:
        features: their numbers, in the order of the other attributes.
        summary: one row per feature: `frequency` (share of rows), `mean` and `largest` code where it fires, `sigma`
            (standard deviation of the training projection), `queries` (share of queries with any of it).
        top: per feature, the queries with its largest codes, each at its strongest token, strongest first.
        middle: per feature, queries drawn evenly from all at which it fires, by rank, strongest first.
        histogram: (feature, bin) share of the firing codes per bin; the label of a bin is its upper edge as a share of
            the largest code.
        place: (feature, token) mean code per token.
        correlation: (feature, fact).
        neighbours: per feature, the other features of the dictionary with the largest absolute cosine, and the cosine.
        tokens: labels of the tokens of a query.
    """

    main = "place"

    features: tuple[int, ...]
    summary: pd.DataFrame
    top: tuple[tuple[Firing, ...], ...]
    middle: tuple[tuple[Firing, ...], ...]
    histogram: Result
    place: Result
    correlation: Result
    neighbours: tuple[tuple[tuple[int, float], ...], ...]
    tokens: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """The summary with the numbers of the features: one row each."""
        return self.summary.assign(feature=self.features)[["feature", *self.summary.columns]]


def feature_table(
    sae: SparseAutoencoder,
    rows: TokenRows,
    *,
    features: Sequence[int] | None = None,
    facts: Mapping[str, Sequence[float]] | None = None,
    tokens: Sequence[str] | None = None,
    top: int = 8,
    neighbours: int = 4,
) -> FeatureTable:
    """Describe features over rows, block by block: codes of the chosen features are kept, rows are not.

    Args:
        sae: the autoencoder.
        rows: tokens of queries, in order; best from start states that were not trained on.
        features: which; all that fire by default, most frequent first.
        facts: name -> one number per query (NaN where it is not known), e.g. whether the gripper is closed.
        tokens: label of each token of a query, e.g. `layout.labels("vision")`.
        top: how many queries to name per feature.
        neighbours: how many neighbours to name.

    Raises:
        IndexError: there is no such feature.
        ValueError: no feature fires, or facts or tokens of the wrong length.
    """
    per_query = rows.tokens_per_query
    labels = tuple(tokens) if tokens is not None else tuple(f"token {k}" for k in range(per_query))
    if len(labels) != per_query:
        raise ValueError(f"{len(labels)} labels for {per_query} tokens per query")
    chosen = firing_features(sae, rows) if features is None else [int(feature) for feature in features]
    sae.check_feature(*chosen)
    if not chosen:
        raise ValueError("no feature fires on these rows")
    codes = _codes(sae, rows, chosen).reshape(-1, per_query, len(chosen))
    known = {name: np.asarray(values, dtype=float) for name, values in (facts or {}).items()}
    for name, values in known.items():
        if values.shape != (len(codes),):
            raise ValueError(f"the fact {name!r} has shape {values.shape}; there are {len(codes)} queries")
    fired = codes > 0
    largest = codes.max((0, 1))
    mean = codes.sum((0, 1)) / np.maximum(fired.sum((0, 1)), 1)
    summary = pd.DataFrame(
        {
            "frequency": fired.mean((0, 1)),
            "queries": fired.any(1).mean(0),
            "mean": mean,
            "largest": largest,
            "sigma": sae.sigma_[chosen].numpy(),
        },
        index=pd.Index(chosen, name="feature"),
    )
    edges = (np.arange(BINS) + 1) / BINS
    return FeatureTable(
        features=tuple(chosen),
        summary=summary,
        top=tuple(_strongest(codes[:, :, place], range(top)) for place in range(len(chosen))),
        middle=tuple(_strongest(codes[:, :, place], None, top) for place in range(len(chosen))),
        histogram=Result(
            labelled(_histograms(codes, largest), feature=chosen, bin=edges.tolist()),
            "share of firing tokens",
            "distribution of the codes where the feature fires, bins as shares of the largest",
            sae.source_,
        ),
        place=Result(
            labelled(codes.mean(0).T, feature=chosen, token=labels), "mean code", "where it fires", sae.source_
        ),
        correlation=Result(
            labelled(_correlations(codes.mean(1), known), feature=chosen, fact=list(known)),
            "correlation",
            "of the mean code of a query's tokens with a fact about the query",
            sae.source_,
        ),
        neighbours=tuple(_nearest(sae, feature, neighbours) for feature in chosen),
        tokens=labels,
    )


def firing_features(sae: SparseAutoencoder, rows: TokenRows) -> list[int]:
    """Features that fire on some rows, most frequent first."""
    fired = np.zeros(len(sae.decoder_))
    for block in rows.in_order():
        for part in torch.from_numpy(block).split(ROWS_AT_ONCE):
            fired += (sae.encode(part) > 0).sum(0).numpy()
    return [int(feature) for feature in np.argsort(-fired, kind="stable") if fired[feature]]


def _codes(sae: SparseAutoencoder, rows: TokenRows, features: list[int]) -> Float[Array, "rows features"]:
    parts = []
    for block in rows.in_order():
        parts += [sae.encode(part)[:, features].numpy() for part in torch.from_numpy(block).split(ROWS_AT_ONCE)]
    return np.concatenate(parts)


def _strongest(
    codes: Float[Array, "queries tokens"], ranks: Sequence[int] | None, count: int = 0
) -> tuple[Firing, ...]:
    """Queries at which the feature fires, by rank of their strongest token; without ranks, `count` spread evenly."""
    tokens = codes.argmax(1)
    values = codes[np.arange(len(codes)), tokens]
    order = np.argsort(-values, kind="stable")[: int((values > 0).sum())]
    if ranks is None:
        spread = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
        ranks = list(dict.fromkeys(spread.tolist()))
    picked = [int(order[rank]) for rank in ranks if rank < len(order)]
    return tuple(Firing(q, int(tokens[q]), float(values[q]), tuple(codes[q].tolist())) for q in picked)


def _histograms(codes: Float[Array, "queries tokens features"], largest: Array) -> Float[Array, "features bins"]:
    found = np.zeros((codes.shape[2], BINS))
    for place, most in enumerate(largest):
        values = codes[:, :, place]
        values = values[values > 0]
        if len(values):
            found[place] = np.histogram(values, BINS, (0, most))[0] / len(values)
    return found


def _correlations(
    strength: Float[Array, "queries features"], facts: Mapping[str, Array]
) -> Float[Array, "features facts"]:
    """Pearson correlations over the queries at which the fact is known; NaN where either is constant there."""
    found = np.full((strength.shape[1], len(facts)), np.nan)
    for column, values in enumerate(facts.values()):
        known = np.isfinite(values)
        if known.sum() < 2:
            continue
        x = strength[known] - strength[known].mean(0)
        y = values[known] - values[known].mean()
        scale = np.linalg.norm(x, axis=0) * np.linalg.norm(y)
        np.divide(y @ x, scale, out=found[:, column], where=scale > 1e-12)
    return found


def _nearest(sae: SparseAutoencoder, feature: int, count: int) -> tuple[tuple[int, float], ...]:
    cosines = sae.decoder_ @ sae.decoder_[feature]
    cosines[feature] = 0
    order = cosines.abs().argsort(descending=True)[:count].tolist()
    return tuple((int(other), float(cosines[other])) for other in order)
