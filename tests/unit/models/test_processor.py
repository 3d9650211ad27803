import numpy as np
import pytest
import torch
from policy_builders import LONG, SHORT, observation

from mist_interp.models import random_policy
from mist_interp.models.images import model_image
from mist_interp.models.processor import Processor
from mist_interp.models.robot_state import axis_angle, robot_state
from mist_interp.models.small import small_config
from mist_interp.models.tokenizer import LIBERO_WORDS, format_prompt, load_tokenizer, word_tokenizer


@pytest.fixture(scope="module")
def policy():
    return random_policy(0)


def test_frames_are_turned_by_180_degrees(policy):
    obs = observation()
    prepared = policy.prepare(obs, SHORT)
    upright = model_image(np.ascontiguousarray(obs["robot0_eye_in_hand_image"][::-1, ::-1]), 56)
    expected = policy.processor.normalize([upright])
    np.testing.assert_array_equal(prepared.pixel_values[0, 6:].numpy(), expected)
    assert prepared.pixel_values.dtype == torch.float32


def test_towers_see_their_own_normalisation(policy):
    white = np.full((56, 56, 3), 255, np.uint8)
    channels = policy.processor.normalize([white])[:, 0, 0]
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225, 1, 1, 1]
    np.testing.assert_allclose(channels, expected, rtol=1e-6)


def test_the_robot_state_stays_raw(policy):
    obs = observation()
    prepared = policy.prepare(obs, SHORT)
    angle = 2 * np.arccos(0.8)
    np.testing.assert_allclose(prepared.proprio[0].numpy(), [-0.2, 0.1, 1.1, angle, 0, 0, 0.04, -0.04], atol=1e-12)
    assert prepared.proprio.dtype == torch.float64


def test_a_batch_is_its_rows(policy):
    observations = [observation(0), observation(1)]
    batch = policy.prepare(observations, [SHORT, LONG])
    for row, (obs, text) in enumerate(zip(observations, [SHORT, LONG], strict=True)):
        alone = policy.prepare(obs, text)
        length = alone.input_ids.shape[1]
        assert torch.equal(batch.input_ids[row, :length], alone.input_ids[0])
        assert batch.attention_mask[row].sum() == length
        assert torch.equal(batch.pixel_values[row], alone.pixel_values[0])
        assert torch.equal(batch.proprio[row], alone.proprio[0])
    assert torch.equal(
        policy.prepare(observations, SHORT).input_ids[0], policy.prepare(observations[1], SHORT).input_ids[0]
    )


def test_one_camera_and_no_robot_state():
    policy = random_policy(0, num_images=1, use_proprio=False)
    only = {"agentview_image": observation()["agentview_image"]}
    prepared = policy.prepare(only, SHORT)
    assert prepared.pixel_values.shape == (1, 6, 56, 56) and prepared.proprio is None


def without(key):
    return {name: value for name, value in observation().items() if name != key}


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (without("robot0_eye_in_hand_image"), "lacks 'robot0_eye_in_hand_image'"),
        (without("robot0_eef_quat"), "lacks 'robot0_eef_quat'"),
        ({**observation(), "robot0_eef_pos": np.zeros(2)}, r"'robot0_eef_pos' has shape \(2,\); expected \(3,\)"),
        (
            {**observation(), "agentview_image": np.zeros((64, 64, 4), np.uint8)},
            r"agentview_image has shape \(64, 64, 4\)",
        ),
        ({**observation(), "agentview_image": np.zeros((64, 64, 3))}, "agentview_image has .* float64"),
    ],
)
def test_incomplete_observations_are_refused(policy, obs, message):
    with pytest.raises(ValueError, match=message):
        policy.prepare(obs, SHORT)


def test_counts_must_agree(policy):
    with pytest.raises(ValueError, match="2 observations and 3 instructions"):
        policy.prepare([observation()] * 2, [SHORT] * 3)
    with pytest.raises(ValueError, match="at least one"):
        policy.prepare([], [])


def test_a_policy_without_processor_says_so():
    bare = random_policy(0)
    bare.processor = None
    with pytest.raises(ValueError, match="no processor"):
        bare.prepare(observation(), SHORT)
    bare.processor = Processor(bare.config)
    with pytest.raises(ValueError, match="without a tokenizer"):
        bare.prepare(observation(), SHORT)


def test_prompt_and_its_tokens():
    tokenizer, vocabulary = word_tokenizer()
    assert format_prompt("Open THE drawer") == "In: What action should the robot take to open the drawer?\nOut:"
    ids = tokenizer(format_prompt("Open the drawer")).input_ids
    pieces = tokenizer.convert_ids_to_tokens(ids)
    start = ["<s>", "▁in", ":", "▁what", "▁action", "▁should", "▁the", "▁robot", "▁take", "▁to"]
    assert pieces == [*start, "▁open", "▁the", "▁drawer", "?", "\n", "out", ":"]
    assert ids[0] == 1 and vocabulary.lone_space not in ids
    assert tokenizer("out: ").input_ids[-1] == vocabulary.lone_space


def test_every_libero_word_is_one_known_token():
    tokenizer, vocabulary = word_tokenizer()
    ids = tokenizer(" ".join(LIBERO_WORDS), add_special_tokens=False).input_ids
    assert len(set(ids)) == len(LIBERO_WORDS) and 0 not in ids and max(ids) < vocabulary.bin_vocab_size - 256
    assert tokenizer("zebra", add_special_tokens=False).input_ids == [0]


def test_special_ids_have_llamas_structure():
    tokenizer, vocabulary = word_tokenizer(["cup"])
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token_id == vocabulary.bin_vocab_size and vocabulary.table_size % 64 == 0
    assert tokenizer.convert_ids_to_tokens(vocabulary.bin_vocab_size - 256) == "<bin_0>"
    config = small_config(vocabulary=vocabulary)
    assert config.bin_vocab_size == vocabulary.bin_vocab_size and config.llm.vocab_size == vocabulary.table_size


def test_tokenizer_survives_saving(tmp_path):
    tokenizer, _ = word_tokenizer()
    assert load_tokenizer(tmp_path) is None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded(format_prompt(LONG)).input_ids == tokenizer(format_prompt(LONG)).input_ids
    (tmp_path / "tokenizer.json").rename(tmp_path / "tokenizer.model")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("quaternion", [[0, 0, 0, 1], [0, 0, 0, -1], [0.1, 0, 0, 1.5]])
def test_no_rotation(quaternion):
    given = np.array(quaternion, dtype=float)
    before = given.copy()
    np.testing.assert_array_equal(axis_angle(given), np.zeros(3))
    np.testing.assert_array_equal(given, before)


def test_axis_angle_keeps_the_sign_of_the_quaternion():
    quarter = np.array([0, 0, np.sin(np.pi / 4), np.cos(np.pi / 4)])
    np.testing.assert_allclose(axis_angle(quarter), [0, 0, np.pi / 2], atol=1e-12)
    np.testing.assert_allclose(axis_angle(-quarter), [0, 0, -3 * np.pi / 2], atol=1e-12)
    assert robot_state(observation()).shape == (8,)
