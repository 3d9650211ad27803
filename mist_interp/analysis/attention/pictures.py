"""Where in the picture is a patch, and which patches does an object cover?

A patch is a square of the picture that the policy sees: LIBERO's frame with both axes flipped, resized, its middle 0.9
of the area kept. Pictures are therefore taken from the network's own input, and masks of the frame go the same way, so
that attention, picture and mask lie on each other. Row 0 is the top of the upright picture.

Where it misleads. An overlay shows where a head reads, in patches as large as the objects of interest (mini: 8 x 8
patches); the towers mix patches before the language model sees them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mist_interp.analysis.result import Result, labelled
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.layout import CAMERAS
from mist_interp.models.images import CROP_AREA
from mist_interp.models.processor import PixelScaling
from mist_interp.models.vision import CHANNELS_PER_IMAGE
from mist_interp.tracing.hooked import HookedVLA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mask = Bool[np.ndarray, "height width"]
SAMPLES_PER_PIXEL = 3  # along each axis, where a mask is turned into shares


def policy_pictures(vla: HookedVLA, inputs: PolicyInputs) -> dict[str, UInt8[np.ndarray, "sample size size 3"]]:
    """What the policy sees, per camera: upright and cropped, read back from the network's input."""
    scaling = PixelScaling() if vla.policy.processor is None else vla.policy.processor.scaling
    mean, std = (np.array(rows[0], np.float32).reshape(3, 1, 1) for rows in (scaling.means, scaling.stds))
    pictures = {}
    for k, camera in enumerate(vla.layout(inputs).cameras):
        pixels = inputs.pixel_values[:, CHANNELS_PER_IMAGE * k :][:, :3].float().cpu().numpy()
        levels = np.clip(np.rint((pixels * std + mean) * 255), 0, 255).astype(np.uint8)
        pictures[camera] = levels.transpose(0, 2, 3, 1)
    return pictures


def patch_shares(
    vla: HookedVLA, masks: Mapping[str, Sequence[Mapping[str, Mask]]], center_crop: bool | None = None
) -> Result:
    """Which share of each patch an object covers.

    Args:
        vla: the policy, for its grid and picture size.
        masks: object -> per sample -> camera ("agentview", "wrist") -> bool pixels, stored as LIBERO stores frames
            (first row at the bottom).
        center_crop: whether the policy crops; default: as its processor does.

    Returns:
        Shares in 0..1, axes (sample, object, camera, row, col). A small object that covers a tenth of a patch counts a
        tenth, although the patch's token may be all about it.

    Raises:
        UnknownName: a camera that the policy does not have.
        ValueError: the objects have masks of different numbers of samples, or a mask is not boolean.
    """
    counts = {name: len(samples) for name, samples in masks.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"every object needs a mask per sample; given {counts}")
    if center_crop is None:
        center_crop = vla.policy.processor is None or vla.policy.processor.center_crop
    names = CAMERAS[: vla.cfg.n_images or 1]
    per_patch = vla.policy.config.image_size // vla.cfg.patch_grid[0]
    shares = np.zeros((next(iter(counts.values())), len(masks), len(names), *vla.cfg.patch_grid))
    for j, samples in enumerate(masks.values()):
        for i, cameras in enumerate(samples):
            for camera, mask in cameras.items():
                if camera not in names:
                    raise UnknownName("camera", camera, names)
                shares[i, j, names.index(camera)] = _shares(mask, vla.cfg.patch_grid, per_patch, center_crop)
    axes = {"sample": range(len(shares)), "object": list(masks), "camera": names}
    axes |= {"row": range(shares.shape[3]), "col": range(shares.shape[4])}
    return Result(labelled(shares, **axes), "share", "Share of a patch's pixels that show an object.")


def _shares(mask: Mask, grid: tuple[int, int], per_patch: int, center_crop: bool) -> Float[np.ndarray, "rows cols"]:
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"a mask is boolean (height, width); given {mask.dtype} of shape {mask.shape}")
    upright = mask[::-1, ::-1]
    down, across = (
        _source_pixels(count * per_patch, given, center_crop) for count, given in zip(grid, mask.shape, strict=True)
    )
    fine = upright[np.ix_(down, across)].astype(float)
    side = per_patch * SAMPLES_PER_PIXEL
    return fine.reshape(grid[0], side, grid[1], side).mean(axis=(1, 3))


def _source_pixels(size: int, given: int, center_crop: bool) -> np.ndarray:
    """For a fine, even sampling of the policy's picture: which pixel of the upright frame is there."""
    places = (np.arange(size * SAMPLES_PER_PIXEL) + 0.5) / SAMPLES_PER_PIXEL - 0.5  # in pixels of the picture
    if center_crop:  # picture pixel k shows the resized frame at this line (`mist_interp.models.images`)
        side = np.sqrt(CROP_AREA)
        places = (1 - side) / 2 * (size - 1) + side * places
    return np.clip(np.rint((places + 0.5) * given / size - 0.5), 0, given - 1).astype(int)


def overlay(
    attention: Result,
    pictures: Mapping[str, UInt8[np.ndarray, "size size 3"]],
    outlines: Mapping[str, Float[np.ndarray, "rows cols"]] | None = None,
    title: str = "",
    strongest: float | None = None,
) -> Figure:
    """One picture per camera, and under each map of attention the picture again.

    Every column is a map (the labels of the one axis that `attention` has beside camera, row and col), every row a
    camera; the first column is the bare picture. Colours have one scale, so that weak maps look weak.

    Args:
        attention: shares with the axes (camera, row, col), or one more axis before them.
        pictures: camera -> what the policy sees, of the same sample.
        outlines: camera -> share of each patch that an object covers; patches with at least a quarter get a frame.
        title: above the figure.
        strongest: share that has the fullest colour; default: the largest in the figure.

    Raises:
        ValueError: the result has other axes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from mist_interp.analysis.figures import STYLE

    axes_names = list(attention.axes)
    if axes_names[-3:] != ["camera", "row", "col"] or len(axes_names) > 4:
        raise ValueError(f"an overlay needs the axes camera, row, col and at most one before them, not {axes_names}")
    maps = attention.values if len(axes_names) == 4 else attention.values.expand_dims(map=[attention.what[:0]])
    kind, labels = str(maps.dims[0]), maps[maps.dims[0]].values.tolist()
    cameras = attention.axes["camera"]
    high = strongest or float(maps.max()) or 1.0
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.7 * (len(labels) + 1) + 0.6, 1.75 * len(cameras) + 0.5))
        grid = figure.subplots(len(cameras), len(labels) + 1, squeeze=False)
        for r, camera in enumerate(cameras):
            picture = pictures[camera]
            size = picture.shape[0]
            for c, axes in enumerate(grid[r]):
                axes.set_xticks([])
                axes.set_yticks([])
                axes.imshow(picture, extent=(0, size, size, 0))
                if c == 0:
                    axes.set_ylabel(camera)
                    continue
                values = maps.isel({kind: c - 1}).sel(camera=camera).values
                image = axes.imshow(
                    values,
                    extent=(0, size, size, 0),
                    cmap="inferno",
                    vmin=0,
                    vmax=high,
                    alpha=np.clip(0.25 + values / high, 0, 0.85),  # the picture shows where nothing is looked at
                )
                if r == 0:
                    axes.set_title(_caption(kind, labels[c - 1]), fontsize=8)
                if outlines is not None and camera in outlines:
                    for row, col in np.argwhere(outlines[camera] >= 0.25):
                        step = size / len(outlines[camera])
                        frame = Rectangle((col * step, row * step), step, step, fill=False, edgecolor="cyan", lw=0.9)
                        axes.add_patch(frame)
        figure.colorbar(image, ax=grid, label=attention.unit, shrink=0.7)
        figure.suptitle(title or attention.what, fontsize=9, x=0.01, ha="left")
    return figure


def _caption(kind: str, label: Any) -> str:
    """What a map is of; positions that the head reads go by their action number alone."""
    if kind == "map":
        return ""
    return str(label).removeprefix("action_read.") if kind == "from" else f"{kind} {label}"


def frames(pictures: Sequence[Sequence[Any]], rows: Sequence[str], captions: Sequence[Sequence[str]]) -> Figure:
    """A table of pictures: one row per neuron, feature or head, its top frames beside each other.

    Args:
        pictures: per row, pictures (height, width, 3).
        rows: label of each row.
        captions: per row, a short text above each picture.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from mist_interp.analysis.figures import STYLE

    columns = max(len(row) for row in pictures)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.5 * columns + 1.2, 1.75 * len(pictures) + 0.3))
        grid = figure.subplots(len(pictures), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for r, row in enumerate(pictures):
            for c, picture in enumerate(row):
                grid[r, c].imshow(picture)
                grid[r, c].set_title(captions[r][c], fontsize=6, fontweight="normal", loc="left")
            grid[r, 0].text(-0.06, 0.5, rows[r], transform=grid[r, 0].transAxes, ha="right", va="center", fontsize=7)
    return figure
