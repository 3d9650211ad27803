"""How is a model made cheap to draw?

Meshes by vertex clustering (J. Rossignac and P. Borrel, "Multi-resolution 3D approximations for rendering complex
scenes", 1993): vertices that share a cell of a grid are merged into the one nearest to their mean, and triangles that
collapse are dropped. Textures by box averages over blocks of pixels. Only a copy for the renderer is changed.

This takes a few tenths of a second per model, most of it the copy, so nothing is cached on disk.
"""

import copy
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, Int

SMALL_MESH = 500  # triangles; smaller meshes stay as they are


def thinned(model: Any, cell: float, texture_size: int | None) -> Any:
    """A copy of a model whose meshes have fewer triangles and whose textures are smaller, for drawing only.

    Normals and texture coordinates stay with the corners that survive.

    Args:
        model: raw MuJoCo model; not modified.
        cell: edge of the grid's cells in m; no vertex moves further than the cell's diagonal.
        texture_size: longest side of a texture in pixels afterwards, as far as halving gets there; None keeps all.
    """
    drawn = copy.copy(model)
    for mesh in range(model.nmesh):
        _thin_mesh(drawn, mesh, cell)
    if texture_size is not None:
        for texture in range(model.ntex):
            _shrink_texture(drawn, texture, texture_size)
    return drawn


def _thin_mesh(model: Any, mesh: int, cell: float) -> None:
    start, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    first, vertices = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    if count < SMALL_MESH:
        return
    faces = model.mesh_face[start : start + count]
    merged = cluster(model.mesh_vert[first : first + vertices], cell)[faces]
    a, b, c = merged.T
    kept = np.flatnonzero((a != b) & (b != c) & (c != a))
    low, high = merged[kept].min(axis=1), merged[kept].max(axis=1)
    middle = merged[kept].sum(axis=1) - low - high
    _, unique = np.unique((low * vertices + middle) * vertices + high, return_index=True)
    survivors = kept[np.sort(unique)]
    stop = start + len(survivors)
    for name, values in (
        ("mesh_face", merged),
        ("mesh_facenormal", model.mesh_facenormal[start : start + count]),
        ("mesh_facetexcoord", model.mesh_facetexcoord[start : start + count]),
    ):
        getattr(model, name)[start:stop] = values[survivors]
    model.mesh_facenum[mesh] = len(survivors)


def cluster(points: Float[np.ndarray, "n 3"], cell: float) -> Int[np.ndarray, " n"]:
    """For each point the index of the point that represents its grid cell: the one nearest to the mean of the cell."""
    x, y, z = np.floor((points - points.min(axis=0)) / cell).astype(np.int64).T
    _, group, size = np.unique((x * (y.max() + 1) + y) * (z.max() + 1) + z, return_inverse=True, return_counts=True)
    mean = np.stack([np.bincount(group, weights=axis) for axis in points.T], axis=1) / size[:, None]
    distance = np.linalg.norm(points - mean[group], axis=1)
    order = np.lexsort((distance, group))
    nearest = order[np.cumsum(size) - size]
    return nearest[group]


def _shrink_texture(model: Any, texture: int, longest: int) -> None:
    width, height, channels = (int(field[texture]) for field in (model.tex_width, model.tex_height, model.tex_nchannel))
    factor = 1
    while max(width, height) // factor > longest and width % (2 * factor) == 0 and height % (2 * factor) == 0:
        factor *= 2
    if factor == 1 or model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D:
        return
    start = int(model.tex_adr[texture])
    pixels = model.tex_data[start : start + width * height * channels]
    small = block_means(pixels.reshape(height, width, channels), factor)
    model.tex_data[start : start + small.size] = small.reshape(-1)
    model.tex_width[texture], model.tex_height[texture] = width // factor, height // factor


def block_means(pixels: Int[np.ndarray, "height width channels"], factor: int) -> Int[np.ndarray, "h w channels"]:
    """Means over blocks of ``factor`` x ``factor`` pixels, rounded down; both sides are multiples of ``factor``."""
    height, width, channels = pixels.shape
    rows = pixels.reshape(height // factor, factor, width * channels)
    # Sums of whole rows first: numpy adds long rows fast and short blocks slowly.
    lines = np.zeros((height // factor, width * channels), dtype=np.uint32)
    for row in range(factor):
        lines += rows[:, row]
    blocks = lines.reshape(height // factor, width // factor, factor, channels)
    total = np.zeros((height // factor, width // factor, channels), dtype=np.uint32)
    for column in range(factor):
        total += blocks[:, :, column]
    return (total // factor**2).astype(np.uint8)
