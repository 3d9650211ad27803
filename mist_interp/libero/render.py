"""What do the cameras show, and what does a picture cost?

On a CPU the 300,000 triangles of the visual meshes cost more than the pixels. Two profiles:

``faithful``
    pixel-equal to LIBERO's own observation.
``fast``
    no reflections, no multisampling, visual meshes thinned by vertex clustering. For the shipped small policy only;
    every result names its profile.

Only the renderer's *copy* of the model is thinned; physics never sees it.
"""

import copy
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, Int, UInt8

from mist_interp.core.errors import UnknownName


@dataclass(frozen=True)
class Profile:
    """How pictures are drawn.

    Attributes:
        reflections: draw mirror images on reflective materials.
        samples: multisampling samples per pixel.
        cell: edge of the clustering cell in m; None keeps every triangle.
        texture_size: longest texture side that is uploaded; None uploads all.
    """

    name: str
    reflections: bool
    samples: int
    cell: float | None
    texture_size: int | None


PROFILES = {
    "faithful": Profile("faithful", reflections=True, samples=4, cell=None, texture_size=None),
    "fast": Profile("fast", reflections=False, samples=0, cell=0.006, texture_size=512),
}


def find_profile(name: str) -> Profile:
    """Look a render profile up by name.

    Raises:
        UnknownName: neither ``faithful`` nor ``fast``.
    """
    if name not in PROFILES:
        raise UnknownName("render profile", name, PROFILES)
    return PROFILES[name]


class Renderer:
    """Draws camera images of one model.

    Args:
        model: the model that is simulated; not modified.
        profile: how to draw.
        max_size: largest picture (height, width) that will be asked for.
    """

    def __init__(self, model: Any, profile: Profile, max_size: tuple[int, int] = (480, 640)) -> None:
        self.model = model
        self.profile = profile
        drawn = model if profile.cell is None else thinned(model, profile.cell, profile.texture_size)
        samples = model.vis.quality.offsamples
        drawn.vis.quality.offsamples = profile.samples
        height, width = max_size
        self._gl = mujoco.GLContext(width, height)
        self._gl.make_current()
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._context = mujoco.MjrContext(drawn, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        model.vis.quality.offsamples = samples
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = profile.reflections
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes
        self._options.geomgroup[1] = 1
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturb = mujoco.MjvPerturb()
        self._data = mujoco.MjData(model)

    def draw(
        self, qpos: Float[np.ndarray, " nq"], camera: str, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Draw one camera at the given joint positions; first row at the bottom, as LIBERO stores it."""
        self._gl.make_current()
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self._data)
        mujoco.mj_comPos(self.model, self._data)
        mujoco.mj_camlight(self.model, self._data)
        self._camera.fixedcamid = self.model.camera(camera).id
        mujoco.mjv_updateScene(
            self.model,
            self._data,
            self._options,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        image = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, self._context)
        return image

    def close(self) -> None:
        """Free the GL context."""
        self._context.free()
        self._gl.free()


def thinned(model: Any, cell: float, texture_size: int | None) -> Any:
    """A copy of the model whose meshes have fewer triangles and whose textures are smaller, for drawing only.

    Vertices that share a cell of the grid are merged into the one nearest to their mean; triangles that collapse are
    dropped. Normals and texture coordinates stay with the corners that survive.
    """
    drawn = copy.copy(model)
    for mesh in range(model.nmesh):
        _thin_mesh(drawn, mesh, cell)
    if texture_size is not None:
        for texture in range(model.ntex):
            _shrink_texture(drawn, texture, texture_size)
    return drawn


def _thin_mesh(model: Any, mesh: int, cell: float) -> None:
    start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    first, vertices = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    if count < 500:
        return
    faces = model.mesh_face[start : start + count]
    merged = _cluster(model.mesh_vert[first : first + vertices], cell)[faces]
    kept = (merged[:, 0] != merged[:, 1]) & (merged[:, 1] != merged[:, 2]) & (merged[:, 2] != merged[:, 0])
    _, unique = np.unique(np.sort(merged[kept], axis=1), axis=0, return_index=True)
    survivors = np.flatnonzero(kept)[np.sort(unique)]
    stop = start + len(survivors)
    model.mesh_face[start:stop] = merged[survivors]
    model.mesh_facenormal[start:stop] = model.mesh_facenormal[start : start + count][survivors]
    model.mesh_facetexcoord[start:stop] = model.mesh_facetexcoord[start : start + count][survivors]
    model.mesh_facenum[mesh] = len(survivors)


def _cluster(points: Float[np.ndarray, "n 3"], cell: float) -> Int[np.ndarray, " n"]:
    """For each point the index of the point that represents its grid cell."""
    keys = np.floor((points - points.min(axis=0)) / cell).astype(np.int64)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.reshape(-1)
    sums = np.stack([np.bincount(group, weights=points[:, axis]) for axis in range(3)], axis=1)
    distance = np.linalg.norm(points - (sums / np.bincount(group)[:, None])[group], axis=1)
    order = np.lexsort((distance, group))
    nearest = order[np.searchsorted(group[order], np.arange(group.max() + 1))]
    return nearest[group]


def _shrink_texture(model: Any, texture: int, longest: int) -> None:
    width, height, channels = (int(field[texture]) for field in (model.tex_width, model.tex_height, model.tex_nchannel))
    factor = 1
    while max(width, height) // factor > longest and width % (2 * factor) == 0 and height % (2 * factor) == 0:
        factor *= 2
    if factor == 1 or model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D:
        return
    start = int(model.tex_adr[texture])
    pixels = model.tex_data[start : start + width * height * channels].reshape(
        height // factor, factor, width // factor, factor, channels
    )
    small = pixels.mean(axis=(1, 3)).astype(np.uint8)
    model.tex_data[start : start + small.size] = small.reshape(-1)
    model.tex_width[texture], model.tex_height[texture] = width // factor, height // factor
