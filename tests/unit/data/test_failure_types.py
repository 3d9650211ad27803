"""How an episode failed, on hand-made paths of a hand, a bowl that is wanted on a plate, and another bowl."""

from pathlib import Path

import numpy as np
import pytest

from mist_interp.data.failure_types import failure_type, failure_types
from mist_interp.data.manifest import Manifest
from mist_interp.data.records import EpisodeRecord, QueryRecord, ReleaseRecord, Unit
from mist_interp.data.store import RolloutStore

BOWL, OTHER = "bowl_1", "bowl_2"


def episode(
    bowl: list[float],
    other: list[float] | None = None,
    *,
    near: bool = True,
    closes: bool = True,
    success: bool = False,
    releases: tuple[ReleaseRecord, ...] = (),
    task: int = 0,
) -> EpisodeRecord:
    """Heights of the two bowls at every query; the hand stays beside the first, or far from it."""
    queries = []
    for index, z in enumerate(bowl):
        executed = np.zeros((8, 7))
        executed[:, 6] = 1.0 if closes else -1.0
        hand = np.zeros((8, 13))
        hand[:, 0] = 0.05 if near else 0.5
        poses = {BOWL: pose(0, z), OTHER: pose(1, other[index] if other else 0)}
        queries.append(QueryRecord(index, 8 * index, executed, executed, np.zeros(9), objects=poses, hand=hand))
    steps = 8 * len(bowl)
    return EpisodeRecord(Unit("s", task, 0), "go", success, steps, steps, tuple(queries), releases=releases)


def pose(x: float, z: float) -> np.ndarray:
    return np.array([x, 0, z, 0, 0, 0, 1.0])


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (episode([0, 0.2, 0.1], success=True), "success"),
        (episode([0, 0.2, 0.0]), "dropped"),
        (episode([0, 0.2, 0.1]), "carrying"),
        (episode([0, 0.0, 0.0]), "missed grasp"),
        (episode([0, 0.02, 0.0]), "missed grasp"),
        (episode([0, 0.0, 0.0], closes=False), "not reached"),
        (episode([0, 0.0, 0.0], near=False), "not reached"),
        (episode([0, 0.2, 0.1], other=[0, 0.2, 0]), "wrong object"),
        (episode([0, 0, 0], releases=(ReleaseRecord(3, f"{BOWL}_main", True),)), "dropped"),
        (episode([0, 0, 0], releases=(ReleaseRecord(3, f"{BOWL}_main", False),)), "missed grasp"),
        (episode([0, 0, 0], releases=(ReleaseRecord(3, f"{OTHER}_main", True),)), "wrong object"),
    ],
)
def test_each_path_has_its_type(record: EpisodeRecord, expected: str) -> None:
    assert failure_type(record, [BOWL]) == expected


def test_a_goal_without_an_object_is_said() -> None:
    assert failure_type(episode([0, 0.2]), []) == "nothing to move"


def test_an_object_that_is_not_recorded_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bowl_1.*not all of \['mug'\]"):
        failure_type(episode([0, 0.2]), ["mug"])


def test_the_table_has_a_row_per_episode(tmp_path: Path) -> None:
    store = RolloutStore.create(tmp_path, Manifest((), {}))
    for record in (episode([0, 0.2, 0.0]), episode([0, 0, 0], task=1)):
        store.append(record)
    table = failure_types(store, {("s", 0): [BOWL], ("s", 1): [BOWL]})
    assert list(table["type"]) == ["dropped", "missed grasp"] and not table["collided"].any()
