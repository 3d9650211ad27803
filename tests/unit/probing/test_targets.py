"""Labels: what is positive, what is negative, and what nobody can know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_rollouts import GROUP, MakeStore, contact, make_episode

from mist_interp.data.manifest import Manifest
from mist_interp.data.records import ContactRecord
from mist_interp.data.store import RolloutStore
from mist_interp.probing.targets import ContactAhead, Failure, Labels, target, target_config, target_from_config

RNG = np.random.default_rng(0)


def labels_of(store: object, **settings: float) -> list[float]:
    return ContactAhead(**settings).labels(store).values[:, 0].tolist()  # type: ignore[arg-type]


def test_a_contact_is_foreseen_from_the_window_before_it(make_store: MakeStore) -> None:
    """Chunk 8 and horizon 10: the query at step t answers for steps t .. t + 17."""
    store = make_store([make_episode(0, 0, RNG, n_queries=12, contacts=(contact(41),))])
    # Queries at 0, 8, 16 see up to 17, 25, 33; the one at 24 sees 41 as its very last step.
    # In contact: steps 41 .. 44, no query there (40 is before, 48 after). The last windows run past step 96.
    expected = [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, np.nan, np.nan]
    np.testing.assert_array_equal(labels_of(store), expected)


@pytest.mark.parametrize(("start", "label"), [(41, 1.0), (42, 0.0), (24, 1.0), (23, np.nan)])
def test_the_edges_of_the_window(make_store: MakeStore, start: int, label: float) -> None:
    """The query at step 24 foresees 24 .. 41; a contact that began at 23 is being lived through."""
    store = make_store([make_episode(0, 0, RNG, n_queries=12, contacts=(contact(start),))])
    np.testing.assert_equal(labels_of(store)[3], label)


@pytest.mark.parametrize(("end", "masked"), [(20, False), (21, True), (30, True)])
def test_three_contact_free_steps_end_a_contact(make_store: MakeStore, end: int, masked: bool) -> None:
    """At step 24 the steps 21, 22 and 23 must have been free: an event that ended at 20 is over, one at 21 is not."""
    store = make_store([make_episode(0, 0, RNG, n_queries=12, contacts=(contact(10, end),))])
    assert np.isnan(labels_of(store)[3]) == masked


def test_a_new_contact_during_an_old_one_is_not_foreseen(make_store: MakeStore) -> None:
    store = make_store([make_episode(0, 0, RNG, n_queries=12, contacts=(contact(10, 30), contact(33)))])
    assert np.isnan(labels_of(store)[3])


def test_the_end_of_the_episode_censors_and_counts(make_store: MakeStore) -> None:
    store = make_store([make_episode(0, 0, RNG, n_queries=4, contacts=(contact(31),))])
    # Steps 0 .. 31. Query 0 sees 0 .. 17, query 1 8 .. 25; 2 and 3 see the contact although their windows are cut.
    np.testing.assert_array_equal(labels_of(store), [0, 0, 1, 1])
    quiet = make_store([make_episode(0, 0, RNG, n_queries=4)])
    labels = ContactAhead().labels(quiet)
    np.testing.assert_array_equal(labels.values[:, 0], [0, 0, np.nan, np.nan])
    assert labels.masked["the episode ends inside the window"] == 2


def test_weak_contacts_count_only_from_their_force_on(make_store: MakeStore) -> None:
    store = make_store([make_episode(0, 0, RNG, n_queries=12, contacts=(contact(41, force=5.0),))])
    assert labels_of(store, force=10.0)[3] == 0 and labels_of(store, force=5.0)[3] == 1


@given(
    events=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 20)), max_size=4),
    horizon=st.integers(0, 20),
    n_queries=st.integers(1, 14),
)
@settings(max_examples=60, deadline=None)
def test_the_labels_follow_the_definition_for_any_events(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, int]], horizon: int, n_queries: int
) -> None:
    spans = [(start, start + length) for start, length in events if start < 8 * n_queries]
    store = RolloutStore.create(tmp_path_factory.mktemp("s"), Manifest((GROUP,)))
    contacts: tuple[ContactRecord, ...] = tuple(contact(start, end) for start, end in spans)
    store.append(make_episode(0, 0, RNG, n_queries=n_queries, contacts=contacts))
    touched = {step for start, end in spans for step in range(start, end + 1)}
    for query, label in enumerate(labels_of(store, horizon=horizon)):
        t = 8 * query
        window = range(t, t + 8 + horizon)
        recently = any(step in touched and any(s <= step <= e and s < t for s, e in spans) for step in range(t - 3, t))
        ongoing = any(s < t <= e for s, e in spans)
        if recently or ongoing:
            assert np.isnan(label)
        elif any(start in window for start, _ in spans):
            assert label == 1
        elif window[-1] >= 8 * n_queries:
            assert np.isnan(label)
        else:
            assert label == 0


def test_failure_labels_do_not_let_the_clock_leak(make_store: MakeStore) -> None:
    store = make_store(
        [
            make_episode(0, 0, RNG, success=True, n_queries=3),
            make_episode(0, 1, RNG, success=False, n_queries=6),
            make_episode(1, 0, RNG, success=True, n_queries=5),
            make_episode(1, 1, RNG, success=False, n_queries=6),
        ]
    )
    labels = Failure().labels(store)
    counts = {key: int((~np.isnan(labels.values[labels.episode == key])).sum()) for key in store.keys}
    assert list(counts.values()) == [3, 3, 5, 5] and labels.masked == {"later than the shortest episode of the task": 4}
    for query in range(5):
        known = labels.values[labels.query == query, 0]
        assert np.nanmean(known) == 0.5, "at every query as many failures as successes: the clock knows nothing"
    assert np.isnan(Failure(cut=False).labels(store).values).sum() == 0


def test_targets_are_named_and_stored() -> None:
    assert target("contact") == ContactAhead() and target(Failure(cut=False)) == Failure(cut=False)
    for made in (ContactAhead(horizon=4, force=10.0), Failure(cut=False)):
        assert target_from_config(target_config(made)) == made
    with pytest.raises(KeyError, match="contact"):
        target("contacts")


def test_labels_are_zero_one_or_masked() -> None:
    with pytest.raises(ValueError, match="0, 1 or NaN"):
        Labels(np.array([[0.5]]), ("x",), np.array(["a"]), np.array([0]))
    with pytest.raises(ValueError, match="shape"):
        Labels(np.zeros((2, 2)), ("x",), np.array(["a", "b"]), np.array([0, 1]))
