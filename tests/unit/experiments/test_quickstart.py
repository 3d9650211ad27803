"""The threshold of the quickstart is fair, and its last sentences say what the numbers say."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mist_interp.data.store import RolloutStore
from mist_interp.probing import Probe
from tests.unit.probing.synthetic_rollouts import GROUP, SITE, contact, make_episode

SCRIPT = Path(__file__).resolve().parents[3] / "experiments" / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart() -> Any:
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["quickstart"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rollouts(folder: Path, inits: range, seed: int) -> RolloutStore:
    """Every third episode touches something in its fourth query; activations know nothing of it."""
    from mist_interp.data.manifest import Manifest

    store = RolloutStore.create(folder, Manifest((GROUP,), {"model": "none"}))
    rng = np.random.default_rng(seed)
    for task in range(4):
        for init in inits:
            contacts = (contact(30),) if (task + init) % 3 == 0 else ()
            store.append(make_episode(task, init, rng, contacts=contacts))
    return store


def test_about_a_tenth_of_the_quiet_episodes_fire(quickstart: Any, tmp_path: Path) -> None:
    """With a threshold for queries instead of episodes more than half of them would."""
    store, fresh = rollouts(tmp_path / "a", range(30), 0), rollouts(tmp_path / "b", range(30, 50), 1)
    probe = Probe(SITE, target="contact")
    maxima = quickstart.quiet_maxima(probe, store)
    assert len(maxima) == 80
    threshold = quickstart.rank_limit(maxima, quickstart.FALSE_ALARMS)
    probe.fit(store)
    data = probe.read(fresh)
    chances = probe.predict_proba(fresh)[:, 0]
    fired = {
        episode: bool((chances[data.labels.episode == episode] > threshold).any())
        for episode in np.unique(data.labels.episode)
        if not (data.labels.values[data.labels.episode == episode, 0] == 1).any()
    }
    assert 0 < np.mean(list(fired.values())) < 0.25


def test_no_episode_is_scored_by_a_probe_that_saw_it(
    quickstart: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory:
        """Gives 1 to a row of its training and 0 to any other."""

        def __init__(self, estimator: Any, rows: np.ndarray, labels: np.ndarray) -> None:
            self.known = {row.tobytes() for row in rows}

        def probabilities(self, rows: np.ndarray) -> np.ndarray:
            return np.array([[float(row.tobytes() in self.known)] for row in rows])

    monkeypatch.setattr(quickstart, "fit_readout", Memory)
    maxima = quickstart.quiet_maxima(Probe(SITE, target="contact"), rollouts(tmp_path, range(6), 0))
    assert len(maxima) == 16 and not maxima.any()


def comparison(reference: str, metric: str, value: float, p: float) -> dict[str, Any]:
    return {"arm": "steer", "reference": reference, "metric": metric, "difference": {"value": value}, "p_holm": p}


def test_the_verdict_needs_both_controls(quickstart: Any) -> None:
    rows = [
        comparison("none", "success_rate", 0.3, 0.01),
        comparison("random-direction", "success_rate", 0.3, 0.2),
        comparison("none", "collision_rate_1n", -0.3, 0.01),
        comparison("random-direction", "collision_rate_1n", -0.3, 0.01),
    ]
    success, collision = quickstart.verdict({"comparisons": rows})
    assert "more successes than none and random-direction" in success and "shown against none" in success
    assert "fewer collisions" in collision and "[bold]yes[/]" in collision
    worse = [row | {"difference": {"value": -row["difference"]["value"]}} for row in rows]
    assert all("shown against neither" in sentence for sentence in quickstart.verdict({"comparisons": worse}))
    assert quickstart.verdict({"comparisons": []}) == []


def test_the_device_is_passed_on(quickstart: Any) -> None:
    source = quickstart.Settings(device="cuda", model="some/model").policy
    assert (source.path_or_id, source.device) == ("some/model", "cuda")
