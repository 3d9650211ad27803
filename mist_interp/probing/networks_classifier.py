"""A perceptron as a scikit-learn classifier, for pipelines, grid searches and `Probe`.

Same network and fit as in `RiskPredictor` (`networks_fit.py`), for two classes and rows that stand for themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from mist_interp.data.records import Array
from mist_interp.probing.networks import MLP
from mist_interp.probing.networks_fit import fit_network
from mist_interp.probing.networks_fitted import Recipe, Training, probabilities
from mist_interp.probing.predictor_files import network_arrays, network_from_arrays, recipe_config, recipe_from_config


class NetworkClassifier(ClassifierMixin, BaseEstimator):
    """A multi-layer perceptron with two classes, standardisation, early stopping and calibrated probabilities.

    Args:
        hidden: width of each hidden layer; `()` is logistic regression.
        dropout: share of hidden units that are left out in training.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch: rows per step.
        epochs: at most.
        patience: epochs without a smaller held-out loss before training ends.
        held_out: share of the groups that is not fitted, for early stopping and calibration; 0 for none.
        balanced: both classes weigh the same in training; the probabilities stay those of the data.
        device: where it is trained.
        random_state: seed of everything that is drawn; None draws anew at each fit.

    Attributes (after `fit`):
        classes_: the two classes.
        n_features_in_: width of the rows.
        network_: what was fitted.
        held_out_: (rows,) which rows were held out.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (256,),
        dropout: float = 0.2,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        batch: int = 256,
        epochs: int = 100,
        patience: int = 8,
        held_out: float = 0.2,
        balanced: bool = True,
        device: str = "cpu",
        random_state: int | None = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch = batch
        self.epochs = epochs
        self.patience = patience
        self.held_out = held_out
        self.balanced = balanced
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> NetworkClassifier:
        """Fit on rows of two classes.

        Args:
            X: (rows, width).
            y: (rows,) of two classes.
            groups: (rows,) what must not be split between fitting and holding out, e.g. the episode of each row;
                None takes each row for itself, which is wrong for rows of the same episode.

        Raises:
            ValueError: not two classes, or rows that are not finite.
        """
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), ensure_min_samples=2)
        check_classification_targets(y)
        if type_of_target(y) == "multiclass":
            raise ValueError(f"Only binary classification is supported. The target has {len(np.unique(y))} classes")
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"two classes are needed; there is only one class, {self.classes_[0]!r}")
        rows = np.arange(len(X))
        group = rows if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        check_consistent_length(X, group)
        training = Training(
            self.learning_rate,
            self.weight_decay,
            self.batch,
            self.epochs,
            self.patience,
            self.held_out,
            self.balanced,
            self.device,
        )
        recipe = Recipe(MLP(self.hidden, self.dropout), None, training)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        labels = codes.astype(np.float64)[:, None]
        self.network_, self.held_out_ = fit_network(recipe, X, labels, episode=rows, group=group, seed=seed)
        return self

    def decision_function(self, X: Any) -> Float[Array, " rows"]:
        """Calibrated log odds of the second class."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        scores: Array = self.network_.scores(X, np.arange(len(X)))[:, 0]
        return scores

    def predict_proba(self, X: Any) -> Float[Array, "rows 2"]:
        """Probabilities of both classes."""
        second = probabilities(self.decision_function(X))
        return np.stack([1 - second, second], axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The likelier class."""
        scores = self.decision_function(X)
        chosen: np.ndarray = self.classes_[(scores > 0).astype(int)]
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        """Plain values and arrays; the network itself can be neither stored nor compared."""
        state: dict[str, Any] = dict(super().__getstate__())
        if "network_" in state:
            network = state["network_"]
            kept = {"flags": network.flags, "facts": network.facts}
            state["network_"] = recipe_config(network.recipe), network_arrays(network, "network"), kept
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "network_" in state:
            recipe, arrays, kept = state["network_"]
            state["network_"] = network_from_arrays(arrays, "network", recipe_from_config(recipe), kept)
        super().__setstate__(state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
