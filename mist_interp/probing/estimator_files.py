"""How are classifiers kept whose learnt state is more than a few arrays?

By `skops`: what a classifier holds becomes JSON and arrays, and loading makes only objects of types that are trusted by
name. These are scikit-learn's estimators and numpy's types (its own list) and, in `TRUSTED`, what fitted ones are made
of. The nodes of a tree point at each other and at columns, and scikit-learn follows them unchecked; a file may say
anything, so they are checked when it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from zipfile import ZIP_DEFLATED, BadZipFile

import numpy as np
from sklearn.ensemble._forest import BaseForest
from sklearn.ensemble._gb import BaseGradientBoosting
from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
from sklearn.svm._base import BaseLibSVM
from sklearn.tree._tree import Tree

from mist_interp.core.errors import listing

_SCORES = {
    "classification": ("accuracy_score", "balanced_accuracy_score", "brier_score_loss", "f1_score", "log_loss"),
    "ranking": ("average_precision_score", "roc_auc_score"),
}
_SPLITTERS = ("KFold", "StratifiedKFold", "GroupKFold", "StratifiedGroupKFold", "LeaveOneGroupOut", "PredefinedSplit")

# Names and not types, for most are private and some versions of scikit-learn lack them. None does anything when it is
# made or named; skops leaves out the two trees because of what is checked here.
TRUSTED = frozenset(
    {
        "mist_interp.probing.networks_classifier.NetworkClassifier",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.feature_selection._mutual_info.mutual_info_classif",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.metrics._scorer._Scorer",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
        "sklearn.utils._bunch.Bunch",
        *(f"sklearn.metrics._{module}.{name}" for module, names in _SCORES.items() for name in names),
        "sklearn.model_selection._split._CVIterableWrapper",  # what `leaks.grouped` makes of every search
        *(f"sklearn.model_selection._split.{name}" for name in _SPLITTERS),
    }
)


def dump_estimators(content: Mapping[str, Any]) -> bytes:
    """Content of a file that holds classifiers, fitted or not, in dictionaries and lists.

    Raises:
        ValueError: one holds something that could not be read again; the message names it.
    """
    import skops.io  # slow: it looks at every estimator of scikit-learn
    from skops.io.exceptions import UnsupportedTypeException

    try:
        data: bytes = skops.io.dumps(dict(content), compression=ZIP_DEFLATED)
    except UnsupportedTypeException as error:
        raise ValueError(f"this classifier cannot be stored: {error}") from None
    except RecursionError:
        raise ValueError("this classifier cannot be stored: a part of it refers to itself") from None
    load_estimators(data, "this classifier cannot be stored")
    return data


def load_estimators(data: bytes, what: str) -> dict[str, Any]:
    """Inverse of `dump_estimators`.

    Args:
        data: content of the file.
        what: beginning of the errors.

    Raises:
        ValueError: it is no such file, holds types that are not trusted (the message names them), or a tree whose nodes
            point elsewhere.
    """
    import skops.io

    try:
        strange = set(skops.io.get_untrusted_types(data=data))
    except (BadZipFile, KeyError, ValueError):
        raise ValueError(f"{what}: it is damaged, or no file of skops") from None
    if strange - TRUSTED:
        raise ValueError(
            f"{what}: it holds types that are not trusted on loading: {listing(sorted(strange - TRUSTED))}"
        )
    content = skops.io.loads(data, trusted=sorted(strange))
    if not isinstance(content, dict):
        raise ValueError(f"{what}: it holds a {type(content).__name__} and no classifiers")
    for machine in _machines(content):
        if not _is_sound_machine(machine):
            raise ValueError(f"{what}: the vectors of a support vector machine are not where it says")
    for tree, width in _trees(content):
        if width is None or not (_is_sound(tree, width) if isinstance(tree, Tree) else _is_sound_boosted(tree, width)):
            raise ValueError(f"{what}: the nodes of a tree point outside of it")
    return content


def _trees(content: Any) -> Iterator[tuple[Tree | TreePredictor, int | None]]:
    """All trees with the number of columns that their rows will have."""
    # The members of a forest get the rows as they are, so their own word on the number of columns does not count.
    todo: list[tuple[Any, int | None, bool]] = [(content, None, False)]
    seen: set[tuple[int, int | None, bool]] = set()
    while todo:
        part, width, settled = todo.pop()
        if (id(part), width, settled) in seen:
            continue
        seen.add((id(part), width, settled))
        if isinstance(part, Tree | TreePredictor):
            yield part, width
            continue
        if _is_object(part):
            # Without a width of its own scikit-learn checks no rows, so the width of what holds it does not count.
            width = width if settled else vars(part).get("n_features_in_")
            settled = settled or isinstance(part, BaseForest | BaseGradientBoosting)
        todo += [(inner, width, settled) for inner in _inner(part)]


def _machines(content: Any) -> Iterator[BaseLibSVM]:
    """All support vector machines, however deep."""
    todo, seen = [content], set()
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, BaseLibSVM):
            yield part
        todo += _inner(part)


def _inner(part: Any) -> Iterable[Any]:
    """What a part of a file's content holds."""
    if isinstance(part, Mapping):
        return part.values()
    if isinstance(part, list | tuple | set):
        return part
    if isinstance(part, np.ndarray) and part.dtype == object:
        return part.flat
    return vars(part).values() if _is_object(part) else ()


def _is_object(part: Any) -> bool:
    held = isinstance(part, Mapping | list | tuple | set | type) or (
        isinstance(part, np.ndarray) and part.dtype == object
    )
    return hasattr(part, "__dict__") and not held


def _is_sound_machine(machine: Any) -> bool:
    """Whether the counts by which libsvm walks through its vectors are those of the arrays; unfitted ones have none."""
    if not hasattr(machine, "_n_support"):
        return True
    counts, vectors = np.asarray(machine._n_support), np.asarray(machine.support_vectors_)
    coefficients = np.asarray(machine._dual_coef_)
    total, classes = int(counts.astype(np.int64).sum()), len(counts)
    pairs = classes * (classes - 1) // 2
    return bool(
        counts.ndim == 1
        and (counts >= 0).all()
        and not machine._sparse
        and vectors.shape == (total, machine.n_features_in_)
        and np.shape(machine.support_) == (total,)
        and coefficients.shape == (classes - 1, total)
        and len(machine._intercept_) == pairs
    )


def _is_sound(tree: Tree, width: int) -> bool:
    left, right = tree.children_left, tree.children_right
    return _are_sound(left == -1, left, right, tree.feature, width)


def _is_sound_boosted(tree: TreePredictor, width: int) -> bool:
    nodes = tree.nodes
    if nodes["is_categorical"].any():  # activations are numbers
        return False
    return _are_sound(nodes["is_leaf"] == 1, nodes["left"], nodes["right"], nodes["feature_idx"], width)


def _are_sound(leaf: np.ndarray, left: np.ndarray, right: np.ndarray, feature: np.ndarray, width: int) -> bool:
    """Whether every path from the first node ends in a leaf: children come after their parents."""
    count = len(leaf)
    inner = ~leaf
    own = np.arange(count)[inner]
    children = [side[inner].astype(np.int64) for side in (left, right)]
    inside = all(((side > own) & (side < count)).all() for side in children)
    return bool(count and inside and ((feature[inner] >= 0) & (feature[inner] < width)).all())
