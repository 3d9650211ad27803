"""What do the cameras show, and what does a picture cost?

On a CPU the 300,000 triangles of the visual meshes cost more than the pixels. Two profiles:

``faithful``
    pixel-equal to LIBERO's own observation.
``fast``
    no reflections, no multisampling, meshes and textures thinned (``thinning.py``). For the shipped small policy only;
    every result names its profile.

Only the renderer's *copy* of the model is thinned; physics never sees it. Any number of renderers live in one process:
each makes its own GL context current before it draws and before it frees anything, since GL names (textures, display
lists, buffers) are numbers that mean something else in another context.

Shapes that lie outside the picture, mirror images included, are not handed to OpenGL at all (``culling.py``).
"""

import contextlib
import importlib
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mist_interp.core.errors import UnknownName
from mist_interp.libero.culling import invisible_geoms, mirrors_of
from mist_interp.libero.thinning import thinned

_HIDDEN = 5  # group of geoms


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


def unblended(profile: Profile) -> Profile:
    """The same shapes without anything that mixes the colours of two of them in one pixel."""
    return replace(profile, name=f"{profile.name}, unblended", reflections=False, samples=0)


class Renderer:
    """Draws camera images of one model.

    Args:
        model: the raw MuJoCo model that is simulated; not modified.
        profile: how to draw.
    """

    def __init__(self, model: Any, profile: Profile) -> None:
        self.model = model
        self.profile = profile
        self._gl, self._context = _open(model, profile)
        self._free = weakref.finalize(self, _close, self._gl, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = profile.reflections
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes
        self._options.geomgroup[1] = 1
        self._options.geomgroup[_HIDDEN] = 0
        drawn = np.array(self._options.geomgroup)[model.geom_group] > 0
        self._mirrors = mirrors_of(model, drawn & profile.reflections)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturb = mujoco.MjvPerturb()
        self._data = mujoco.MjData(model)

    def draw(
        self, qpos: Float[np.ndarray, " nq"], camera: str, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Draw one camera at the given joint positions.

        Returns:
            The picture in OpenGL's order (first row at the bottom), as LIBERO stores it.
        """
        self._arrange(qpos, camera, width / height)
        return self._pixels(height, width)

    def geoms(
        self, qpos: Float[np.ndarray, " nq"], camera: str, height: int, width: int
    ) -> Int[np.ndarray, "height width"]:
        """Which geom each pixel of :meth:`draw` shows; -1 for the sky and for what is no geom of the model.

        Raises:
            ValueError: this renderer's profile blends colours, so that ids would be mixed; see :func:`unblended`.
        """
        if self.profile.samples or self.profile.reflections:
            raise ValueError(f"ids of geoms cannot be drawn with the profile {self.profile.name!r}: it blends pixels")
        groups = np.array(self._options.sitegroup)
        self._options.sitegroup[:] = 0  # marks in the air would hide what is behind them
        self._arrange(qpos, camera, width / height)
        self._options.sitegroup[:] = groups
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        try:
            colours = self._pixels(height, width).astype(np.int64)
        finally:
            flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        places = colours @ [1, 1 << 8, 1 << 16]  # 0 is the background, k + 1 the scene's k-th shape
        ids = np.full(self._scene.ngeom + 1, -1)
        for shape in self._scene.geoms[: self._scene.ngeom]:
            if shape.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                ids[shape.segid + 1] = shape.objid
        return ids[places]

    def _arrange(self, qpos: Float[np.ndarray, " nq"], camera: str, aspect: float) -> None:
        """Put the shapes that the camera can see into the scene."""
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self._data)
        mujoco.mj_comPos(self.model, self._data)
        mujoco.mj_camlight(self.model, self._data)
        self._camera.fixedcamid = self.model.camera(camera).id
        outside = invisible_geoms(self.model, self._data, self._camera.fixedcamid, aspect, self._mirrors)
        with _hidden(self.model, outside):
            mujoco.mjv_updateScene(
                self.model,
                self._data,
                self._options,
                self._perturb,
                self._camera,
                mujoco.mjtCatBit.mjCAT_ALL,
                self._scene,
            )

    def _pixels(self, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
        viewport = mujoco.MjrRect(0, 0, width, height)
        image = np.empty((height, width, 3), dtype=np.uint8)
        self._gl.make_current()
        if height > self._context.offHeight or width > self._context.offWidth:
            mujoco.mjr_resizeOffscreen(
                max(width, self._context.offWidth), max(height, self._context.offHeight), self._context
            )
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(image, None, viewport, self._context)
        return image

    def close(self) -> None:
        """Free the GL context; also happens when the renderer is forgotten."""
        self._free()


def _open(model: Any, profile: Profile) -> tuple[Any, Any]:
    """A GL context, current, and MuJoCo's render context in it."""
    drawn = model if profile.cell is None else thinned(model, profile.cell, profile.texture_size)
    window = _gl_context()
    window.make_current()
    with _settings(drawn, profile):
        context = mujoco.MjrContext(drawn, mujoco.mjtFontScale.mjFONTSCALE_150)
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
    return window, context


@contextlib.contextmanager
def _settings(model: Any, profile: Profile) -> Iterator[None]:
    """What MuJoCo reads from the model when it makes a render context."""
    quality, screen = model.vis.quality, model.vis.global_
    before = quality.offsamples, quality.shadowsize, screen.offwidth, screen.offheight
    quality.offsamples = profile.samples
    if not model.light_castshadow.any():
        quality.shadowsize = 0  # 64 MB that nothing would be drawn into
    screen.offwidth = screen.offheight = 64  # grows with the pictures that are asked for; large is slower
    try:
        yield
    finally:
        quality.offsamples, quality.shadowsize, screen.offwidth, screen.offheight = before


@contextlib.contextmanager
def _hidden(model: Any, geoms: Bool[np.ndarray, " ngeom"]) -> Iterator[None]:
    """Put geoms into a group that is not drawn."""
    before = model.geom_group[geoms]
    model.geom_group[geoms] = _HIDDEN
    try:
        yield
    finally:
        model.geom_group[geoms] = before


def _gl_context() -> Any:
    """A context of the chosen backend; ``mujoco.GLContext`` is another one if MuJoCo was imported before the choice."""
    backend = os.environ.get("MUJOCO_GL", "").lower()
    module = importlib.import_module(f"mujoco.{backend}") if backend in ("egl", "osmesa") else mujoco
    return module.GLContext(64, 64)  # pictures are drawn into MuJoCo's own framebuffer


def _close(window: Any, context: Any) -> None:
    """Free both in the right context: elsewhere the names that are freed belong to another renderer."""
    window.make_current()
    context.free()
    window.free()
