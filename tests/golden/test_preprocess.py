"""Images, robot state, gripper, normalisation and bins, against the original TensorFlow code."""

import hashlib
import json

import numpy as np
import pytest
import torch
from golden_fixtures import DATA

from mist_interp.core.actions import to_env_action
from mist_interp.models import bins
from mist_interp.models.config import OpenVLAConfig
from mist_interp.models.images import (
    crop_center,
    crop_float,
    jpeg_round_trip,
    lanczos_float,
    lanczos_resize,
    model_image,
)
from mist_interp.models.normalization import Bounds, normalize, unnormalize
from mist_interp.models.processor import PixelScaling, Processor
from mist_interp.models.robot_state import axis_angle
from mist_interp.models.sequence import append_slots, close_prompt

ARRAYS = dict(np.load(DATA / "preprocess/preprocess.npz"))
DIGESTS = json.loads((DATA / "preprocess/preprocess.json").read_text())["sha256_of_arrays_left_out"]
STATISTICS = json.loads((DATA / "oft_l1/dataset_statistics.json").read_text())["libero_spatial_no_noops"]
FRAMES = range(4)


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def processor(images=1):
    return Processor(OpenVLAConfig(num_images=images), scaling=PixelScaling.read(DATA / "oft_l1"))


@pytest.mark.parametrize("i", FRAMES)
def test_pictures_are_bit_equal(i):
    frame = ARRAYS["frames"][i]
    np.testing.assert_array_equal(jpeg_round_trip(frame), ARRAYS["jpeg_roundtrip"][i])
    np.testing.assert_array_equal(lanczos_resize(ARRAYS["jpeg_roundtrip"][i], 224), ARRAYS["resized_224"][i])
    np.testing.assert_array_equal(crop_center(ARRAYS["resized_224"][i]), ARRAYS["center_cropped_224"][i])
    np.testing.assert_array_equal(model_image(frame, 224), ARRAYS["center_cropped_224"][i])
    np.testing.assert_array_equal(model_image(frame, 224, center_crop=False), ARRAYS["resized_224"][i])


def test_unrounded_pictures_are_bit_equal():
    resized = lanczos_float(ARRAYS["jpeg_roundtrip"][0], 224)
    assert digest(resized) == DIGESTS["resize_float_before_round_frame0"]
    assert digest(crop_float(ARRAYS["resized_224"][0])) == DIGESTS["center_crop_float_before_uint8_frame0"]


def test_pixel_values():
    frames = ARRAYS["frames"]
    np.testing.assert_allclose(processor()._table.T, ARRAYS["pixel_value_of_level"], atol=1e-6, rtol=0)
    assert digest(processor().pixel_values([frames[0]])[None]) == DIGESTS["pixel_values_frame0"]
    assert digest(processor(2).pixel_values([frames[2], frames[3]])[None]) == DIGESTS["pixel_values_two_images"]


def test_pictures_of_another_size_are_resized():
    found = processor().normalize([ARRAYS["processor_rect_input"]])
    np.testing.assert_allclose(found, ARRAYS["processor_rect_pixel_values"][0], atol=1e-6, rtol=0)


def test_gripper():
    np.testing.assert_array_equal(to_env_action(ARRAYS["gripper_in"]), ARRAYS["gripper_env"])
    np.testing.assert_array_equal(to_env_action(torch.from_numpy(ARRAYS["gripper_in"])).numpy(), ARRAYS["gripper_env"])
    np.testing.assert_array_equal(np.signbit(to_env_action(ARRAYS["gripper_in"])), np.signbit(ARRAYS["gripper_env"]))


def test_axis_angle():
    before = ARRAYS["quat_xyzw_in"].copy()
    found = np.stack([axis_angle(quaternion) for quaternion in ARRAYS["quat_xyzw_in"]])
    np.testing.assert_allclose(found, ARRAYS["axisangle_out"], atol=1e-12, rtol=0)
    np.testing.assert_array_equal(ARRAYS["quat_xyzw_in"], before)


def bounds(part, mask=None):
    kept = {name: value for name, value in STATISTICS[part].items() if name != "mask"}
    return Bounds.read({**kept, **({} if mask is None else {"mask": mask})}, "q99")


T, F = True, False


@pytest.mark.parametrize(
    ("mask", "expected"),
    [(None, "proprio_normalized"), ([T, T, T, F, T, T, F, F], "proprio_normalized_with_mask")],
)
def test_robot_state(mask, expected):
    found = normalize(torch.from_numpy(ARRAYS["proprio_in"]), bounds("proprio", mask))
    np.testing.assert_allclose(found.numpy(), ARRAYS[expected], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("mask", "given", "expected"),
    [
        (STATISTICS["action"]["mask"], "unnorm_in", "unnorm_mask_gripper_false"),
        (None, "unnorm_in", "unnorm_no_mask_key"),
        ([T, F, T, F, T, F, T], "unnorm_in", "unnorm_mixed_mask"),
        (STATISTICS["action"]["mask"], "unnorm_in_float32", "unnorm_from_float32"),
    ],
)
def test_actions_in_robot_units(mask, given, expected):
    found = unnormalize(torch.from_numpy(ARRAYS[given]), bounds("action", mask))
    np.testing.assert_allclose(found.numpy(), ARRAYS[expected], atol=1e-12, rtol=0)


def test_bins():
    encoded = bins.encode(torch.from_numpy(ARRAYS["bins_encode_in"]), 32000)
    np.testing.assert_array_equal(encoded.numpy(), ARRAYS["bins_encode_token_ids"])
    decoded = bins.decode(torch.from_numpy(ARRAYS["bins_decode_token_ids"]), 32000)
    np.testing.assert_allclose(decoded.numpy(), ARRAYS["bins_decode_values"], atol=1e-12, rtol=0)


def test_placeholders():
    prompt = close_prompt(torch.arange(1, 20)[None], torch.ones(1, 19), 29871)
    text = append_slots(prompt, 56, 31744, 2)
    labelled = torch.from_numpy(ARRAYS["labels_row_L20"]) > 31743
    np.testing.assert_array_equal(text.is_slot.numpy(), labelled.numpy())
    masks = ARRAYS["mask_current_L20"] | ARRAYS["mask_next_L20"]
    np.testing.assert_array_equal(text.is_slot.numpy(), masks)
