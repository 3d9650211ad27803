"""A planted deviation is found, read the same from a store and live, kept, and refused where it was fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_rollouts import SITE, WIDTH, MakeStore, make_episode

from mist_interp.core.errors import UnknownName
from mist_interp.data.records import Unit
from mist_interp.data.store import RolloutStore
from mist_interp.probing.advice import Advice
from mist_interp.probing.deviation import Deviation, deviations

HALF = np.array([1, 1, 1, 0.5, 0.5, 0.5, 1.0])
DZ, DROLL, FIRST, SECOND = 2, 3, 0, 1


@pytest.fixture
def told(make_store: MakeStore, tmp_path: Path) -> tuple[RolloutStore, Advice]:
    """The expert differs in dz of the first half by 0.3 of coordinate 5, in droll of the second by -0.2 of 7."""
    rng = np.random.default_rng(0)
    store = make_store([make_episode(task, init, rng) for task in range(3) for init in range(12)])
    advice = Advice(tmp_path / "advice")
    x, rows = store.load(SITE)
    for key, places in rows.groupby("episode").indices.items():
        chunks = np.stack([query.chunk for query in store.episode(str(key)).queries]).copy()
        chunks[:, :4, DZ] += 0.3 * x[places, 5][:, None]
        chunks[:, 4:, DROLL] -= 0.5 * 0.2 * x[places, 7][:, None]
        advice.append(str(key), chunks)
    return store, advice


def test_what_the_expert_does_otherwise_is_read_at_its_segment_and_dimension(told: tuple[RolloutStore, Advice]) -> None:
    store, advice = told
    true = deviations(store, advice, HALF, 2)
    found = Deviation(SITE, ("action_read",), alpha=1.0).out_of_fold(store, advice, HALF)
    for segment, dim in ((FIRST, DZ), (SECOND, DROLL)):
        assert np.corrcoef(true[:, segment, dim], found[:, segment, dim])[0, 1] > 0.99
    x = store.load(SITE)[0]
    assert np.allclose(true[:, FIRST, DZ], 0.3 * x[:, 5], atol=1e-6)  # expert minus policy, normalised units
    assert np.allclose(true[:, SECOND, DROLL], -0.2 * x[:, 7], atol=1e-6)
    silent = np.ones((2, 7), dtype=bool)
    silent[FIRST, DZ] = silent[SECOND, DROLL] = False
    assert np.abs(true[:, silent]).max() < 1e-6 and np.abs(found[:, silent]).max() < 1e-6
    assert np.allclose(deviations(store, advice, HALF)[:, 0], true.mean(1))
    with pytest.raises(UnknownName, match="task"):
        Deviation(SITE).out_of_fold(store, advice, HALF, by="tasks")


def test_no_query_is_predicted_by_a_read_out_that_saw_its_start_state_or_task(
    told: tuple[RolloutStore, Advice], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, advice = told
    keys = store.queries(["episode"])["episode"].to_numpy()
    rows = {row.tobytes(): key for row, key in zip(store.load(SITE)[0], keys, strict=True)}
    seen: list[set[str]] = []
    solve, predict = Deviation._solve, Deviation.predict

    def solving(self: Deviation, x: np.ndarray, target: np.ndarray) -> None:
        seen.append({rows[row.tobytes()] for row in x})
        solve(self, x, target)

    def predicting(self: Deviation, x: np.ndarray) -> np.ndarray:
        asked = {rows[row.tobytes()] for row in x}
        assert not {key[:19] for key in asked} & {key[:19] for key in seen[-1]}  # suite and task
        return predict(self, x)

    monkeypatch.setattr(Deviation, "_solve", solving)
    monkeypatch.setattr(Deviation, "predict", predicting)
    Deviation(SITE, ("action_read",)).out_of_fold(store, advice, HALF, by="task", folds=3)
    assert len(seen) == 3


def test_the_risk_remembers_what_persists_within_an_episode(
    told: tuple[RolloutStore, Advice],
) -> None:
    store, advice = told
    fitted = Deviation(SITE, ("action_read",), memory=0.5).fit(store, advice, HALF)
    predicted = fitted.predict(fitted.rows(store)).mean(1)
    risk = fitted.risk(store)
    assert np.allclose(risk[0], np.abs(0.5 * predicted[0])) and fitted.outputs[DZ] == "dz"
    assert np.allclose(risk[1], np.abs(0.25 * predicted[0] + 0.5 * predicted[1]))
    state = fitted.start()
    for place in range(8):  # the first episode
        state = fitted._after(state, predicted[place])
        assert np.allclose(np.abs(state), risk[place])
    assert np.allclose(risk[8], np.abs(0.5 * predicted[8]))  # the next one begins from nothing
    assert np.allclose(
        Deviation(SITE, ("action_read",), memory=0.0).fit(store, advice, HALF).risk(store), abs(predicted)
    )


def test_it_is_kept_and_read_again(told: tuple[RolloutStore, Advice], tmp_path: Path) -> None:
    store, advice = told
    fitted = Deviation(SITE, ("action_read",), alpha=2.0, memory=0.25, segments=4).fit(store, advice, HALF)
    fitted.save(tmp_path / "d")
    again = Deviation.load(tmp_path / "d")
    assert np.allclose(again.risk(store), fitted.risk(store), atol=1e-12) and again.config() == fitted.config()
    again.check_units([Unit("libero_spatial", 0, 12)])
    with pytest.raises(ValueError, match="start state"):
        again.check_units([Unit("libero_spatial", 0, 11)])
    with pytest.raises(FileNotFoundError, match=r"deviation\.json"):
        Deviation.load(tmp_path)


def test_what_does_not_fit_is_refused(told: tuple[RolloutStore, Advice]) -> None:
    store, advice = told
    with pytest.raises(ValueError, match="call fit first"):
        Deviation(SITE).predict(np.zeros((1, WIDTH)))
    with pytest.raises(ValueError, match=f"width {WIDTH}"):
        Deviation(SITE, ("action_read",)).fit(store, advice, HALF).predict(np.zeros((1, WIDTH + 1)))
    with pytest.raises(ValueError, match="segments"):
        Deviation(SITE, segments=0)
    advice.append(store.keys[0], np.zeros((3, 8, 7)))
    with pytest.raises(ValueError, match=store.keys[0]):
        deviations(store, advice, HALF)
    with pytest.raises(UnknownName, match="episode with advice"):
        advice.of("libero_spatial-t09-i000-none-s0-p0-none")
