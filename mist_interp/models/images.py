"""How does a camera frame become the picture that the model was trained on?

The training images went through a TensorFlow pipeline, and the policy notices when they did not. Three steps, each
reproduced bit for bit without TensorFlow:

1. JPEG and back (quality 95, chroma halved), decoded with the fast integer inverse DCT;
2. Lanczos resize with antialiasing to the model's size, weights and sums in float32, rows first;
3. a centre crop of 0.9 of the area, scaled back to full size by bilinear interpolation between the crop's corners.

Frames are uint8 (height, width, 3), upright.

Source: the evaluation code of OpenVLA-OFT (Kim, Finn and Liang 2025) under TensorFlow 2.15.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from PIL import Image

Frame = UInt8[np.ndarray, "height width 3"]
CROP_AREA = 0.9
LANCZOS_RADIUS = np.float32(3)
PI = np.float32(np.pi)


def model_image(frame: Frame, size: int, center_crop: bool = True) -> Frame:
    """Turn a camera frame into the model's picture.

    Args:
        frame: uint8, upright; (height, width, 3).
        size: side of the model's square picture in pixels.
        center_crop: crop as evaluation does, because training saw random crops.

    Returns:
        uint8, (size, size, 3).

    Raises:
        ValueError: if the frame has another shape or type.
    """
    check_frame(frame)
    image = lanczos_resize(jpeg_round_trip(frame), size)
    return crop_center(image) if center_crop else image


def check_frame(frame: np.ndarray, name: str = "image") -> None:
    """Refuse everything but uint8 (height, width, 3)."""
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"{name} is a {type(frame).__name__}; expected a numpy array (height, width, 3) of uint8")
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or frame.size == 0:
        raise ValueError(
            f"{name} has shape {frame.shape} and type {frame.dtype}; expected (height, width, 3) of uint8 (0..255)"
        )


def jpeg_round_trip(frame: Frame) -> Frame:
    """Compress and decompress as the training data were."""
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG", quality=95, subsampling=2)
    # Pillow's decoder uses the exact inverse DCT and differs by up to 17 levels.
    return simplejpeg.decode_jpeg(stream.getvalue(), "RGB", fastdct=True, fastupsample=False)


def lanczos_resize(image: Frame, size: int) -> Frame:
    """Resize to a square by the Lanczos kernel of radius 3, the aspect ratio ignored."""
    return np.clip(np.rint(lanczos_float(image, size)), 0, 255).astype(np.uint8)


def lanczos_float(image: Frame, size: int) -> Float[np.ndarray, "size size 3"]:
    """The same before rounding, float32, 0..255 with overshoot."""
    rows = _weighted_rows(image.astype(np.float32), *_lanczos_taps(image.shape[0], size))
    columns = _weighted_rows(np.ascontiguousarray(rows.transpose(1, 0, 2)), *_lanczos_taps(image.shape[1], size))
    return columns.transpose(1, 0, 2)


def _weighted_rows(image: np.ndarray, sources: np.ndarray, weights: np.ndarray) -> np.ndarray:
    # One product and one sum at a time: a matrix product would round in another order.
    total = image[sources[0]] * weights[0]
    for source, weight in zip(sources[1:], weights[1:], strict=True):
        total += image[source] * weight
    return total


@lru_cache(maxsize=32)
def _lanczos_taps(given: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Source rows and weights of every output row: (taps, wanted) and (taps, wanted, 1, 1)."""
    one = np.float32(1)
    ratio = one / (np.float32(wanted) / np.float32(given))
    stretch = max(ratio, one)
    sample = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * ratio
    reach = LANCZOS_RADIUS * stretch
    start = np.clip(np.ceil(sample - reach - np.float32(0.5)), 0, given - 1).astype(np.int64)
    end = np.clip(np.floor(sample + reach - np.float32(0.5)), 0, given - 1).astype(np.int64)
    taps = np.arange(int((end - start).max()) + 1)[:, None]
    sources = np.minimum(start + taps, end)
    distance = np.abs((sources.astype(np.float32) + np.float32(0.5) - sample) * (one / stretch))
    weights = np.where(start + taps <= end, _lanczos(distance), np.float32(0))
    total = np.zeros(wanted, np.float32)
    for weight in weights:
        total += weight
    weights = weights * (one / total)
    return sources, weights[:, :, None, None]


def _lanczos(x: np.ndarray) -> np.ndarray:
    safe = np.maximum(x, np.float32(1e-3))
    curve = LANCZOS_RADIUS * _sine(PI * safe) * _sine(PI * safe / LANCZOS_RADIUS) / (PI * PI * safe * safe)
    return np.where(x > LANCZOS_RADIUS, np.float32(0), np.where(x <= np.float32(1e-3), np.float32(1), curve))


def _sine(x: np.ndarray) -> np.ndarray:
    """Sine of small positive float32 numbers as C's sinf rounds it; numpy's differs in the last bit, now and then."""
    number = float.fromhex
    angle = x.astype(np.float64)
    quarter = np.floor(angle * number("0x1.45F306DC9C883p-1") + 0.5)
    rest = angle - quarter * number("0x1.921FB54442D18p0")
    square = rest * rest
    odd = number("0x1.1107605230bc4p-7") + square * number("-0x1.994eb3774cf24p-13")
    sine = rest + rest * square * number("-0x1.555545995a603p-3") + rest * square * square * odd
    even = number("-0x1.6c087e89a359dp-10") + square * number("0x1.99343027bf8c3p-16")
    cosine = 1 + square * number("-0x1.ffffffd0c621cp-2") + square * square * number("0x1.55553e1068f19p-5")
    cosine = cosine + square * square * square * even
    turns = quarter.astype(np.int64) & 3
    return (np.where(turns & 1, cosine, sine) * np.where(turns & 2, -1, 1)).astype(np.float32)


def crop_center(image: Frame) -> Frame:
    """Keep the middle 0.9 of the area of a square picture, at the same size."""
    return (np.clip(crop_float(image), 0, 1) * np.float32(255.5)).astype(np.uint8)


def crop_float(image: Frame) -> Float[np.ndarray, "size size 3"]:
    """The same before rounding, float32, 0..1."""
    scaled = image.astype(np.float32) * np.float32(1 / 255)
    before, after, share = _crop_taps(image.shape[1])
    across = np.ascontiguousarray(scaled.transpose(1, 0, 2))
    across = across[before] + (across[after] - across[before]) * share
    down = np.ascontiguousarray(across.transpose(1, 0, 2))
    before, after, share = _crop_taps(image.shape[0])
    return down[before] + (down[after] - down[before]) * share


@lru_cache(maxsize=32)
def _crop_taps(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows below and above each sampling line, and how far the line is from the first."""
    side = np.sqrt(np.float32(CROP_AREA))
    low = (np.float32(1) - side) / np.float32(2)
    high = low + side
    step = (high - low) * np.float32(size - 1) / np.float32(size - 1)
    lines = low * np.float32(size - 1) + np.arange(size, dtype=np.float32) * step
    before = np.floor(lines)
    share = (lines - before)[:, None, None]
    return before.astype(np.int64), np.ceil(lines).astype(np.int64), share
