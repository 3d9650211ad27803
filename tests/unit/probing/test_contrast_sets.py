"""The two sets of a contrast hold the rows that the target labels 1 and 0, and no masked one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from risk_fixtures import BACK, UP, constant, recorded, touch
from synthetic_rollouts import GROUP, NOISE_SITE, SITE, WIDTH, MakeStore, contact, make_episode, outcome_store

from mist_interp.data.activation_set import ActivationSet
from mist_interp.data.store import RolloutStore
from mist_interp.probing import Risk
from mist_interp.probing.contrasts import contrast_sets
from mist_interp.probing.labels import Labels
from mist_interp.steering import SteeringDirection


class PerDimension:
    """dx where the query is even, dz where it is odd, unless it is the last."""

    name = "parity"

    def labels(self, store: RolloutStore) -> Labels:
        rows = store.queries(["episode", "query"])
        query = rows["query"].to_numpy()
        values = np.stack([query % 2 == 0, query % 2 == 1], axis=1).astype(float)
        values[query == query.max()] = np.nan
        return Labels(values, ("dx", "dz"), rows["episode"].to_numpy(), query)


def test_failures_against_successes_find_the_planted_axis(make_store: MakeStore) -> None:
    store = outcome_store(make_store, signal=2.0)
    pos, neg = contrast_sets(store, SITE, target="failure")
    assert len(pos) + len(neg) == len(store.queries()) and not {*pos.units} & {*neg.units}
    episodes = store.episodes()
    failed = {(row.task, row.init_state) for row in episodes[~episodes["success"]].itertuples()}
    assert {(unit.task, unit.init_state) for unit in pos.units} <= failed
    assert not {(unit.task, unit.init_state) for unit in neg.units} & failed
    made = SteeringDirection.from_contrast(pos, neg)
    assert made.vector[5] / made.norm > 0.9, "towards failure"
    lda = SteeringDirection.from_lda(pos, neg)
    assert lda.cosine(made) > 0.9
    assert made.source["data"]["target"] == "failure" and made.source["data"]["suite"] == "synthetic"


def test_every_output_has_its_own_sets(make_store: MakeStore) -> None:
    store = make_store([make_episode(0, k, np.random.default_rng(k), n_queries=5) for k in range(3)])
    everything = ActivationSet.read(store, SITE)
    pos, neg = contrast_sets(store, SITE, target=PerDimension(), output="dz")
    query = store.queries(["query"])["query"].to_numpy()
    np.testing.assert_array_equal(pos.x, everything.x[np.isin(query, (1, 3))])
    np.testing.assert_array_equal(neg.x, everything.x[np.isin(query, (0, 2))])
    assert pos.source["masked"] == 3 and pos.source["output"] == "dz" and pos.x.shape[1] == WIDTH
    swapped = contrast_sets(store, SITE, target=PerDimension(), output="dx")
    np.testing.assert_array_equal(swapped[0].x, neg.x)
    with pytest.raises(ValueError, match="name one of the outputs dx, dz"):
        contrast_sets(store, SITE, target=PerDimension())
    with pytest.raises(ValueError, match="parity"):
        contrast_sets(store, SITE, target=PerDimension(), output="dy")
    with pytest.raises(ValueError, match="resid_post"):
        contrast_sets(store, ("resid_post", 2), target=PerDimension(), output="dz")


def test_one_kind_alone_is_refused_with_the_counts(make_store: MakeStore) -> None:
    rng = np.random.default_rng(0)
    quiet = make_store([make_episode(0, k, rng) for k in range(3)])
    with pytest.raises(ValueError, match="0 queries are labelled 1"):
        contrast_sets(quiet, SITE, target="contact")
    touching = make_store([make_episode(0, k, rng, contacts=(contact(30),)) for k in range(3)])
    pos, neg = contrast_sets(touching, SITE, target="contact")
    assert len(pos) and len(neg)


def test_risk_has_sets_per_dimension(make_store: MakeStore) -> None:
    """Episodes 0-2 drive down onto something, 3-5 forward into something, 6-8 touch nothing."""
    kinds = [({"dz": -0.5}, UP), ({"dx": 0.5}, BACK), ({"dz": -0.5}, None)]
    rng = np.random.default_rng(0)
    episodes = []
    for init_state in range(9):
        actions, normal = kinds[init_state // 3]
        contacts = () if normal is None else (touch(30, normal),)
        made = recorded(constant(48, **actions), *contacts, init_state=init_state)
        rows = [{GROUP.key(site): rng.normal(size=WIDTH) for site in (SITE, NOISE_SITE)} for _ in made.queries]
        queries = tuple(replace(query, activations=row) for query, row in zip(made.queries, rows, strict=True))
        episodes.append(replace(made, queries=queries))
    store = make_store(episodes)
    starts = {}
    for contrast in ("detection", "attribution"):
        for dim in ("dx", "dz"):
            sets = contrast_sets(store, SITE, target=Risk(contrast=contrast), output=dim)
            starts[contrast, dim] = [{unit.init_state for unit in one.units} for one in sets]
    assert starts["detection", "dz"][0] == {0, 1, 2} and starts["detection", "dx"][0] == {3, 4, 5}
    assert {6, 7, 8} <= starts["detection", "dz"][1]
    assert starts["attribution", "dz"] == [{0, 1, 2}, {3, 4, 5}] == starts["attribution", "dx"][::-1]
    with pytest.raises(ValueError, match="output of the target"):
        contrast_sets(store, SITE, target=Risk(dimensions=("dx",)), output="dz")
