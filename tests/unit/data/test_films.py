"""Films of a collection: frame i is what the policy saw at query i, for the episodes that were asked for, and a film is
there before its episode is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mist_interp.data import collect as collecting
from mist_interp.data.attempts import Quota
from mist_interp.data.records import Decision
from mist_interp.data.store import RolloutStore
from mist_interp.data.video import SAMPLE_EVERY, Film, is_filmed, policy_view, write_video
from mist_interp.models.random import random_policy
from mist_interp.tracing.hooked import HookedVLA
from tests.unit.data.test_collect import Suite, World, collect

imageio = pytest.importorskip("imageio.v2")


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return HookedVLA(random_policy(seed=1))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[np.ndarray]]:
    """Frames of every film by episode, in place of an encoder."""
    films: dict[str, list[np.ndarray]] = {}

    def write(path: Path, frames: list[np.ndarray], fps: float) -> None:
        assert not (path.parents[2] / "episodes" / f"{path.stem}.parquet").exists(), "the film comes first"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"film")
        films[path.stem] = frames

    monkeypatch.setattr(collecting, "write_video", write)
    return films


def test_frame_i_is_what_the_policy_saw_at_query_i(
    vla: HookedVLA, tmp_path: Path, written: dict[str, list[np.ndarray]]
) -> None:
    store = collect(vla, tmp_path, videos="all", tasks=[2], inits=[1])
    (key,) = store.keys
    world = World(2)
    world.reset(1)
    seen = [world.observe() for _ in range(int(store.row(key)["n_queries"]))]  # a picture per look
    assert len(written[key]) == len(seen) == 3 and list(store.videos()) == [f"videos/libero_spatial-t02/{key}.mp4"]
    for frame, observation in zip(written[key], seen, strict=True):
        assert frame.shape == (56, 112, 3)
        np.testing.assert_array_equal(frame[:, :56], observation["agentview_image"][::-1, ::-1])
        np.testing.assert_array_equal(frame[:, 56:], observation["robot0_eye_in_hand_image"][::-1, ::-1])


def test_which_episodes_are_filmed(vla: HookedVLA, tmp_path: Path, written: dict[str, list[np.ndarray]]) -> None:
    assert collect(vla, tmp_path / "none", tasks=[0]).videos() == {} == written
    failed = collect(vla, tmp_path / "failures", tasks=[0], videos="failures")
    assert [failed.row(key)["success"] for key in written] == [False] and len(failed) == 3
    written.clear()
    quota = collect(vla, tmp_path / "quota", tasks=[0], inits="all", quota=Quota(1, 1), videos="all")
    assert set(written) == set(quota.keys) and len(quota) == 2, "a surplus episode has no film"
    with pytest.raises(KeyError, match="failures"):
        collect(vla, tmp_path / "x", videos="failure")
    assert not (tmp_path / "x").exists()


def test_the_sample_is_chosen_by_key() -> None:
    keys = [f"libero_spatial-t00-i{i:03d}-none" for i in range(2000)]
    chosen = [key for key in keys if is_filmed("sample", key)]
    assert abs(len(chosen) - 2000 / SAMPLE_EVERY) < 45  # more than three deviations of a binomial
    assert all(is_filmed("sample", key, success) for key in chosen[:9] for success in (True, False, None))
    assert [is_filmed("failures", "k", success) for success in (None, False, True)] == [True, True, False]


def test_a_film_does_not_change_what_is_answered() -> None:
    film, answer = Film(), Decision(np.zeros((8, 7)))
    asked: list[Any] = []
    act = film.watching(lambda observation, query: asked.append((observation, query)) or answer)  # type: ignore[func-returns-value]
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    assert act({"agentview_image": picture}, 3) is answer and asked == [({"agentview_image": picture}, 3)]
    picture[:] = 9  # a simulator may reuse its buffer
    assert film.frames[0].max() == 0
    with pytest.raises(KeyError, match=r"no picture.*robot0_eef_pos"):
        policy_view({"robot0_eef_pos": 0})


def test_a_film_is_whole_or_absent_and_one_frame_per_query(tmp_path: Path) -> None:
    path = tmp_path / "videos" / "film.mp4"
    frames = [np.full((56, 112, 3), 20 * i, dtype=np.uint8) for i in range(9)]
    write_video(path, frames, 5.0)
    read = np.stack(imageio.mimread(path, format="ffmpeg"))
    assert read.shape == (9, 56, 112, 3) and np.abs(read.mean((1, 2, 3)) - 20 * np.arange(9)).max() < 3

    def breaks() -> Any:
        yield frames[0]
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_video(tmp_path / "videos" / "other.mp4", breaks(), 5.0)
    assert [one.name for one in path.parent.iterdir()] == ["film.mp4"]


def test_a_kill_between_film_and_row_leaves_an_episode_that_is_run_again(vla: HookedVLA, tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path\n"
        "from mist_interp.data.store import RolloutStore\n"
        "from mist_interp.models.random import random_policy\n"
        "from mist_interp.tracing.hooked import HookedVLA\n"
        "from tests.unit.data.test_collect import collect\n"
        "real = RolloutStore.append\n"
        "RolloutStore.append = lambda self, e: os._exit(9) if len(self) else real(self, e)\n"
        f"collect(HookedVLA(random_policy(seed=1)), Path({str(tmp_path)!r}), videos='all', tasks=[2])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    store = RolloutStore.open(tmp_path)
    assert len(store) == len(store.videos()) == 1 and len(list(tmp_path.rglob("*.mp4"))) == 2
    done = store.video(store.keys[0])
    when = done.stat().st_mtime_ns
    store = collect(vla, tmp_path, videos="all", tasks=[2])
    assert len(store) == len(store.videos()) == 3 and done.stat().st_mtime_ns == when
    assert len(imageio.mimread(store.video(store.keys[1]), format="ffmpeg")) == store.row(store.keys[1])["n_queries"]


def test_workers_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(collecting, "run_in_processes", lambda *given: told.append(given[3]))
    collect("mini", tmp_path, Suite(), workers=2, videos="sample")
    assert told[0]["videos"] == "sample"
