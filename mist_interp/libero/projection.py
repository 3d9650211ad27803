"""Where in a camera's picture is a point of the world?"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from mist_interp.core.errors import UnknownName


def pixels(
    env: Any, points: Float[np.ndarray, "points 3"], camera: str, resolution: int
) -> Float[np.ndarray, "points 2"]:
    """Column and row of points in a square picture the right way up, as `env.frame(camera, resolution)` gives it.

    A pinhole camera that looks along its negative z axis; the focal length follows from the vertical field of view.

    Args:
        env: a `LiberoEnv` in which an episode runs.
        points: m, world axes.
        camera: name of the camera.
        resolution: side of the picture in pixels.

    Returns:
        Pixels from the left and from the top; NaN for points behind the camera.

    Raises:
        UnknownName: the scene has no such camera.
    """
    cameras = [env.model.camera(index).name for index in range(env.model.ncam)]
    if camera not in cameras:
        raise UnknownName("camera", camera, cameras)
    index = cameras.index(camera)
    rotation = env.data.cam_xmat[index].reshape(3, 3)
    seen = (np.asarray(points, dtype=np.float64) - env.data.cam_xpos[index]) @ rotation
    focal = 0.5 * resolution / np.tan(0.5 * np.deg2rad(env.model.cam_fovy[index]))
    depth = np.where(seen[:, 2] < 0, -seen[:, 2], np.nan)
    return 0.5 * resolution + focal * np.stack([seen[:, 0], -seen[:, 1]], axis=1) / depth[:, None]
