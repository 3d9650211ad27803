"""The store: what goes in comes out, a killed or changed run is noticed, one layer is one column."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import Site
from mist_interp.data.compaction import compact
from mist_interp.data.manifest import Manifest, TokenGroup, check_rates
from mist_interp.data.records import ContactRecord, EpisodeRecord, QueryRecord, ReleaseRecord, Unit
from mist_interp.data.store import RolloutStore

SITES = ("blocks.0.hook_resid_post", "blocks.3.hook_resid_post", "ln_final.hook_normalized")
GROUPS = (TokenGroup("action_read", SITES), TokenGroup("action_read.dz", SITES[1:2], "flat"))
MANIFEST = Manifest(GROUPS, {"suite": "libero_spatial", "policy": {"model": "mini"}})


def episode(init_state: int, n_queries: int = 3, success: bool = True) -> EpisodeRecord:
    rng = np.random.default_rng(init_state)
    activations = [
        {group.key(site): rng.normal(size=5 * (group.pool == "flat") + 4) for group in GROUPS for site in group.sites}
        for _ in range(n_queries)
    ]
    return EpisodeRecord(
        unit=Unit("libero_spatial", 1, init_state, "lighting", 7, 9),
        instruction="pick up the bowl",
        success=success,
        steps=8 * n_queries - 2,
        max_steps=220,
        queries=tuple(
            QueryRecord(
                index=i,
                step=8 * i,
                chunk=rng.normal(size=(8, 7)).astype(np.float32),
                executed=rng.normal(size=(8 if i < n_queries - 1 else 6, 7)).astype(np.float32),
                robot_state=rng.normal(size=9).astype(np.float32),
                objects={"bowl": rng.normal(size=7).astype(np.float32)},
                activations=activations[i],
                scores={"risk": float(rng.random())},
                edits=("steer(2)",) if i else (),
                hand=rng.normal(size=(8 if i < n_queries - 1 else 6, 13)),
                state_hash=f"{init_state}-{i}",
                seconds_act=0.25,
            )
            for i in range(n_queries)
        ),
        contacts=(
            ContactRecord(
                3,
                5,
                "hand",
                "table",
                "hand-table",
                12.5,
                0.25,
                (0.1, 0.2, 0.9),
                (0.0, 0.0, 1.0),
                start_force=1.5,
                eef=(0.1, 0.2, 1.0),
                gain=(0.0, 0.0, -0.05, 0.0, 0.0, 0.0),
                finger_speed=None,
            ),
        ),
        touches=(
            ContactRecord(
                2, 9, "finger", "bowl", "finger-interest", 8.5, 1.25, (0.1, 0.2, 0.9), (0.0, 1.0, 0.0), start_force=1.5
            ),
        )
        * (init_state % 3),
        releases=(ReleaseRecord(4, "bowl", True), ReleaseRecord(6, "bowl", False, 7, "plate", True)),
        arm="none",
        seconds=1.5,
        provenance={"torch": "2.13"},
    )


@pytest.fixture
def store(tmp_path: Path) -> RolloutStore:
    store = RolloutStore.create(tmp_path / "rollouts", MANIFEST)
    for init_state, n_queries in ((2, 3), (0, 5), (1, 4)):
        store.append(episode(init_state, n_queries))
    return store


def test_an_episode_survives_the_round_trip(store: RolloutStore) -> None:
    original = episode(0, 5)
    again = RolloutStore.open(store.folder).episode(original.key)
    assert again.unit == original.unit and again.contacts == original.contacts and again.touches == ()
    strip = {"queries": ()}
    assert replace(again, **strip) == replace(original, **strip)
    for a, b in zip(again.queries, original.queries, strict=True):
        for name in ("chunk", "executed", "robot_state", "hand"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        np.testing.assert_array_equal(a.objects["bowl"], b.objects["bowl"])
        assert (a.index, a.step, a.scores, a.edits, a.state_hash) == (b.index, b.step, b.scores, b.edits, b.state_hash)
        for name in b.activations:
            np.testing.assert_allclose(a.activations[name], b.activations[name], rtol=1e-3, atol=1e-6)


def test_no_touches_and_touches_that_were_not_recorded_differ(store: RolloutStore) -> None:
    keys = [episode(number).key for number in range(3)]
    assert [len(store.episode(key).touches or ()) for key in keys] == [0, 1, 2]
    assert store.episode(keys[2]).touches == episode(2).touches
    store.append(replace(episode(0), touches=None))
    assert store.episode(keys[0]).touches is None
    assert [row is None for row in store.episodes()["touches"]] == [True, False, False]


def test_a_store_of_the_second_layout_is_still_read_but_not_continued(store: RolloutStore) -> None:
    """It has no touches, which is not the same as having recorded none."""
    manifest = store.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 3', '"version": 2'))
    for path in (store.folder / "episodes").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["touches"]), path)
    old = RolloutStore.open(store.folder)
    record = old.episode(episode(0).key)
    assert old.manifest.version == 2 and record.touches is None
    assert record.contacts == episode(0).contacts and record.releases == episode(0).releases
    packed = compact(old, store.folder.with_name("packed"))
    assert packed.manifest.version == 2 and packed.episode(record.key).touches is None
    card = (packed.folder / "README.md").read_text()
    assert "| forbidden contact events | 3 |" in card and "allowed contact events" not in card
    with pytest.raises(ValueError, match=r"rollouts of layout 2, and these would be of layout 3\..*--upgrade"):
        RolloutStore.create(store.folder, MANIFEST)


def test_the_card_counts_both_streams(store: RolloutStore) -> None:
    store.append(replace(episode(4), touches=None))
    card = (compact(store, store.folder.with_name("packed")).folder / "README.md").read_text()
    assert "| forbidden contact events | 4 |" in card and "| allowed contact events | 3 |" in card
    assert "Layout version 3" in card and "| `touches` | `list of struct of start_step, " in card


def test_a_store_of_the_first_layout_is_still_read(store: RolloutStore) -> None:
    """It has neither the path of the hand, nor releases, nor the geometry of contacts."""
    manifest = store.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 3', '"version": 1'))
    for path in (store.folder / "queries").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["hand"]), path)
    new = {"start_force", "eef", "gain", "finger_speed"}
    for path in (store.folder / "episodes").glob("*.parquet"):
        table = pq.read_table(path).drop_columns(["releases", "touches"])
        rows = [[{k: v for k, v in c.items() if k not in new} for c in row] for row in table["contacts"].to_pylist()]
        place = table.schema.get_field_index("contacts")
        pq.write_table(table.set_column(place, "contacts", pa.array(rows)), path)
    old = RolloutStore.open(store.folder)
    record = old.episode(old.keys[0])
    assert old.manifest.version == 1 and record.queries[0].hand is None and record.releases == ()
    assert record.touches is None
    assert record.contacts[0].gain is None and record.contacts[0].point == (0.1, 0.2, 0.9)
    with pytest.raises(ValueError, match="rollouts of layout 1"):
        RolloutStore.create(store.folder, MANIFEST)
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 4'))
    with pytest.raises(ValueError, match="layout version 4"):
        RolloutStore.open(store.folder)


def test_one_layer_is_aligned_with_the_queries(store: RolloutStore) -> None:
    x, rows = store.load(("resid_post", 3))
    assert x.shape == (12, 4) and x.dtype == np.float32
    queries = store.queries()
    pd.testing.assert_frame_equal(rows, queries[["episode", "query"]])
    originals = {record.key: record for record in (episode(0, 5), episode(1, 4), episode(2, 3))}
    for number, row in enumerate(rows.itertuples()):
        expected = originals[row.episode].queries[row.query].activations[GROUPS[0].key(SITES[1])]
        np.testing.assert_allclose(x[number], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "site",
    ["blocks.3.hook_resid_post", "blocks.3.resid_post", ("resid_post", 3), ("resid_post", -1), Site(SITES[1])],
)
def test_a_site_may_be_named_in_every_form(store: RolloutStore, site: object) -> None:
    x, _ = store.load(site)  # type: ignore[arg-type]
    np.testing.assert_array_equal(x, store.load(SITES[1])[0])


def test_token_groups_do_not_mix(store: RolloutStore) -> None:
    assert store.load(SITES[1], "action_read.dz", "flat")[0].shape == (12, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("resid_post", 2),), r"blocks\.3\.hook_resid_post"),
        (("blocks.3.hook_resid_pots",), r"blocks\.3\.hook_resid_post"),
        ((SITES[0], "vision"), "action_read:mean"),
        ((SITES[0], "action_read", "max"), "action_read:mean"),
        ((SITES[0], "action_read.dz", "flat"), r"blocks\.3"),
    ],
)
def test_what_is_not_stored_is_an_error_that_says_what_is(
    store: RolloutStore, arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises((KeyError, ValueError), match=message):
        store.load(*arguments)  # type: ignore[arg-type]


def test_a_view_shows_only_its_episodes(store: RolloutStore) -> None:
    some = store.only(store.keys[1:])
    assert len(some) == 2 and len(store) == 3
    assert set(some.queries()["episode"]) == set(some.episodes()["episode"]) == set(store.keys[1:])
    assert len(some.load(SITES[0])[0]) == 7
    with pytest.raises(KeyError, match="episode"):
        some.only([store.keys[0]])
    with pytest.raises(ValueError, match="view"):
        some.append(episode(9))


def test_a_view_by_unit_keeps_the_selection_and_one_by_key_does_not(store: RolloutStore) -> None:
    store.append(episode(3, success=False))
    won = store.only([key for key in store.keys if store.row(key)["success"]])
    assert won.manifest.selection == won.episodes().attrs["selection"] == "chosen"
    for refused in (won, won.where(inits=[0, 1]), won.only(won.keys)):
        with pytest.raises(ValueError, match=r"picked one by one .*not rates of the policy.*where\(tasks="):
            refused.check_rates()
    some = store.where(inits=[3, 0])
    assert some.keys == (episode(0).key, episode(3).key) and some.manifest == store.manifest
    assert some.episodes()["success"].mean() == 0.5
    for allowed in (some, some.where(inits=(0,)), store.only(store.keys), store.where()):
        allowed.check_rates()
        check_rates(allowed.episodes())
    picked = store.where(units=[episode(init).unit for init in (0, 1)])
    with pytest.raises(ValueError, match="picked one by one"):
        picked.check_rates()  # a list of units can be chosen by outcome as well as one of keys
    for frames in ([some, won], [won, some]):
        with pytest.raises(ValueError, match="picked one by one"):
            check_rates(pd.concat([one.episodes() for one in frames], ignore_index=True))
    assert store.episode(store.keys[0]).key == store.keys[0] and store.manifest.selection == "iid"
    with pytest.raises(KeyError, match="unknown episode"):
        some.episode(episode(1).key)
    balanced = replace(store, manifest=replace(store.manifest, selection="balanced"))
    assert {balanced.only(store.keys[:1]).manifest.selection, balanced.where(inits=[0]).manifest.selection} == {
        "balanced"
    }


@pytest.mark.parametrize(
    ("asked", "keys"),
    [
        ({"tasks": [1]}, [0, 1, 2]),
        ({"inits": np.array([2])}, [2]),
        ({"perturbations": ["lighting"], "inits": range(2)}, [0, 1]),
        ({"simulator_seeds": {7}, "policy_seeds": [9], "inits": []}, []),
        ({"units": [episode(1).unit, episode(0).unit], "inits": [1, 2]}, [1]),
    ],
)
def test_views_by_unit(store: RolloutStore, asked: dict[str, Any], keys: list[int]) -> None:
    assert store.where(**asked).keys == tuple(episode(init).key for init in keys)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tasks": [1, 2]}, "unknown task 2; possible: '1'"),
        ({"inits": [3]}, "unknown init state 3; .*'0', '1', '2'"),
        ({"perturbations": ["lightning"]}, "unknown perturbation 'lightning'; did you mean 'lighting'"),
        ({"simulator_seeds": [0]}, "unknown simulator seed 0; possible: '7'"),
        ({"policy_seeds": [0]}, "unknown policy seed 0; possible: '9'"),
        ({"units": [episode(5).unit]}, "unknown unit 'libero_spatial-t01-i005-.*did you mean"),
    ],
)
def test_a_view_of_what_was_not_run_is_refused(store: RolloutStore, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        store.where(**asked)


def test_float16_overflow_fails_loudly_and_stores_nothing(store: RolloutStore) -> None:
    bad = episode(5)
    name = GROUPS[0].key(SITES[1])
    for value, error in ((7e4, OverflowError), (np.inf, ValueError), (np.nan, ValueError)):
        activations = dict(bad.queries[1].activations) | {name: np.array([0, value, 0, 0])}
        queries = (bad.queries[0], replace(bad.queries[1], activations=activations), bad.queries[2])
        with pytest.raises(error, match=r"blocks\.3"):
            store.append(replace(bad, queries=queries))
    assert bad.key not in store and len(store) == 3
    assert not list(store.folder.glob(f"*/{bad.key}.parquet"))


def test_a_missing_activation_is_an_error(store: RolloutStore) -> None:
    bad = episode(5)
    queries = tuple(replace(query, activations={}) for query in bad.queries)
    with pytest.raises(KeyError, match="no activation"):
        store.append(replace(bad, queries=queries))


def test_an_unfinished_episode_does_not_exist(store: RolloutStore) -> None:
    """A process killed between the tables leaves queries without an episode row."""
    (store.folder / "episodes" / f"{store.keys[0]}.parquet").unlink()
    assert len(store) == 2 and len(store.queries()) == len(store.load(SITES[0])[0]) == 7
    store.append(episode(0, 5))
    assert len(store) == 3


def test_the_episode_row_is_written_last(store: RolloutStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[str] = []
    monkeypatch.setattr("mist_interp.data.store.write_atomic", lambda path, content: written.append(path.parent.name))
    store.append(episode(8))
    assert written[-1] == "episodes" and len(written) == 2 + len(GROUPS)


def test_other_settings_in_the_same_folder_are_an_error_that_names_the_field(store: RolloutStore) -> None:
    assert len(RolloutStore.create(store.folder, MANIFEST)) == 3
    other = replace(MANIFEST, settings={"suite": "libero_spatial", "policy": {"model": "openvla-7b"}})
    with pytest.raises(ValueError, match=r"settings\.policy\.model.*mini.*openvla-7b"):
        RolloutStore.create(store.folder, other)
    with pytest.raises(ValueError, match="groups"):
        RolloutStore.create(store.folder, replace(MANIFEST, groups=GROUPS[:1]))


def test_selection_travels_with_the_episodes(tmp_path: Path) -> None:
    store = RolloutStore.create(tmp_path, replace(MANIFEST, selection="balanced"))
    store.append(episode(0))
    assert RolloutStore.open(tmp_path).episodes().attrs["selection"] == "balanced"
    with pytest.raises(KeyError, match="balanced"):
        replace(MANIFEST, selection="balancd")


def test_opening_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no rollouts"):
        RolloutStore.open(tmp_path)
    with pytest.raises(ValueError, match="no finished episode"):
        RolloutStore.create(tmp_path, MANIFEST).queries()


def test_files_are_plain_parquet_with_one_column_per_site(store: RolloutStore) -> None:
    file = next((store.folder / "activations" / "action_read-mean").glob("*.parquet"))
    schema = pq.read_schema(file)
    assert schema.names == ["episode", "query", *SITES]
    assert str(schema.field(SITES[0]).type) == "fixed_size_list<element: halffloat>[4]"
