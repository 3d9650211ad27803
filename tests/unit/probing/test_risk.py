"""Risk labels: when is a query positive, negative or masked, is every mask counted, and are known mistakes absent?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from risk_fixtures import BACK, UP, constant, course, recorded, touch
from synthetic_rollouts import MakeStore, contact, make_episode

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data.manifest import Manifest
from mist_interp.data.records import EpisodeRecord, ReleaseRecord
from mist_interp.data.store import RolloutStore
from mist_interp.probing import Probe, cross_validate
from mist_interp.probing.risk import Risk
from mist_interp.probing.scores import Judged, auc
from mist_interp.probing.targets import ContactAhead, FailureWithin, target, target_config, target_from_config

Store = Callable[..., RolloutStore]
NAN = float("nan")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(os, "fsync", lambda handle: None)

    def make(*episodes: EpisodeRecord, **manifest: Any) -> RolloutStore:
        made = RolloutStore.create(tmp_path / "store", Manifest((), {"suite": "synthetic"}, **manifest))
        for episode in episodes:
            made.append(episode)
        return made

    return make


def column(labels: Any, name: str) -> list[float]:
    return list(labels.values[:, ACTION_NAMES.index(name)])


def test_the_seven_outputs_are_the_actions(store: Store) -> None:
    labels = Risk().labels(store(recorded(constant(48, dz=-0.5), touch(30))))
    assert labels.outputs == ACTION_NAMES and labels.values.shape == (6, 7)
    assert list(labels.query) == [0, 1, 2, 3, 4, 5]


def test_the_window_is_the_chunk_and_ten_steps(store: Store) -> None:
    """Queries at 0, 8, 16, ... see 18 steps; the event is at 30. 24 is in it, 16 is, 8 is not."""
    labels = Risk().labels(store(recorded(constant(80, dz=-0.5), touch(30, last=30))))
    np.testing.assert_array_equal(column(labels, "dz"), [0, 0, 1, 1, NAN, 0, 0, 0, NAN, NAN])
    np.testing.assert_array_equal(column(labels, "dx"), [0, 0, NAN, NAN, NAN, 0, 0, 0, NAN, NAN])
    np.testing.assert_array_equal(column(labels, "gripper"), column(labels, "dx"))
    others = {f"{name}: an event, but of other dimensions": 2 for name in ACTION_NAMES if name != "dz"}
    assert labels.masked == {"in contact": 1, "the episode ends inside the window": 2, **others}


@pytest.mark.parametrize(("start", "positive"), [(15, 0), (16, 1), (33, 1), (34, 0)])
def test_the_borders_of_the_window(start: int, positive: int) -> None:
    """The query at step 16 answers for control steps 16 to 33."""
    there = course(constant(80, dz=-0.5), touch(start, last=start))
    values = Risk().judge(there, 16, 34, 80).values
    assert values[2] == positive or (start == 15 and np.isnan(values[2]))


@pytest.mark.parametrize(("step", "masked"), [(30, False), (31, True), (40, True), (43, True), (44, False)])
def test_contact_is_over_after_three_free_steps(step: int, masked: bool) -> None:
    """An event in steps 30 to 40: steps 41, 42, 43 are free, so the query at 44 is judged again."""
    there = course(constant(80, dz=-0.5), touch(30, last=40))
    assert np.isnan(Risk().judge(there, step, step + 18, 80).values).all() == masked


def test_a_window_that_is_cut_off_is_unknown_but_an_event_in_it_is_not(store: Store) -> None:
    labels = Risk().labels(store(recorded(constant(24, dz=-0.5), touch(20, last=20))))
    np.testing.assert_array_equal(column(labels, "dz"), [0, 1, 1])  # the windows of the last two go on to 26 and 34
    quiet = Risk().judge(course(constant(24)), 6, 24, 24), Risk().judge(course(constant(24)), 7, 25, 24)
    assert (quiet[0].values == 0).all() and np.isnan(quiet[1].values).all()


def test_an_unattributed_event_is_masked_and_counted(store: Store) -> None:
    """The hand moves up and away; the obstacle came. The gripper is judged on its own."""
    labels = Risk().labels(store(recorded(constant(48, dz=0.5), touch(20, last=20))))
    assert labels.masked["pose: unattributed (no commanded motion closed the gap)"] == 2
    assert labels.masked["gripper: an event, but of other dimensions"] == 2
    np.testing.assert_array_equal(column(labels, "dz"), [0, NAN, NAN, 0, NAN, NAN])


def test_missing_geometry_is_masked_and_never_replaced_by_the_size_of_the_action(store: Store) -> None:
    labels = Risk().labels(store(recorded(constant(48, dx=1, dz=-1), touch(20, last=20, geometry=False))))
    assert labels.masked["pose: no geometry is recorded"] == 2 and not (labels.values == 1).any()


def test_a_dropped_object_is_the_grippers_affair_alone(store: Store) -> None:
    drop = ReleaseRecord(20, "bowl", True, 24, "table", False)
    labels = Risk().labels(store(recorded(constant(64, dz=-0.5, gripper=-1.0), releases=(drop,))))
    np.testing.assert_array_equal(column(labels, "gripper")[:6], [0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(column(labels, "dz")[:6], [0] * 6)


def test_one_of_several_events_is_enough(store: Store) -> None:
    contacts = touch(10, UP, last=10), touch(14, BACK, (0.1, 0, 0), last=14, kind="finger-box")
    labels = Risk().labels(store(recorded(constant(48, dx=0.5, dz=-0.5), *contacts)))
    assert column(labels, "dz")[0] == column(labels, "dx")[0] == 1


def test_attribution_asks_who_it_was_given_an_event(store: Store) -> None:
    made = store(recorded(constant(80, dz=-0.5), touch(30, last=30)))
    labels = Risk(contrast="attribution").labels(made)
    np.testing.assert_array_equal(labels.values[2:4], [[0, 0, 1, 0, 0, 0, 0]] * 2)
    assert np.isnan(labels.values[[0, 1, 4, 5, 6, 7, 8, 9]]).all()
    assert labels.masked == {"in contact": 1, "no event": 7}


@pytest.mark.parametrize("seed", range(4))
def test_labels_for_detection_bring_those_for_attribution_along(store: Store, seed: int) -> None:
    rng = np.random.default_rng(seed)
    episodes = []
    for number in range(12):
        starts = np.sort(rng.integers(2, 60, 3))
        contacts = [
            touch(
                int(start),
                UP if rng.random() < 0.5 else BACK,
                (0.1, 0.0, -0.1),
                last=int(start) + 2,
                kind=str(rng.choice(["hand-table", "finger-box"])),
                finger_speed=float(rng.choice([0.0, 0.03])),
                geometry=bool(rng.random() < 0.8),
            )
            for start in starts[: rng.integers(0, 4)]
        ]
        drop = ReleaseRecord(int(rng.integers(0, 60)), "bowl", True, 62, "table", False)
        actions = np.clip(rng.normal(size=(64, 7)), -1, 1)
        episodes.append(recorded(actions, *contacts, releases=(drop,) * (number % 2), init_state=number))
    made = store(*episodes)
    labels, blamed = Risk().labels(made), Risk(contrast="attribution").labels(made)
    np.testing.assert_array_equal(labels.also["attribution"], blamed.values)
    assert {0.0, 1.0} <= set(np.unique(blamed.values)) and not blamed.also


def test_masks_are_counted_once(store: Store) -> None:
    contacts = touch(20, last=22), touch(50, BACK, (0.1, 0, 0), last=50, kind="finger-box")
    labels = Risk().labels(store(recorded(constant(96, dx=0.5, dz=0.5), *contacts)))
    for place, name in enumerate(ACTION_NAMES):
        pose = ("pose: ",) if name != "gripper" else ()
        mine = [
            n for reason, n in labels.masked.items() if ": " not in reason or reason.startswith((f"{name}: ", *pose))
        ]
        assert sum(mine) == np.isnan(labels.values[:, place]).sum(), name


def test_where_a_dimension_is_labelled_the_plain_contact_target_agrees(store: Store) -> None:
    made = store(
        recorded(constant(96, dx=0.5, dz=-0.5), touch(20, last=22), touch(60, last=61), init_state=0),
        recorded(constant(96, dx=0.5), init_state=1),
    )
    plain, risk = ContactAhead().labels(made).values[:, 0], Risk().labels(made).values
    for place in range(7):
        known = ~np.isnan(risk[:, place])
        np.testing.assert_array_equal(risk[known, place], plain[known])


def test_the_force_threshold(store: Store) -> None:
    made = store(recorded(constant(80, dz=-0.5), touch(30, last=30, force=5.0)))
    assert (Risk(force=10.0).labels(made).values[:8] == 0).all()


# -- stores that cannot be labelled


def test_an_older_layout_is_refused_with_the_way_out(store: Store) -> None:
    made = store(recorded(constant(32)))
    manifest = made.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 3', '"version": 1'))
    with pytest.raises(ValueError, match=r"data\.replay\.upgrade"):
        Risk().labels(RolloutStore.open(made.folder))


def test_queries_that_were_not_run_have_no_label(store: Store) -> None:
    with pytest.raises(ValueError, match="no outcome"):
        Risk().labels(store(recorded(constant(32)), selection="inputs"))


@pytest.mark.parametrize("wrong", [{"gamma": 0.0}, {"share": 0.0}, {"share": 1.2}, {"horizon": -1}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="gamma"):
        Risk(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contacts are recorded from 1 N on"):
        Risk(force=0.5)
    with pytest.raises(KeyError, match="attribution"):
        Risk(contrast="atribution")


def test_the_target_is_known_by_name_and_survives_being_stored() -> None:
    assert target("risk") == Risk()
    mine = Risk(horizon=4, contrast="attribution", audit=True, dimensions=("dz", "dx"))
    assert target_from_config(json.loads(json.dumps(target_config(mine)))) == mine


def test_dimensions_can_be_chosen(store: Store) -> None:
    made = store(recorded(constant(80, dz=-0.5), touch(30, last=30)))
    everything, some = Risk().labels(made), Risk(dimensions=("gripper", "dz")).labels(made)
    np.testing.assert_array_equal(some.values, everything.values[:, [6, 2]])
    assert some.outputs == ("gripper", "dz")
    assert some.masked == {k: n for k, n in everything.masked.items() if ": " not in k or k.startswith("gripper")}
    with pytest.raises(KeyError, match="droll"):
        Risk(dimensions=("drol",))
    with pytest.raises(ValueError, match="empty"):
        Risk(dimensions=())


# -- how labels went wrong elsewhere


def many_courses(store: Store, count: int = 60) -> RolloutStore:
    """Contacts at random times with random obstacles, while the arm does random things."""
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(count):
        actions = np.repeat(np.clip(rng.normal(size=(12, 7)), -1, 1), 8, axis=0)
        normal = rng.normal(size=3)
        start = int(rng.integers(10, 80))
        contacts = [touch(start, tuple(normal / np.linalg.norm(normal)), tuple(0.1 * rng.normal(size=3)), last=start)]
        speed = rng.choice([0.0, 0.03])
        contacts[0] = touch(
            start,
            contacts[0].normal,
            np.subtract(contacts[0].point, (0, 0, 1)),
            last=start,
            kind="finger-box",
            finger_speed=float(speed),
        )
        episodes.append(recorded(actions, *contacts[: rng.integers(0, 2)], task=number % 6, init_state=number // 6))
    return store(*episodes)


def test_no_output_is_dead_and_no_two_are_the_same(store: Store) -> None:
    values = Risk(contrast="attribution").labels(many_courses(store)).values
    known = values[~np.isnan(values).any(1)]
    assert len(known) > 20 and (known.min(0) == 0).all() and (known.max(0) == 1).all()
    for one in range(7):
        for other in range(one):
            assert (known[:, one] != known[:, other]).any()


def test_labels_are_not_known_from_the_clock(store: Store) -> None:
    made = many_courses(store)
    labels, step = Risk().labels(made), made.queries(["step"])["step"].to_numpy().astype(float)
    for place in range(6):
        known = ~np.isnan(labels.values[:, place])
        rows = np.zeros(int(known.sum()), dtype=int)
        value = auc(step[known], Judged(labels.values[known, place], rows, rows, rows))
        assert value is not None and abs(value - 0.5) < 0.25


def test_labels_are_not_a_function_of_the_action_about_to_be_sent(store: Store) -> None:
    """The same actions in every episode, other obstacles: the labels differ."""
    actions = constant(48, dx=0.5, dz=-0.5)
    made = store(
        recorded(actions, touch(20, last=20), init_state=0),
        recorded(actions, touch(20, BACK, (0.1, 0, 0), last=20), init_state=1),
        recorded(actions, init_state=2),
    )
    values = Risk().labels(made).values.reshape(3, 6, 7)[:, 1]
    np.testing.assert_array_equal(values[:, [0, 2]], [[NAN, 1], [1, NAN], [0, 0]])


def test_a_probe_takes_risk_as_its_target(make_store: MakeStore) -> None:
    """Seven outputs go through folds, controls and the report."""
    rng = np.random.default_rng(0)
    episodes = [make_episode(t, i, rng, contacts=(contact(30),) if i % 2 else ()) for t in range(4) for i in range(4)]
    made = make_store([with_hand(episode) for episode in episodes])
    report = cross_validate(Probe(("resid_post", 3), target="risk"), made, draws=10, min_episodes=2)
    assert {score.output for score in report.scores} == set(ACTION_NAMES)


def with_hand(episode: EpisodeRecord) -> EpisodeRecord:
    from dataclasses import replace

    contacts = tuple(touch(c.start_step, tuple(np.sign([1e-9, 1, 1]) / np.sqrt(3))) for c in episode.contacts)
    path = np.tile([0, 0, 1, 0, 0, 0, 1, *[0] * 6], (8, 1)).astype(float)
    return replace(episode, contacts=contacts, queries=tuple(replace(q, hand=path) for q in episode.queries))


# -- time to failure


def test_time_to_failure(store: Store) -> None:
    made = store(
        recorded(constant(24), success=True, init_state=0),
        recorded(constant(40), success=False, max_steps=40, init_state=1),
    )
    from mist_interp.probing import time_to_failure

    assert list(time_to_failure(made)["steps"]) == [np.inf] * 3 + [40, 32, 24, 16, 8]
    assert list(FailureWithin(24).labels(made).values[:, 0]) == [0, 0, 0, 0, 0, 1, 1, 1]
    assert target("failure within") == FailureWithin()
