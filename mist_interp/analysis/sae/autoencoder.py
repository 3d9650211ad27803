"""Which few directions, out of many, make up an activation?

    sae = SparseAutoencoder(features=512, k=16).fit(TokenRows.of_store(train, ("resid_post", 1), "vision", width=192))
    codes = sae.encode(x)                       (..., features): at most k are active; how long each feature's part is
    sae.decode(codes)                           (..., width)
    sae.direction(17)                           a SteeringDirection: the feature, as something to add

A TopK sparse autoencoder (`mist_interp.analysis.sae.training`) with the manners of a scikit-learn transformer: the
constructor only stores, `fit` checks and learns, what was learnt ends in `_`.

Where it misleads: features are what this dictionary size, this k and this seed make of the data; another training gives
others, splits one in two or merges two. A high explained variance says little of what the network uses: the part that
is left out may be what matters. So look at what splicing it in does to the actions (`splice`), and take no feature for
a cause before it was changed and the action followed (`ablation`, `dose_response`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor

from mist_interp.analysis.sae.rows import TokenRows, checked
from mist_interp.analysis.sae.training import (
    FitProgress,
    Recipe,
    Training,
    begin,
    decayed,
    folded,
    load_training,
    save_training,
    top_k,
    update,
)
from mist_interp.core.names import Site
from mist_interp.core.provenance import provenance
from mist_interp.data.activation_set import ActivationSet, fingerprint
from mist_interp.data.records import Array
from mist_interp.steering.direction import SteeringDirection

ROWS_AT_ONCE = 4096
# A training is stored so often that little is lost, and so rarely that storing costs little.
STEPS_PER_CHECKPOINT = 500


class SparseAutoencoder(TransformerMixin, BaseEstimator):
    """A dictionary of features of one site.

    Args:
        features: size of the dictionary; a few times the width of the site.
        k: how many features are active in a row at most.
        steps: updates of `fit`.
        batch_size: rows per update.
        learning_rate: of Adam; `fit` lets it fall to zero over the last fifth.
        aux_k: dead features that are trained on the error; None takes half the width, 0 none.
        aux_coefficient: weight of that term.
        dead_after: rows without firing after which a feature counts as dead in training.
        seed: of the weights and of the order of the rows.

    Attributes (after `fit` or `partial_fit`):
        encoder_: (features, width), decoder_: (features, width) with rows of unit norm, encoder_bias_: (features,),
            bias_: (width,); in units of the activations, so that a code is the length that the feature adds.
        mean_: (width,) mean of the training rows, and covariance_: (width, width) of them.
        n_rows_: rows trained on, repeats counted.
        site_: where the rows were read, or None; tokens_: under which selector.
        trained_on_: start states of the rows.
        source_: facts about the data and the training.
    """

    _training: Training | None = None  # what partial_fit goes on from

    def __init__(
        self,
        features: int = 512,
        k: int = 16,
        *,
        steps: int = 2000,
        batch_size: int = 1024,
        learning_rate: float = 1e-3,
        aux_k: int | None = None,
        aux_coefficient: float = 1 / 32,
        dead_after: int = 100_000,
        seed: int = 0,
    ) -> None:
        self.features = features
        self.k = k
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.aux_k = aux_k
        self.aux_coefficient = aux_coefficient
        self.dead_after = dead_after
        self.seed = seed

    # -- fitting

    def fit(
        self,
        X: TokenRows | ActivationSet | Array,
        y: None = None,
        *,
        checkpoint: str | Path | None = None,
        device: torch.device | str = "cpu",
        on_progress: Callable[[FitProgress], None] | None = None,
    ) -> Self:
        """Train on rows, going through them as often as `steps` needs; an earlier fit is forgotten.

        Args:
            X: rows, one per token.
            y: not used; scikit-learn's pipelines pass it.
            checkpoint: file of the training state, written every 500 updates. If it is there, training goes on
                from it, to the same numbers as without the interruption; it stays after the fit.
            device: where to train.
            on_progress: called after every update.

        Raises:
            ValueError: a setting that is impossible, rows that are not finite or all equal, or a checkpoint of another
                training.
            FloatingPointError: the training diverged.
        """
        rows, device = token_rows(X), torch.device(device)
        recipe = Recipe(**self.get_params())
        recipe.check(rows.width)
        path = None if checkpoint is None else Path(checkpoint)
        about = {
            "width": rows.width,
            "blocks": len(rows.blocks),
            "start_states": fingerprint(rows.trained_on),
            "site": None if rows.site is None else rows.site.name,
            "tokens": rows.tokens,
            "facts": rows.source,
        }
        training = None if path is None or not path.is_file() else load_training(path, recipe, about, device)
        while training is None or training.step < self.steps:
            for number, batch in enumerate(rows.epoch(training.epoch if training else 0, self.batch_size, self.seed)):
                batch_rows = torch.from_numpy(batch).to(device)
                training = training or begin(recipe, batch_rows)
                if number < training.batch:
                    continue  # seen before the interruption
                explained = update(training, batch_rows, decayed(training.step, self.steps))
                if on_progress:
                    on_progress(FitProgress(training.step, self.steps, explained, int(training.dead.sum())))
                if training.step >= self.steps:
                    break
                if path and training.step % STEPS_PER_CHECKPOINT == 0:
                    save_training(training, path, about)
            assert training is not None
            if training.step < self.steps:
                training.epoch, training.batch = training.epoch + 1, 0
        if path:
            save_training(training, path, about)
        self._learnt(training, rows)
        return self

    def partial_fit(self, X: Array | Tensor, y: None = None) -> Self:
        """One update on one batch, for rows that come from any iterator; the learning rate stays as it is."""
        batch = torch.from_numpy(checked(X.detach().cpu() if isinstance(X, Tensor) else X))
        training = self._training or begin(Recipe(**self.get_params()), batch)
        self._check_width(batch.shape[1], len(training.shift))
        update(training, batch)
        known = TokenRows.of_array(batch.numpy())
        self._learnt(training, known)
        self._training = training
        return self

    def _learnt(self, training: Training, rows: TokenRows) -> None:
        weights = {name: value.cpu() for name, value in folded(training).items()}
        self.encoder_, self.encoder_bias_ = weights["encoder"], weights["encoder_bias"]
        self.decoder_, self.bias_ = weights["decoder"], weights["bias"]
        count, total, outer = (training.moments[name].cpu() for name in ("count", "sum", "outer"))
        mean = total / count
        self.mean_, self.covariance_ = mean.float(), (outer / count - torch.outer(mean, mean)).float()
        self.n_rows_ = int(count)
        self.site_, self.tokens_, self.trained_on_ = rows.site, rows.tokens, rows.trained_on
        self.source_: dict[str, Any] = {
            "data": rows.source,
            "rows": self.n_rows_,
            "recipe": dataclasses.asdict(training.recipe),
            "dead in training": int(training.dead.sum()),
            "start_states": fingerprint(rows.trained_on),
            "versions": provenance(),
        }
        self._training = None

    # -- using

    def encode(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... features"]:
        """Codes of activations, float32, on the device of `x`: how much of each feature, zero for all but k."""
        self._check_width(x.shape[-1], self.width_)
        encoder, bias = self.encoder_.to(x.device), self.bias_.to(x.device)
        return top_k((x.float() - bias) @ encoder.T + self.encoder_bias_.to(x.device), self.k)

    def decode(self, codes: Float[Tensor, "... features"]) -> Float[Tensor, "... width"]:
        """Activations that codes stand for."""
        return codes @ self.decoder_.to(codes) + self.bias_.to(codes)

    def transform(self, X: Array) -> Float[Array, "rows features"]:
        """Codes of rows, as a dense array."""
        parts = torch.from_numpy(checked(X)).split(ROWS_AT_ONCE)
        return np.concatenate([self.encode(part).numpy() for part in parts])

    def inverse_transform(self, X: Float[Array, "rows features"]) -> Float[Array, "rows width"]:
        """Rows that codes stand for."""
        return self.decode(torch.from_numpy(checked(X))).numpy()

    def score(self, X: TokenRows | ActivationSet | Array, y: None = None) -> float:
        """Explained variance of rows; see `mist_interp.analysis.sae.quality`."""
        from mist_interp.analysis.sae.quality import report

        return report(self, X).explained_variance

    @property
    def width_(self) -> int:
        """Width of a row.

        Raises:
            AttributeError: nothing was fitted yet.
        """
        return int(self.decoder_.shape[1])

    @property
    def sigma_(self) -> Float[Tensor, " features"]:
        """Per feature, the standard deviation of the training rows along its decoder row."""
        decoder = self.decoder_.double()
        return ((decoder @ self.covariance_.double()) * decoder).sum(1).clamp_min(0).sqrt().float()

    def direction(self, feature: int) -> SteeringDirection:
        """A feature as a direction to steer along; coefficient 1 is a standard deviation of the training projection.

        Raises:
            IndexError: there is no such feature.
            ValueError: the autoencoder was not fitted on rows of a site, or the rows do not vary along the feature.
        """
        self.check_feature(feature)
        if self.site_ is None:
            raise ValueError("these features have no site: fit on TokenRows or an ActivationSet that has one")
        return SteeringDirection.of_length(
            self.decoder_[feature].numpy(),
            float(self.sigma_[feature]),
            site=self.site_,
            tokens=self.tokens_,
            source={"method": "feature of a TopK sparse autoencoder", "feature": int(feature), **self.source_},
            trained_on=self.trained_on_,
        )

    def check_feature(self, *features: int) -> None:
        """Refuse numbers that are no feature.

        Raises:
            IndexError: there is no such feature.
        """
        for feature in features:
            if not 0 <= feature < len(self.decoder_):
                raise IndexError(f"feature {feature}: the dictionary has 0 to {len(self.decoder_) - 1}")

    # -- keeping

    def save(self, folder: str | Path) -> None:
        """Write `sae.safetensors` and `sae.json` into `folder`."""
        from mist_interp.analysis.sae.files import save_sae

        save_sae(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: there is none in this folder.
            ValueError: it was written in a format that this version does not know.
        """
        from mist_interp.analysis.sae.files import load_sae

        return load_sae(cls, Path(folder))

    def _check_width(self, given: int, width: int) -> None:
        if given != width:
            raise ValueError(f"rows are {given} wide, this autoencoder {width}: it was made for another site or model")

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        site: Site | None = getattr(self, "site_", None)
        place = "" if site is None else f" of {site.key!r} at {self.tokens_!r}"
        return f"SparseAutoencoder(features={self.features}, k={self.k}){place}"


def token_rows(rows: TokenRows | ActivationSet | Array | Tensor) -> TokenRows:
    """Rows in the form in which they are trained on; a set has one row per query here."""
    if isinstance(rows, TokenRows):
        return rows
    if isinstance(rows, ActivationSet):
        return TokenRows.of_set(rows)
    return TokenRows.of_array(rows.detach().cpu().numpy() if isinstance(rows, Tensor) else rows)


def site_of(sae: SparseAutoencoder) -> Site:
    """The site that the autoencoder was made for.

    Raises:
        ValueError: it was fitted on bare rows.
    """
    if sae.site_ is None:
        raise ValueError("this autoencoder has no site: fit on TokenRows or an ActivationSet that has one")
    return sae.site_
