"""Every token is seen once per epoch, in an order that depends on the seed alone, and start states stay apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mist_interp.analysis.sae.rows import TokenRows, split_by_start_state
from mist_interp.data.activation_set import ActivationSet, start_states, unit_of_episode
from mist_interp.data.manifest import Manifest, TokenGroup
from mist_interp.data.records import EpisodeRecord, QueryRecord, Unit
from mist_interp.data.store import RolloutStore

SITE = "blocks.1.hook_resid_post"
GROUPS = (TokenGroup("vision", (SITE,), "flat"), TokenGroup("action_read", (SITE,), "mean"))
WIDTH, TOKENS, QUERIES = 4, 3, 5
EPISODE = 64  # between the numbers of two episodes; all are exact in float16, in which they are stored


def numbered(rows: int) -> np.ndarray:
    """Rows whose numbers say which row they belong to."""
    return (np.arange(rows)[:, None] * WIDTH + np.arange(WIDTH)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> RolloutStore:
    """Five start states of two tasks, one of them replayed under another seed."""
    made = RolloutStore.create(tmp_path, Manifest(GROUPS, {"model": "m"}))
    units = [Unit("libero_spatial", task, init) for task in (0, 1) for init in (0, 1)]
    units += [Unit("libero_spatial", 1, 5), Unit("libero_spatial", 1, 5, simulator_seed=3)]
    for number, unit in enumerate(units):
        flat = (numbered(QUERIES * TOKENS) + EPISODE * number).reshape(QUERIES, -1)
        queries = tuple(
            QueryRecord(
                q,
                8 * q,
                np.zeros((8, 7)),
                np.zeros((8, 7)),
                np.zeros(9),
                activations={f"{SITE}@vision:flat": flat[q], f"{SITE}@action_read:mean": flat[q, :WIDTH]},
            )
            for q in range(QUERIES)
        )
        made.append(EpisodeRecord(unit, "do it", True, 40, 220, queries))
    return made


def test_a_store_gives_one_row_per_token_episode_by_episode(store: RolloutStore) -> None:
    rows = TokenRows.of_store(store, SITE, "vision", width=WIDTH)
    assert (rows.width, rows.tokens_per_query, len(rows.blocks)) == (WIDTH, TOKENS, 6)
    np.testing.assert_array_equal(rows.blocks[2](), numbered(QUERIES * TOKENS) + 2 * EPISODE)
    assert rows.all().shape == (6 * QUERIES * TOKENS, WIDTH)
    assert rows.trained_on == start_states(unit_of_episode(store).values()) and rows.source == {"model": "m"}
    assert TokenRows.of_store(store, SITE, "action_read", "mean").tokens_per_query == 1
    whole = ActivationSet.read(store, SITE, "vision", "flat")
    np.testing.assert_array_equal(TokenRows.of_set(whole, WIDTH).all(), rows.all())


def test_an_epoch_holds_every_row_once_and_rows_stay_whole(store: RolloutStore) -> None:
    rows = TokenRows.of_store(store, SITE, "vision", width=WIDTH)
    batches = list(rows.epoch(0, 10, seed=1, buffer_rows=30))
    assert [len(batch) for batch in batches] == [10] * 9
    seen = np.concatenate(batches)
    order = np.argsort(seen[:, 0])
    np.testing.assert_array_equal(seen[order], rows.all())
    assert not np.array_equal(seen, rows.all())
    # Rows of different episodes meet in a batch.
    assert len(set((batches[0][:, 0] // EPISODE).tolist())) > 1


def test_an_epoch_depends_on_seed_and_number_alone(store: RolloutStore) -> None:
    rows = TokenRows.of_store(store, SITE, "vision", width=WIDTH)
    first = np.concatenate(list(rows.epoch(0, 10, seed=1)))
    np.testing.assert_array_equal(first, np.concatenate(list(rows.epoch(0, 10, seed=1))))
    assert not np.array_equal(first, np.concatenate(list(rows.epoch(1, 10, seed=1))))
    assert not np.array_equal(first, np.concatenate(list(rows.epoch(0, 10, seed=2))))


def test_what_is_left_over_stays_out_but_few_rows_are_one_batch() -> None:
    rows = TokenRows.of_array(numbered(25))
    assert [len(batch) for batch in rows.epoch(0, 10)] == [10, 10]
    assert [len(batch) for batch in rows.epoch(0, 100)] == [25]


def test_a_split_keeps_start_states_apart(store: RolloutStore) -> None:
    for seed in range(5):
        train, test = split_by_start_state(store, 0.3, seed)
        assert set(train.keys) | set(test.keys) == set(store.keys)
        states = [start_states(unit_of_episode(part).values()) for part in (train, test)]
        assert not states[0] & states[1] and len(states[1]) == 2  # 0.3 of five
    assert len(start_states(unit_of_episode(split_by_start_state(store, 0.01)[1]).values())) == 1


def test_impossible_rows_are_refused(store: RolloutStore) -> None:
    with pytest.raises(ValueError, match="side by side: give the width of one token"):
        TokenRows.of_store(store, SITE, "vision")
    with pytest.raises(ValueError, match="12 numbers are not a whole number of tokens of width 5"):
        TokenRows.of_store(store, SITE, "vision", width=5)
    with pytest.raises(ValueError, match="unknown token group"):
        TokenRows.of_store(store, SITE, "text", width=WIDTH)
    with pytest.raises(ValueError, match="held_out is 1"):
        split_by_start_state(store, 1)
    with pytest.raises(ValueError, match="at least two start states"):
        split_by_start_state(store.only(store.keys[-2:]))
    with pytest.raises(ValueError, match="no block was given"):
        TokenRows((), 4)
    with pytest.raises(ValueError, match="may need a policy"):
        TokenRows.of_array(numbered(3), ("resid_post", -1))
