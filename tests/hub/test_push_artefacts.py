"""Probes and directions on the Hub: what is read back is the same object; nothing else is overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from local_hub import LocalHub
from published_rollouts import SITE, episode, make_store
from sklearn.ensemble import RandomForestClassifier

from mist_interp import Deviation, Probe, SteeringDirection
from mist_interp.cli import main
from mist_interp.core.names import Site
from mist_interp.data import HubError, load_rollouts
from mist_interp.data.artefact import OnHub
from mist_interp.data.store import RolloutStore

NAME = "me/thing"


@pytest.fixture
def store(tmp_path: Path) -> RolloutStore:
    return make_store(tmp_path / "here", *range(6))


def direction(length: float = 1.0) -> SteeringDirection:
    states = frozenset({("libero_spatial", 0, 1)})
    return SteeringDirection(Site(SITE), length * torch.arange(6.0), source={"method": "by hand"}, trained_on=states)


def test_a_direction_comes_back_as_it_was(hub: LocalHub) -> None:
    url = direction().push_to_hub(NAME, private=True)
    assert url == f"{hub.url}/{NAME}" and hub.repos["model", NAME].private
    again = SteeringDirection.from_pretrained(NAME)
    assert torch.equal(again.vector, direction().vector) and again.vector.dtype == torch.float32
    for name in ("site", "tokens", "unit", "source", "trained_on"):
        assert getattr(again, name) == getattr(direction(), name)
    card = hub.files(NAME, "model")["README.md"].decode()
    assert f'SteeringDirection.from_pretrained("{NAME}")' in card and "by hand" in card


def test_a_probe_scores_as_before_and_knows_its_training(hub: LocalHub, store: RolloutStore) -> None:
    probe = Probe(SITE).fit(store)
    probe.push_to_hub(NAME)
    again = Probe.from_pretrained(NAME)
    np.testing.assert_array_equal(again.decision_function(store), probe.decision_function(store))
    assert again.trained_on_ == probe.trained_on_ and again.source_ == probe.source_
    with pytest.raises(ValueError, match="start state"):
        again.evaluate(store)  # it still refuses its own training episodes


def test_a_probe_that_is_not_linear_comes_back_and_a_linear_one_replaces_it(hub: LocalHub, store: RolloutStore) -> None:
    forest = Probe(SITE, estimator=RandomForestClassifier(3)).fit(store)
    forest.push_to_hub(NAME)
    first = hub.repos["model", NAME].branches["main"]
    assert "probe.skops" in hub.files(NAME, "model")
    again = Probe.from_pretrained(NAME)
    np.testing.assert_array_equal(again.decision_function(store), forest.decision_function(store))
    linear = Probe(SITE).fit(store)
    linear.push_to_hub(NAME)
    assert set(hub.files(NAME, "model")) - {".gitattributes"} == {"README.md", "probe.json", "probe.safetensors"}
    np.testing.assert_array_equal(Probe.from_pretrained(NAME).decision_function(store), linear.decision_function(store))
    again = Probe.from_pretrained(NAME, revision=first)
    np.testing.assert_array_equal(again.decision_function(store), forest.decision_function(store))


def test_an_unfitted_probe_is_not_published(hub: LocalHub) -> None:
    with pytest.raises(ValueError, match="not fitted"):
        Probe(SITE).push_to_hub(NAME)
    assert hub.requests == []


def test_a_newer_version_leaves_the_older_one_readable(hub: LocalHub) -> None:
    direction().push_to_hub(NAME)
    first = hub.repos["model", NAME].branches["main"]
    direction(2.0).push_to_hub(NAME)
    assert torch.equal(SteeringDirection.from_pretrained(NAME).vector, direction(2.0).vector)
    assert torch.equal(SteeringDirection.from_pretrained(NAME, revision=first).vector, direction().vector)


def test_a_repository_that_holds_something_else_is_refused(hub: LocalHub, store: RolloutStore) -> None:
    Probe(SITE).fit(store).push_to_hub(NAME)
    before = hub.files(NAME, "model")
    with pytest.raises(HubError, match=r"holds other things \('probe\.json'.*repository of its own"):
        direction().push_to_hub(NAME)
    assert hub.files(NAME, "model") == before
    with pytest.raises(HubError, match="holds no SteeringDirection"):
        SteeringDirection.from_pretrained(NAME)


def test_a_folder_is_read_as_well(hub: LocalHub, tmp_path: Path) -> None:
    direction().save(tmp_path / "saved")
    assert torch.equal(SteeringDirection.from_pretrained(tmp_path / "saved").vector, direction().vector)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a repository"):
        SteeringDirection.from_pretrained("nowhere")
    with pytest.raises(HubError, match="there is no model me/nowhere"):
        SteeringDirection.from_pretrained("me/nowhere")


def test_a_503_and_a_missing_token(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.failures["POST", "/commit/"] = 2
    direction().push_to_hub(NAME)
    assert torch.equal(SteeringDirection.from_pretrained(NAME).vector, direction().vector)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"HF_TOKEN.*`hf auth login`"):
        direction().push_to_hub("me/other")


def test_the_command_publishes_and_fails_in_one_line(
    hub: LocalHub, store: RolloutStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["push", str(store.folder), "me/rollouts", "--private"]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == f"{hub.url}/datasets/me/rollouts" and "6 files published" in shown.err
    assert len(load_rollouts("me/rollouts")) == 6 and hub.repos["dataset", "me/rollouts"].private
    assert main(["push", str(store.folder), "me/rollouts"]) == 0
    assert "all there" in capsys.readouterr().err
    RolloutStore.open(store.folder).append(episode(2, seed=5))
    assert main(["push", str(store.folder), "me/rollouts"]) == 1
    assert "mist push: 1 of the 6 episodes" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(store.folder), "me/rollouts"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_whatever_can_be_published_is_imported_as_its_card_says() -> None:
    import mist_interp.probing  # every class that can be pushed is imported by then

    kinds = OnHub.__subclasses__()
    named = {"Probe", "RiskPredictor", "Deviation", "Benefit", "ConformalAlarm", "SteeringDirection"}
    assert named <= {kind.__name__ for kind in kinds}
    for kind in kinds:
        assert getattr(mist_interp, kind.__name__) is kind


def test_a_deviation_comes_back_as_it_was(hub: LocalHub) -> None:
    made = Deviation(("resid_post", 0), ("action_read",), segments=2)
    made.site_, made.trained_on_ = Site("blocks.0.hook_resid_post"), frozenset({("libero_spatial", 0, 3)})
    made.source_ = {"episodes": 1}
    draw = np.random.default_rng(0)
    made.mean_, made.scale_ = draw.normal(size=4), np.ones(4)
    made.weights_, made.intercept_ = draw.normal(size=(14, 4)), draw.normal(size=14)
    made.push_to_hub("user/deviation")
    again, rows = Deviation.from_pretrained("user/deviation"), draw.normal(size=(3, 4))
    assert np.array_equal(again.predict(rows), made.predict(rows)) and again.trained_on_ == made.trained_on_
