import numpy as np
import pytest
import torch

from mist_interp.core.actions import ACTION_NAMES, ActionChunk, to_env_action


def test_gripper_is_binarised_and_flipped_and_the_rest_untouched():
    grips = np.array([0.0, 0.49, 0.5, 0.51, 1.0, -0.2, 1.3])
    values = np.tile(np.linspace(-1.5, 1.5, 7), (7, 1))
    values[:, -1] = grips
    before = values.copy()
    sent = to_env_action(values)
    np.testing.assert_array_equal(values, before)
    np.testing.assert_array_equal(sent[:, :6], values[:, :6])
    np.testing.assert_array_equal(sent[:, 6], [1, 1, 0, -1, -1, 1, -1])
    assert np.signbit(sent[2, 6])
    np.testing.assert_array_equal(to_env_action(torch.from_numpy(values)).numpy(), sent)


def test_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 6\).*gripper"):
        to_env_action(np.zeros((2, 6)))


def test_chunk_slices_and_checks_shapes():
    chunk = ActionChunk(torch.zeros(3, 8, 7), torch.ones(3, 8, 7), token_ids=torch.arange(3 * 56).reshape(3, 8, 7))
    assert chunk.names == ACTION_NAMES and len(chunk) == 3
    part = chunk[1:2]
    assert part.values.shape == (1, 8, 7) and part.token_ids[0, 0, 0] == 56
    assert (chunk.to_env()[..., -1] == -1).all()
    with pytest.raises(ValueError, match="normalized has shape"):
        ActionChunk(torch.zeros(1, 8, 7), torch.zeros(1, 8, 6))
