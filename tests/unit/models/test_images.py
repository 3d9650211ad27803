import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.models.images import crop_center, lanczos_resize, model_image


def ramp(height, width):
    across = np.linspace(20, 230, width)[None, :, None]
    down = np.linspace(0, 20, height)[:, None, None]
    return (across + down + np.zeros(3)).astype(np.uint8)


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 60), st.integers(8, 60), st.integers(8, 60), st.integers(0, 255))
def test_resizing_a_constant_gives_the_constant(height, width, size, level):
    image = np.full((height, width, 3), level, np.uint8)
    resized = lanczos_resize(image, size)
    assert resized.shape == (size, size, 3) and (resized == level).all()


def test_the_same_size_is_the_identity():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(lanczos_resize(image, 32), image)


def test_axes_are_not_swapped():
    resized = lanczos_resize(ramp(256, 200), 112)
    expected = ramp(112, 112)
    assert np.abs(resized[4:-4, 4:-4].astype(int) - expected[4:-4, 4:-4]).max() <= 2


def test_the_crop_keeps_the_middle():
    image = ramp(112, 112)
    cropped = crop_center(image)
    side = 0.9**0.5
    low, high = 0.5 - side / 2, 0.5 + side / 2
    assert abs(int(cropped[56, 0, 0]) - np.interp(low, [0, 1], image[56, [0, -1], 0])) <= 2
    assert abs(int(cropped[56, -1, 0]) - np.interp(high, [0, 1], image[56, [0, -1], 0])) <= 2


@pytest.mark.parametrize("size", [56, 112, 224])
def test_any_model_size(size):
    image = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    before = image.copy()
    assert model_image(image, size).shape == (size, size, 3)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\)"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), "type float32"),
        ([[0]], "is a list"),
    ],
)
def test_other_shapes_and_types_are_refused(frame, message):
    with pytest.raises(ValueError, match=message):
        model_image(frame, 56)
