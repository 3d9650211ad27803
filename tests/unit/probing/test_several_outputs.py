"""One probe, several outputs: each has its own labels, masks, controls, margin and direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from synthetic_rollouts import SITE, MakeStore, outcome_store

from mist_interp.data.store import RolloutStore
from mist_interp.probing import Labels, Probe, cross_validate
from mist_interp.probing.targets import Failure


@dataclass(frozen=True)
class PerDimension:
    """`dz` is the failure that the hidden state shows, `dx` a coin, `dyaw` is known in two episodes only."""

    name: str = "risk"

    def labels(self, store: RolloutStore) -> Labels:
        failure = Failure().labels(store)
        coin = {key: float(np.random.default_rng(i).random() < 0.5) for i, key in enumerate(store.keys)}
        dx = np.array([coin[key] for key in failure.episode])
        dyaw = np.where(np.isin(failure.episode, store.keys[:2]), failure.values[:, 0], np.nan)
        values = np.stack([dx, failure.values[:, 0], dyaw], axis=1)
        return Labels(values, ("dx", "dz", "dyaw"), failure.episode, failure.query)


def test_each_output_is_judged_by_its_own_labels(make_store: MakeStore) -> None:
    report = cross_validate(Probe(SITE, target=PerDimension()), outcome_store(make_store, signal=2.0), draws=200)
    assert report.outputs == ("dx", "dz", "dyaw")
    dx, dz, dyaw = (report.score(output) for output in report.outputs)
    assert dz.auc == pytest.approx(0.92, abs=0.05)
    assert dx.low is not None and dx.high is not None and dx.low < 0.5 < dx.high
    assert dyaw.auc is None and dyaw.queries == 16
    assert report.macro_auc == pytest.approx(np.mean([dx.auc, dz.auc])), "an output without AUC is left out of the mean"
    assert report.flags and all(flag.startswith("dyaw") for flag in report.flags)
    assert [margin.value is None for margin in report.only().margins] == [False, False, True]
    assert len(report.to_frame()) == 2 * 3 * 6


def test_each_output_has_its_own_direction(make_store: MakeStore) -> None:
    store = outcome_store(make_store, signal=4.0, seed=3)
    probe = Probe(SITE, target=PerDimension()).fit(store)
    along = {output: probe.direction(output) for output in ("dx", "dz")}
    assert along["dz"].vector[5] / along["dz"].norm > 0.9
    assert abs(along["dz"].cosine(along["dx"])) < 0.6
    with pytest.raises(ValueError, match="name one of the outputs dx, dz, dyaw"):
        probe.direction()
    with pytest.raises(KeyError, match="did you mean 'dz'"):
        probe.direction("dzz")
