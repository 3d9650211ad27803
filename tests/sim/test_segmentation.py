"""Does the segmentation say of every pixel what the picture shows there?"""

from __future__ import annotations

import numpy as np
import pytest

from mist_interp.libero import LiberoEnv, LiberoSuite

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def env() -> LiberoEnv:
    env = LiberoEnv(LiberoSuite("libero_spatial").tasks[0])
    env.reset(3)
    yield env
    env.close()


def pixel_of(env: LiberoEnv, point: np.ndarray, camera: str, size: int) -> tuple[int, int]:
    """Row and column at which a camera sees a point in the world, by the pinhole model."""
    number = env.model.camera(camera).id
    position, rotation = env.data.cam_xpos[number], env.data.cam_xmat[number].reshape(3, 3)
    x, y, z = rotation.T @ (point - position)
    focal = size / 2 / np.tan(np.deg2rad(env.model.cam_fovy[number]) / 2)
    return int(size / 2 + focal * y / -z), int(size / 2 + focal * x / -z)


@pytest.mark.parametrize("name", ["akita_black_bowl_1", "akita_black_bowl_2", "plate_1", "cookies_1"])
def test_an_object_is_found_where_it_stands(env: LiberoEnv, name: str) -> None:
    shown = env.segmentation("agentview")
    rows, cols = np.nonzero(shown == env.bodies.index(f"{name}_main"))
    assert 300 < len(rows) < 3000
    row, col = pixel_of(env, env.observe()[f"{name}_pos"], "agentview", 256)
    assert abs(rows.mean() - row) < 12 and abs(cols.mean() - col) < 6


def test_looking_at_bodies_leaves_the_picture_alone(env: LiberoEnv) -> None:
    before = env.observe()["agentview_image"]
    shown = env.segmentation("agentview")
    np.testing.assert_array_equal(env.observe()["agentview_image"], before)
    assert shown.shape == before.shape[:2] and (shown >= -1).all() and shown.max() < len(env.bodies)


def test_other_sizes(env: LiberoEnv) -> None:
    assert env.segmentation("robot0_eye_in_hand", 64).shape == (64, 64)


def test_marks_in_the_air_hide_nothing(env: LiberoEnv) -> None:
    assert (env.segmentation("robot0_eye_in_hand") >= 0).all()
