"""Probes of any classifier on disk: the same scores come back, and a file names no type and points nowhere."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from synthetic_rollouts import SITE, MakeStore, outcome_store

from mist_interp.probing import Probe
from mist_interp.probing.dataset import FITS
from mist_interp.probing.estimator_files import dump_estimators, load_estimators
from mist_interp.probing.networks_classifier import NetworkClassifier
from mist_interp.probing.readout import Readout, fit_readout

QUICK_NETWORK = NetworkClassifier((4,), epochs=2)
SEARCH = GridSearchCV(
    Pipeline([("pca", PCA(3)), ("fit", LogisticRegression())]),
    {"fit__C": [0.1, 1.0]},
    cv=StratifiedGroupKFold(2),
    scoring="roc_auc",
)
CLASSIFIERS = [
    HistGradientBoostingClassifier(max_iter=3),
    RandomForestClassifier(3, random_state=np.random.RandomState(0)),
    Pipeline([("pca", PCA(3)), ("fit", LogisticRegression())]),
    SEARCH,
    MLPClassifier((4,), max_iter=3),
    QUICK_NETWORK,
]
MORE = [
    AdaBoostClassifier(n_estimators=2),
    BaggingClassifier(n_estimators=2, max_features=3),
    CalibratedClassifierCV(LinearSVC(), cv=2),
    GradientBoostingClassifier(n_estimators=2),
    GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2),
    MLPClassifier((4,), max_iter=3, solver="sgd"),
    SVC(),
    VotingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier(2))], voting="soft"),
    make_pipeline(PolynomialFeatures(), RandomForestClassifier(2)),
    make_pipeline(SelectKBest(k=3), QUICK_NETWORK),
]
SLOWLY = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def name_of(estimator: Any) -> str:
    return type(estimator).__name__


def rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(60, 6))
    return x, np.stack([x[:, 0] > 0, x[:, 1] > x[:, 2], np.zeros(60)], axis=1).astype(float)


def fitted(estimator: Any) -> Readout:
    return fit_readout(estimator, *rows(), np.arange(60) // 4)


@SLOWLY
@pytest.mark.parametrize("estimator", [*CLASSIFIERS, *MORE], ids=name_of)
def test_scores_come_back_exactly_and_so_does_an_output_without_a_classifier(estimator: Any) -> None:
    readout = fitted(estimator)
    assert readout.estimators[2] is None
    again = load_estimators(dump_estimators({"fitted": list(readout.estimators)}), "refused")["fitted"]
    assert again[2] is None
    x = rows(1)[0]
    same = Readout(readout.mean, readout.scale, tuple(again))
    np.testing.assert_array_equal(same.scores(x), readout.scores(x))


@SLOWLY
def test_probes_are_read_in_another_process_with_their_controls(make_store: MakeStore, tmp_path: Path) -> None:
    store = outcome_store(make_store, tasks=2, inits=6, signal=2.0)
    probes = {name_of(estimator): Probe(("resid_post", 3), estimator=estimator).fit(store) for estimator in CLASSIFIERS}
    for name, probe in probes.items():
        probe.save(tmp_path / name)
        files = sorted(path.name for path in (tmp_path / name).iterdir())
        assert files == ["probe.json", "probe.safetensors", "probe.skops"]
    code = (
        "import json, sys, numpy as np; from mist_interp.probing import Probe\n"
        "for folder in sys.argv[1:]:\n"
        "    readouts = Probe.load(folder).readouts_.items()\n"
        "    x = {fit: np.random.default_rng(5).normal(size=(20, len(one.mean))) for fit, one in readouts}\n"
        "    print(json.dumps({fit: one.scores(x[fit]).tolist() for fit, one in readouts}))"
    )
    folders = [str(tmp_path / name) for name in probes]
    run = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for (name, probe), line in zip(probes.items(), run.stdout.splitlines(), strict=True):
        got = json.loads(line)
        assert list(got) == list(FITS)
        for fit, readout in probe.readouts_.items():
            x = np.random.default_rng(5).normal(size=(20, len(readout.mean)))
            assert got[fit] == readout.scores(x).tolist(), (name, fit)
        again = Probe.load(tmp_path / name)
        assert set(again.estimator_.get_params()) == set(probe.estimator_.get_params())
        assert name_of(again.estimator_) == name and not hasattr(again.estimator_, "classes_")
        assert again.source_ == probe.source_ and again.sigma_ == probe.sigma_ == (None,)


def test_a_linear_probe_leaves_nothing_of_an_earlier_one(make_store: MakeStore, tmp_path: Path) -> None:
    store = outcome_store(make_store, tasks=2, inits=6, signal=2.0)
    forest = Probe(SITE, estimator=RandomForestClassifier(2)).fit(store)
    forest.save(tmp_path)
    assert (tmp_path / "probe.skops").exists()
    linear = Probe(SITE).fit(store)
    linear.save(tmp_path)
    assert not (tmp_path / "probe.skops").exists()
    np.testing.assert_array_equal(Probe.load(tmp_path).decision_function(store), linear.decision_function(store))
    forest.save(tmp_path)
    (tmp_path / "probe.skops").unlink()
    with pytest.raises(FileNotFoundError, match=r"probe\.skops is missing"):
        Probe.load(tmp_path)
    (tmp_path / "probe.skops").write_bytes(dump_estimators({"estimator": LogisticRegression(), "fitted": {}}))
    with pytest.raises(ValueError, match="does not hold a classifier per output"):
        Probe.load(tmp_path)


# -- files of others


def contents(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def archive(files: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return whole.getvalue()


class Stranger:
    pass


def test_a_file_with_a_foreign_type_is_refused_by_its_name(make_store: MakeStore, tmp_path: Path) -> None:
    store = outcome_store(make_store, tasks=2, inits=6, signal=2.0)
    Probe(SITE, estimator=RandomForestClassifier(2)).fit(store).save(tmp_path)
    path = tmp_path / "probe.skops"
    parts = contents(path.read_bytes())
    schema = parts["schema.json"].decode()
    assert schema.count("RandomForestClassifier") > 1
    parts["schema.json"] = schema.replace('"__class__": "RandomForestClassifier"', '"__class__": "Popen"', 1).encode()
    parts["schema.json"] = parts["schema.json"].replace(b"sklearn.ensemble._forest", b"subprocess")
    path.write_bytes(archive(parts))
    with pytest.raises(ValueError, match=r"probe\.skops is refused: it holds types .*not trusted.*subprocess\.Popen"):
        Probe.load(tmp_path)
    path.write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"probe\.skops is refused: it is damaged"):
        Probe.load(tmp_path)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Stranger(), "Stranger"),
        (FunctionTransformer(subprocess.getoutput), r"subprocess\.getoutput"),
        (make_pipeline(FunctionTransformer(lambda x: x), LogisticRegression()), "lambda"),
    ],
)
def test_what_would_be_refused_is_not_written(part: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be stored: it holds types .*{message}"):
        dump_estimators({"fitted": [LogisticRegression(), part]})
    with pytest.raises(ValueError, match=f"refused: .*{message}"):
        load_estimators(skops.io.dumps({"fitted": part}), "refused")


def test_a_classifier_that_refers_to_itself_is_refused_in_words() -> None:
    x, y = rows()
    stopping = HistGradientBoostingClassifier(max_iter=2, early_stopping=True, scoring="roc_auc").fit(x, y[:, 0])
    with pytest.raises(ValueError, match="refers to itself"):
        dump_estimators({"fitted": stopping})


@pytest.mark.parametrize(
    ("name", "value"),
    [("feature", 6), ("feature", -2), ("left_child", 10**9), ("left_child", 0), ("right_child", -3)],
)
def test_a_tree_that_points_elsewhere_is_refused(name: str, value: int) -> None:
    forest = fitted(RandomForestClassifier(2)).estimators[0]
    load_estimators(skops.io.dumps({"fitted": forest}), "refused")
    tree = forest.estimators_[1].tree_
    state = tree.__getstate__()
    state["nodes"][name][0] = value
    tree.__setstate__(state)
    with pytest.raises(ValueError, match="refused: the nodes of a tree point outside"):
        load_estimators(skops.io.dumps({"fitted": forest}), "refused")


def test_a_boosted_tree_that_points_elsewhere_is_refused() -> None:
    for name, value in (("feature_idx", 6), ("left", 10**6), ("right", 0), ("is_categorical", 1)):
        boosted = fitted(HistGradientBoostingClassifier(max_iter=2)).estimators[0]
        nodes = boosted._predictors[1][0].nodes
        nodes[name][np.flatnonzero(nodes["is_leaf"] == 0)[0]] = value
        with pytest.raises(ValueError, match="the nodes of a tree point outside"):
            load_estimators(skops.io.dumps({"fitted": boosted}), "refused")


def test_members_of_a_forest_do_not_say_how_wide_its_rows_are() -> None:
    forest = fitted(RandomForestClassifier(2)).estimators[0]
    wide = RandomForestClassifier(2).fit(np.random.default_rng(0).normal(size=(60, 50)), rows()[1][:, 0])
    forest.estimators_[1] = wide.estimators_[1]
    with pytest.raises(ValueError, match="the nodes of a tree point outside"):
        load_estimators(skops.io.dumps({"fitted": forest}), "refused")
    dump_estimators({"fitted": wide})


def test_a_tree_without_a_width_does_not_take_that_of_what_holds_it() -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 2
    fitted = CalibratedClassifierCV(DecisionTreeClassifier(max_depth=2), cv=2).fit(x, y)
    fitted.n_features_in_ = 10**9
    del fitted.calibrated_classifiers_[0].estimator.n_features_in_
    with pytest.raises(ValueError, match="nodes of a tree"):
        dump_estimators({"one": fitted})


@pytest.mark.parametrize("strange", [[-(10**8), 10**8], [1, 1]])
def test_a_machine_whose_counts_are_not_those_of_its_vectors_is_refused(strange: list[int]) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    fitted = SVC().fit(x, np.arange(40) % 2)
    assert load_estimators(dump_estimators({"one": fitted}), "this file")
    total = int(fitted._n_support.sum())
    fitted._n_support = np.array([strange[0], total - strange[0] if strange[0] < 0 else strange[1]], dtype=np.int32)
    with pytest.raises(ValueError, match="support vector machine"):
        dump_estimators({"one": fitted})


def test_what_is_no_file_of_skops_is_refused_in_words() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("other.json", "{}")
    for data in (b"", b"no zip", buffer.getvalue()):
        with pytest.raises(ValueError, match="this file: it is damaged, or no file of skops"):
            load_estimators(data, "this file")
