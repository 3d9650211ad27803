"""Do thinned meshes keep their shape, and does the model that is simulated stay as it is?"""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mist_interp.libero.thinning import block_means, cluster, thinned


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 80), st.just(3)), elements=st.floats(-1, 1)), st.floats(0.01, 1.0))
def test_no_point_moves_further_than_the_diagonal_of_a_cell(points: np.ndarray, cell: float) -> None:
    owner = cluster(points, cell)
    assert (np.linalg.norm(points - points[owner], axis=1) <= np.sqrt(3) * cell + 1e-9).all()
    np.testing.assert_array_equal(owner[owner], owner)  # who represents others represents itself


def test_a_fine_grid_changes_nothing() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_array_equal(cluster(points, 1e-6), np.arange(50))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_block_means_are_means(factor: int, rows: int, cols: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (rows * factor, cols * factor, 3), dtype=np.uint8)
    blocks = pixels.reshape(rows, factor, cols, factor, 3).astype(np.int64)
    np.testing.assert_array_equal(block_means(pixels, factor), blocks.sum(axis=(1, 3)) // factor**2)


@pytest.fixture(scope="module")
def ball() -> mujoco.MjModel:
    """A sphere of 4,800 triangles."""
    theta, phi = np.meshgrid(np.linspace(0.05, np.pi - 0.05, 50), np.linspace(0, 2 * np.pi, 50))
    points = 0.1 * np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1).reshape(
        -1, 3
    )
    a = (np.arange(49)[:, None] * 50 + np.arange(49)).reshape(-1)
    faces = np.concatenate([np.stack([a, a + 50, a + 51], 1), np.stack([a, a + 51, a + 1], 1)])
    vertices = " ".join(f"{x:.6f}" for x in points.ravel())
    triangles = " ".join(map(str, faces.ravel()))
    return mujoco.MjModel.from_xml_string(
        f'<mujoco><asset><mesh name="ball" vertex="{vertices}" face="{triangles}"/></asset>'
        '<worldbody><geom type="mesh" mesh="ball"/></worldbody></mujoco>'
    )


def test_fewer_triangles_of_the_same_ball(ball: mujoco.MjModel) -> None:
    before = int(ball.mesh_facenum[0])
    faces = ball.mesh_face.copy()
    drawn = thinned(ball, cell=0.02, texture_size=None)
    assert 50 < int(drawn.mesh_facenum[0]) < before / 4
    corners = drawn.mesh_vert[np.unique(drawn.mesh_face[: drawn.mesh_facenum[0]])]
    radii = np.linalg.norm(corners, axis=1)
    assert np.ptp(radii) < 0.005  # corners stay on the sphere: they are vertices of the mesh
    assert (np.ptp(corners, axis=0) > 0.17).all()  # and all around it
    assert int(ball.mesh_facenum[0]) == before
    np.testing.assert_array_equal(ball.mesh_face, faces)


def test_small_meshes_stay(ball: mujoco.MjModel) -> None:
    box = mujoco.MjModel.from_xml_string(
        '<mujoco><asset><mesh name="m" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/></asset>'
        '<worldbody><geom type="mesh" mesh="m"/></worldbody></mujoco>'
    )
    assert int(thinned(box, 10.0, None).mesh_facenum[0]) == int(box.mesh_facenum[0])
