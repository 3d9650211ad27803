"""Two policies that see the same world through different axes: what carries over, and what must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_rollouts import MakeStore, make_episode

from mist_interp.data.manifest import Manifest, TokenGroup
from mist_interp.data.records import EpisodeRecord
from mist_interp.data.store import RolloutStore
from mist_interp.probing.networks import MLP
from mist_interp.probing.networks_fitted import Training
from mist_interp.probing.predictor_policies import PolicyPredictor, matching, whitening
from mist_interp.probing.predictor_transfer import transfer

LATENT, WIDTHS = 6, {"one": 12, "two": 20}
QUICK = Training(learning_rate=0.01, epochs=10, patience=5, batch=32)
SITES = {"one": "blocks.1.hook_resid_post", "two": "blocks.0.hook_resid_post"}


def rollouts(folder: Path, policy: str, inits: range, tasks: int = 2) -> RolloutStore:
    """The scene is six numbers, the fifth of which shows failure; a policy sees them through a matrix of its own."""
    mixing = np.random.default_rng(len(policy) + WIDTHS[policy]).normal(size=(LATENT, WIDTHS[policy]))
    group = TokenGroup("action_read", (SITES[policy],))
    store = RolloutStore.create(folder / policy, Manifest((group,), {"model": policy}))
    for task in range(tasks):
        for init in inits:
            scene = np.random.default_rng((task, init))
            success = bool(scene.random() < 0.5)
            base = make_episode(task, init, scene, success=success)
            store.append(_seen(base, scene, mixing, group.key(SITES[policy]), success))
    return store


def _seen(
    base: EpisodeRecord, scene: np.random.Generator, mixing: np.ndarray, key: str, success: bool
) -> EpisodeRecord:
    queries = []
    for query in base.queries:
        latent = scene.normal(size=LATENT) * [1, 2, 3, 1, 1, 1]
        latent[4] += 2.5 * (not success)
        queries.append(replace(query, activations={key: latent @ mixing}))
    return replace(base, queries=tuple(queries))


@pytest.fixture
def stores(tmp_path: Path, make_store: MakeStore) -> dict[str, RolloutStore]:
    return {policy: rollouts(tmp_path, policy, range(14)) for policy in WIDTHS}


def predictor(way: str = "matched") -> PolicyPredictor:
    return PolicyPredictor(SITES, common=LATENT, way=way, network=MLP((16,)), training=QUICK)


def test_what_is_matched_carries_over_both_ways(stores: dict[str, RolloutStore]) -> None:
    got = transfer(predictor(), stores, min_episodes=5, draws=50)
    frame = got.to_frame()
    assert list(frame.index) == ["one", "two", "all"] and list(frame.columns) == ["one", "two"]
    assert (frame.to_numpy() > 0.85).all(), frame
    for score in got.scores:
        assert score.low is not None and score.high is not None and score.auc is not None
        assert score.low < score.auc < score.high and score.positive_episodes + score.negative_episodes == 28
    ax = got.plot()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["one", "two"]
    with pytest.raises(KeyError, match="'failure'"):
        got.to_frame("failur")


def test_whitening_alone_reads_each_policy_but_promises_no_transfer(stores: dict[str, RolloutStore]) -> None:
    frame = transfer(predictor("whitened"), stores, min_episodes=5, draws=20).to_frame()
    assert frame.loc["one", "one"] > 0.85 and frame.loc["two", "two"] > 0.85
    assert min(frame.loc["one", "two"], frame.loc["two", "one"]) < 0.8


def test_normalising_or_fitting_on_what_is_judged_is_refused(stores: dict[str, RolloutStore], tmp_path: Path) -> None:
    early = {name: store.only(store.keys[:18]) for name, store in stores.items()}
    fitted = predictor().fit({"one": early["one"]})
    with pytest.raises(ValueError, match="training and in the evaluation"):
        fitted.decision_function(early["one"], "one")
    with pytest.raises(KeyError, match="policy with an adapter"):
        fitted.decision_function(stores["two"], "two")
    fitted.adapt("two", stores["two"], early)
    new = {name: rollouts(tmp_path / "new", name, range(20, 34)) for name in WIDTHS}
    assert fitted.predict_proba(new["two"], "two").shape == (2 * 14 * 8, 1)
    unseen = stores["two"].only(stores["two"].keys[18:])  # its labels were not fitted, but its adapter saw it
    with pytest.raises(ValueError, match="training and in the evaluation"):
        fitted.decision_function(unseen, "two")
    fitted.adapt("two", early["two"], early)
    fitted.decision_function(unseen, "two")


def test_matching_needs_the_same_units(stores: dict[str, RolloutStore], tmp_path: Path) -> None:
    others = rollouts(tmp_path / "others", "two", range(50, 60))
    with pytest.raises(ValueError, match="way='whitened'"):
        predictor().fit({"one": stores["one"]}).adapt("two", others, stores)
    frames = [stores[name].queries(["episode", "step"]).assign(**_unit(stores[name])) for name in stores]
    own, other = matching(frames[0], frames[1], until=8)
    assert (frames[0].iloc[own]["step"] <= 8).all() and len(own) == 2 * 28
    assert (frames[0].iloc[own]["episode"].to_numpy() == frames[1].iloc[other]["episode"].to_numpy()).all()


def _unit(store: RolloutStore) -> dict[str, np.ndarray]:
    names = ["suite", "task", "init_state", "perturbation", "simulator_seed"]
    episodes = store.episodes().set_index("episode").loc[store.queries(["episode"])["episode"]]
    return {name: episodes[name].to_numpy() for name in names}


def test_whitened_features_have_unit_covariance() -> None:
    x = np.random.default_rng(0).normal(size=(300, 8)) @ np.random.default_rng(1).normal(size=(8, 8))
    features = whitening(x, 5, frozenset())(x)
    np.testing.assert_allclose(features.T @ features / 300, np.eye(5), atol=1e-8)
    with pytest.raises(ValueError, match="fewer than 9"):
        whitening(x, 9, frozenset())


def test_odd_requests_are_refused(stores: dict[str, RolloutStore]) -> None:
    with pytest.raises(ValueError, match="two policies at least"):
        transfer(predictor(), {"one": stores["one"]})
    with pytest.raises(KeyError, match="did you mean 'matched'"):
        predictor("matchd").fit(stores)
    with pytest.raises(ValueError, match="call fit first"):
        predictor().decision_function(stores["one"], "one")
