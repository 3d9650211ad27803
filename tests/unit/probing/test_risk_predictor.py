"""One network for all outputs: planted signals, masks, constants, controls, files, and the closed loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from synthetic_rollouts import NOISE_SITE, SITE, WIDTH, MakeStore, make_episode, outcome_store

from mist_interp.data.store import RolloutStore
from mist_interp.probing import Labels, cross_validate
from mist_interp.probing.controls import CONTROLS, SHUFFLED
from mist_interp.probing.networks import LSTM, MLP
from mist_interp.probing.networks_fitted import Training
from mist_interp.probing.predictor import RiskPredictor
from mist_interp.probing.targets import Failure
from mist_interp.probing.temporal import ExponentialAverage, RunningMaximum, RunningSum

DRAWS = 200
QUICK = Training(learning_rate=0.01, epochs=12, patience=6, batch=32)
SMALL = MLP((16,))


@dataclass(frozen=True)
class Dimensions:
    """`dz` is the failure that the state shows; `dx` a coin; `dy` is dz in every other episode; `droll` never."""

    name: str = "risk"

    def labels(self, store: RolloutStore) -> Labels:
        failure = Failure().labels(store)
        number = {key: place for place, key in enumerate(store.keys)}
        coin = {key: float(np.random.default_rng(i).random() < 0.5) for key, i in number.items()}
        dz = failure.values[:, 0]
        dx = np.array([coin[key] for key in failure.episode])
        dy = np.where(np.array([number[key] % 2 for key in failure.episode]) == 0, dz, np.nan)
        values = np.stack([dx, dy, dz, np.zeros(len(dz)), np.full(len(dz), np.nan)], axis=1)
        return Labels(values, ("dx", "dy", "dz", "droll", "dyaw"), failure.episode, failure.query)


def failures(make_store: MakeStore, **settings: float) -> RolloutStore:
    return outcome_store(make_store, **{"tasks": 4, "inits": 14, "signal": 2.0, **settings})  # type: ignore[arg-type]


def test_one_network_learns_what_is_planted_and_leaves_out_what_is_masked(make_store: MakeStore) -> None:
    predictor = RiskPredictor(SITE, network=SMALL, target=Dimensions(), training=QUICK).fit(failures(make_store))
    report = predictor.evaluate(failures(make_store, first_init=30, seed=1), draws=DRAWS, min_episodes=5)
    by_name = {output: report.score(output) for output in report.outputs}
    assert by_name["dz"].auc == pytest.approx(0.9, abs=0.07) and by_name["dy"].auc == pytest.approx(0.9, abs=0.09)
    assert by_name["dx"].low is not None and by_name["dx"].high is not None
    assert by_name["dx"].low < 0.5 < by_name["dx"].high
    assert [score.reader for score in report.only().scores if score.output == "dz"] == ["probe", *CONTROLS]
    margin = next(margin for margin in report.only().margins if margin.output == "dz")
    assert margin.value is not None and margin.value > 0.2 and margin.low is not None and margin.low > 0
    brier = by_name["dz"].brier
    assert brier is not None and brier < 0.17, "the probabilities are calibrated"


def test_an_output_of_one_label_is_a_constant_and_flagged(make_store: MakeStore) -> None:
    store = failures(make_store)
    predictor = RiskPredictor(SITE, network=SMALL, target=Dimensions(), training=QUICK).fit(store, controls=False)
    assert [flag.split(":")[0] for flag in predictor.flags_] == ["droll", "dyaw"]
    assert "only the label 0" in predictor.flags_[0] and "no label" in predictor.flags_[1]
    risk = predictor.predict_proba(store)
    np.testing.assert_allclose(risk[:, 3], 1 / (len(risk) + 2))
    np.testing.assert_allclose(risk[:, 4], 0.5)
    assert (np.ptp(risk[:, :3], axis=0) > 0.1).all()
    with pytest.raises(ValueError, match="no output has both labels"):
        RiskPredictor(SITE, target="failure", training=QUICK).fit(failures(make_store, failure_rate=0.0))


@pytest.mark.parametrize("network", [SMALL, LSTM(8)], ids=["MLP", "LSTM"])
def test_shuffled_labels_hold_one_half(make_store: MakeStore, network: MLP | LSTM) -> None:
    training = Training(learning_rate=0.01, epochs=8, batch=32)
    predictor = RiskPredictor(SITE, network=network, target="failure", training=training)
    report = cross_validate(predictor, failures(make_store, tasks=2, inits=26), draws=DRAWS)  # type: ignore[arg-type]
    shuffled = report.score(reader=SHUFFLED)
    assert shuffled.low is not None and shuffled.high is not None and shuffled.low < 0.5 < shuffled.high
    assert report.split == "leave one task out" and (report.score().auc or 0) > 0.8
    assert not hasattr(predictor, "networks_")


def test_several_sites_are_read_side_by_side(make_store: MakeStore) -> None:
    store = failures(make_store)
    both = RiskPredictor([NOISE_SITE, SITE], network=SMALL, target="failure", training=QUICK).fit(store, controls=False)
    assert len(both.networks_["probe"].mean) == 2 * WIDTH and [s.name for s in both.sites_] == [NOISE_SITE, SITE]
    x = np.hstack([store.load(NOISE_SITE)[0], store.load(SITE)[0]])[:8]
    np.testing.assert_allclose(both.predict_proba(x), both.predict_proba(store)[:8], rtol=1e-9)
    report = both.evaluate(failures(make_store, first_init=30, seed=1), min_episodes=5, draws=20)
    assert report.site == f"{NOISE_SITE} + {SITE}" and (report.score().auc or 0) > 0.75


def test_judging_on_training_start_states_is_refused(make_store: MakeStore) -> None:
    store = failures(make_store)
    predictor = RiskPredictor(SITE, network=SMALL, target="failure", training=QUICK).fit(
        store.only(store.keys[:40]), controls=False
    )
    with pytest.raises(ValueError, match="training and in the evaluation"):
        predictor.evaluate(store)
    with pytest.raises(ValueError, match="call fit first"):
        RiskPredictor(SITE).start()


def test_early_stopping_holds_out_whole_start_states(make_store: MakeStore) -> None:
    """Also where a start state was run under several seeds."""
    rng = np.random.default_rng(0)
    episodes = [
        make_episode(0, init, rng, success=init % 2 == 0, simulator_seed=seed) for init in range(20) for seed in (0, 1)
    ]
    data = RiskPredictor(SITE, target="failure").read(make_store(episodes))
    assert len(np.unique(data.group)) == 20 and len(np.unique(data.labels.episode)) == 40
    recipe = RiskPredictor(SITE, network=SMALL, training=QUICK).estimator_
    facts = dict(data.fit(recipe, data.labelled(), 0, ["probe"])["probe"].facts)
    assert facts["held_out_groups"] == 4 and facts["fitted_groups"] == 16


PREDICTORS = {
    "MLP": {"network": SMALL},
    "running maximum": {"network": SMALL, "over_time": RunningMaximum()},
    "exponential average": {"network": SMALL, "over_time": ExponentialAverage(0.4)},
    "running sum": {"network": SMALL, "over_time": RunningSum()},
    "LSTM": {"network": LSTM(8)},
    "LSTM, maximum": {"network": LSTM(8, 2), "over_time": RunningMaximum()},
}


@pytest.mark.parametrize("settings", PREDICTORS.values(), ids=PREDICTORS)
def test_query_by_query_is_the_same_and_causal(make_store: MakeStore, settings: dict[str, object]) -> None:
    training = Training(learning_rate=0.01, epochs=4)
    store = failures(make_store, tasks=1)
    predictor = RiskPredictor(SITE, target=Dimensions(), training=training, **settings).fit(store, controls=False)  # type: ignore[arg-type]
    x, rows = store.load(SITE)
    together = predictor.predict_proba(store)
    first, second = (np.flatnonzero(rows["episode"] == key) for key in store.keys[:2])
    state, steps = predictor.start(), []
    for row in zip(first, second, strict=True):
        before = state
        risk, state = predictor.step(x[list(row)], state)
        again, _ = predictor.step(x[list(row)], before)
        np.testing.assert_array_equal(again, risk, err_msg="a state can be gone on from twice")
        steps.append(risk)
    np.testing.assert_allclose(np.stack(steps)[:, 0], together[first], rtol=1e-9)
    np.testing.assert_allclose(np.stack(steps)[:, 1], together[second], rtol=1e-9)
    changed = x[first].copy()
    changed[5:] += 100
    np.testing.assert_allclose(predictor.predict_proba(changed)[:5], together[first][:5], rtol=1e-9)
    assert not np.allclose(predictor.predict_proba(changed)[5:, :3], together[first][5:, :3])
    with pytest.raises(ValueError, match="3 rows for 2 episodes"):
        predictor.step(x[:3], state)
    with pytest.raises(ValueError, match="width 16"):
        predictor.step(x[:2, :4], state)


def test_a_memory_reads_what_one_query_does_not_show(make_store: MakeStore) -> None:
    """The sign is shown at the first query only; failure is asked at all."""
    rng = np.random.default_rng(0)
    episodes = []
    for task in range(4):
        for init in range(14):
            success = bool(rng.random() < 0.5)
            signal = np.r_[0.0 if success else 6.0, np.zeros(7)]
            episodes.append(make_episode(task, init, rng, success=success, signal=signal))
    store = make_store(episodes)
    train, test = store.only(store.keys[:42]), store.only(store.keys[42:])
    training = Training(learning_rate=0.01, epochs=40, patience=20, batch=64)
    got = {}
    for name, network in {"MLP": SMALL, "LSTM": LSTM(16)}.items():
        predictor = RiskPredictor(SITE, network=network, target="failure", training=training).fit(train, controls=False)
        got[name] = predictor.evaluate(test, min_episodes=3, draws=20).score().auc or 0
    assert got["LSTM"] > 0.9 and got["MLP"] < 0.75


@pytest.mark.parametrize("make", [RiskPredictor.safe_mlp, RiskPredictor.safe_lstm], ids=["SAFE-MLP", "SAFE-LSTM"])
def test_the_safe_baselines_detect_failures(make_store: MakeStore, make: type[RiskPredictor]) -> None:
    predictor = make(SITE).fit(failures(make_store, signal=3.0), controls=False)  # type: ignore[call-arg]
    test = failures(make_store, signal=3.0, first_init=30, seed=1)
    assert (predictor.evaluate(test, min_episodes=5, draws=20).score().auc or 0) > 0.9
    assert predictor.outputs_ == ("failure",)
    if predictor.over_time is not None:
        risk = predictor.predict_proba(test)[:8, 0]
        assert (np.diff(risk) > 0).all(), "a running sum of probabilities"


def test_it_survives_being_saved_with_its_controls(make_store: MakeStore, tmp_path: Path) -> None:
    predictor = RiskPredictor(
        [("resid_post", 0), ("resid_post", 3)],
        network=LSTM(8),
        target="failure",
        over_time=ExponentialAverage(0.4),
        training=Training(epochs=2),
    ).fit(failures(make_store, tasks=2))
    predictor.save(tmp_path / "p")
    again = RiskPredictor.from_pretrained(tmp_path / "p")
    test = failures(make_store, tasks=2, first_init=30, seed=1)
    np.testing.assert_array_equal(again.predict_proba(test), predictor.predict_proba(test))
    assert again.evaluate(test, min_episodes=2, draws=20) == predictor.evaluate(test, min_episodes=2, draws=20)
    for name in ("sites_", "outputs_", "flags_", "trained_on_", "source_", "estimator_", "hub_files"):
        assert getattr(again, name) == getattr(predictor, name), name
    assert again.hub_facts() == predictor.hub_facts() and "LSTM" in repr(again)
    assert sorted(path.suffix for path in (tmp_path / "p").iterdir()) == [".json", ".safetensors"]
    with pytest.raises(FileNotFoundError, match=r"predictor\.json"):
        RiskPredictor.load(tmp_path)
    with pytest.raises(KeyError, match="Dimensions"):
        RiskPredictor(SITE, network=SMALL, target=Dimensions(), training=Training(epochs=1)).fit(
            test, controls=False
        ).save(tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_a_seed_gives_the_same_predictor(make_store: MakeStore) -> None:
    store = failures(make_store, tasks=2)
    one, two, other = (
        RiskPredictor(SITE, network=SMALL, target="failure", training=Training(epochs=2), seed=seed)
        .fit(store, controls=False)
        .predict_proba(store)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
