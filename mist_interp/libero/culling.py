"""Which shapes cannot be in a picture?

A geom whose bounding sphere lies outside the camera's view pyramid leaves no pixel, unless a mirror shows it. MuJoCo
mirrors the scene at planes and at the upper side of boxes whose material reflects; a geom is seen there only if its
mirror image lies in the pyramid and, seen from the camera, overlaps the mirror. Most of LIBERO's triangles belong to
the robot, and most of the robot is behind the wrist camera.
"""

from typing import Any

import mujoco
import numpy as np
from jaxtyping import Bool, Float, Int

MARGIN = 0.001  # m
_PLANE, _BOX = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_BOX)


def invisible_geoms(
    model: Any, data: Any, camera: int, aspect: float, mirrors: Int[np.ndarray, " m"]
) -> Bool[np.ndarray, " ngeom"]:
    """Geoms that cannot change a picture.

    Args:
        model: raw MuJoCo model.
        data: its data, kinematics and cameras computed.
        camera: id of the camera.
        aspect: width of the picture over its height.
        mirrors: geoms that show mirror images, see :func:`mirrors_of`.

    Returns:
        For each geom whether it may be left out; infinite planes never may.
    """
    if model.cam_sensorsize[camera].any() or model.cam_orthographic[camera]:  # another projection
        return np.zeros(model.ngeom, dtype=bool)
    direct = _outside(model, data, camera, aspect, data.geom_xpos)
    outside = direct.copy()
    for mirror in mirrors:
        if direct[mirror]:
            continue
        axis = data.geom_xmat[mirror].reshape(3, 3)[:, 2]
        height = model.geom_size[mirror, 2] if model.geom_type[mirror] == _BOX else 0.0
        distance = (data.geom_xpos - data.geom_xpos[mirror]) @ axis - height
        images = data.geom_xpos - 2 * distance[:, None] * axis
        outside &= _outside(model, data, camera, aspect, images) | _beside(model, data, camera, images, mirror)
    return outside & (model.geom_rbound > 0)


def mirrors_of(model: Any, drawn: Bool[np.ndarray, " ngeom"]) -> Int[np.ndarray, " m"]:
    """Ids of the drawn geoms at which MuJoCo mirrors the scene."""
    material = model.geom_matid
    shiny = (material >= 0) & (model.mat_reflectance[material] > 0)
    return np.flatnonzero(drawn & shiny & np.isin(model.geom_type, (_PLANE, _BOX)))


def _outside(
    model: Any, data: Any, camera: int, aspect: float, centres: Float[np.ndarray, "ngeom 3"]
) -> Bool[np.ndarray, " ngeom"]:
    """Whether bounding spheres around given centres lie outside the view pyramid."""
    radius = model.geom_rbound + MARGIN
    x, y, z = ((centres - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)).T
    depth = -z  # a camera looks along its negative z axis
    slope = np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
    outside = depth < -radius
    for offset, tangent in ((x, slope * aspect), (y, slope)):
        outside |= np.abs(offset) - depth * tangent > radius * np.hypot(1.0, tangent)
    return outside


def _beside(
    model: Any, data: Any, camera: int, centres: Float[np.ndarray, "ngeom 3"], mirror: int
) -> Bool[np.ndarray, " ngeom"]:
    """Whether the camera sees spheres around given centres apart from a geom's; False where it is inside of one."""
    radius = model.geom_rbound + MARGIN
    if not model.geom_rbound[mirror] > 0:  # an infinite plane
        return np.zeros(model.ngeom, dtype=bool)
    ray = data.geom_xpos[mirror] - data.cam_xpos[camera]
    rays = centres - data.cam_xpos[camera]
    length, lengths = np.linalg.norm(ray), np.linalg.norm(rays, axis=1)
    apart = np.arccos(np.clip(rays @ ray / (length * lengths), -1.0, 1.0))
    outside = (lengths > radius) & (length > radius[mirror])
    half = np.arcsin(np.clip(radius / lengths, 0.0, 1.0)) + np.arcsin(min(1.0, radius[mirror] / length))
    return outside & (apart > half)
