"""Is the shipped mini-base a base OpenVLA: causal, one camera, no robot state, seven tokens, always the same ones?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.models import OpenVLAPolicy, load_policy, resolve
from mist_interp.models.bins import decode
from mist_interp.models.validation import check_inputs

ACTIONS = Path(__file__).parent / "mini_base_actions.json"
GOLDEN = json.loads(ACTIONS.read_text()) if ACTIONS.exists() else []
STOVE, DRAWER = (
    "pick up the black bowl on the stove and place it on the plate",
    "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate",
)
# Bins that a last bit of a sum may move an argmax by, on another processor.
NEAR = 3


@pytest.fixture(scope="module")
def policy() -> OpenVLAPolicy:
    return load_policy("mini-base")


def picture(phase: float = 0.0) -> dict[str, Any]:
    """An observation without a simulator: faint smooth waves, as LIBERO would hand it over.

    Stronger ones drive most actions to the ends of their range, which would hide what changes.
    """
    y, x = np.mgrid[0:256, 0:256] / 256
    waves = [np.sin(2 * np.pi * (k * x + y / k) + phase) for k in (1, 2, 3)]
    return {"agentview_image": (127.5 + 30 * np.stack(waves, -1)).astype(np.uint8)}


def test_it_is_of_the_base_kind(policy: OpenVLAPolicy) -> None:
    config = policy.config
    assert (policy.variant, policy.variant_evidence) == ("base", "config.json")
    assert (config.num_images, config.use_proprio, config.chunk_size, config.action_slots) == (1, False, 1, 7)
    assert config.n_action_bins == 256 and config.bounds == "q99"
    names = {name.split(".")[0] for name, _ in policy.named_parameters()}
    assert names == {"vision_backbone", "projector", "language_model"}


def test_attention_is_causal(policy: OpenVLAPolicy) -> None:
    assert policy.config.llm.is_causal
    policy.check()
    llm = policy.language_model.model
    states = torch.randn(1, 12, policy.config.llm.hidden_size, generator=torch.Generator().manual_seed(0))
    other = states.clone()
    other[:, 8:] += 1.0
    with torch.no_grad():
        before, after = (llm(inputs_embeds=given).last_hidden_state for given in (states, other))
    assert torch.allclose(before[:, :8], after[:, :8], atol=1e-5)
    assert ((before - after)[:, 8:].abs().amax(-1) > 1e-2).all()


def test_its_folder_is_small_and_complete() -> None:
    folder = resolve("mini-base")
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert sum(sizes.values()) <= 9.5e6
    assert {"config.json", "dataset_statistics.json", "tokenizer.json", "README.md"} <= sizes.keys()
    assert not [name for name in sizes if name.endswith(".pt")], "a head or projector would make it another variant"
    statistics = json.loads((folder / "dataset_statistics.json").read_text())["libero_spatial_no_noops"]["action"]
    assert statistics["mask"] == [True] * 6 + [False]
    assert all(low < high for low, high in zip(statistics["q01"], statistics["q99"], strict=True))


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    with pytest.raises(UnknownName, match="did you mean 'mini-base'"):
        resolve("mini_base")


@torch.no_grad()
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['instruction'][23:40]}-{case['phase']}")
def test_it_answers_as_when_it_was_shipped(policy: OpenVLAPolicy, case: dict[str, Any]) -> None:
    chunk = policy(policy.prepare(picture(case["phase"]), case["instruction"]))
    assert chunk.token_ids is not None and chunk.token_ids.shape == (1, 1, 7)
    assert (chunk.token_ids[0, 0] - torch.tensor(case["token_ids"])).abs().max() <= NEAR
    torch.testing.assert_close(chunk.values[0, 0], torch.tensor(case["values"], dtype=torch.float64), atol=0.05, rtol=0)
    torch.testing.assert_close(chunk.normalized, decode(chunk.token_ids, policy.config.bin_vocab_size), atol=0, rtol=0)


def test_the_words_change_what_it_does() -> None:
    spoken = {case["instruction"]: case["token_ids"] for case in GOLDEN if case["phase"] == 0.0}
    assert np.abs(np.subtract(spoken[STOVE], spoken[DRAWER])).max() > 2 * NEAR


@torch.no_grad()
def test_it_answers_the_same_again_and_alone_as_in_a_batch(policy: OpenVLAPolicy) -> None:
    pictures, words = [picture(0.0), picture(1.0)], [STOVE, DRAWER]
    together = policy(policy.prepare(pictures, words))
    again = policy(policy.prepare(pictures, words))
    assert torch.equal(together.token_ids, again.token_ids) and torch.equal(together.values, again.values)
    for row, (obs, text) in enumerate(zip(pictures, words, strict=True)):
        alone = policy(policy.prepare(obs, text))
        assert (alone.token_ids[0] - together.token_ids[row]).abs().max() <= NEAR


@torch.no_grad()
def test_wrist_camera_and_robot_state_are_not_read(policy: OpenVLAPolicy) -> None:
    other = {"robot0_eye_in_hand_image": np.zeros((256, 256, 3), np.uint8), "robot0_eef_pos": np.full(3, np.nan)}
    alone, beside = (policy.prepare(obs, STOVE) for obs in (picture(), picture() | other))
    assert alone.proprio is None and beside.proprio is None
    assert alone.pixel_values.shape == (1, 6, 112, 112)
    assert torch.equal(alone.pixel_values, beside.pixel_values)
    given = PolicyInputs(alone.input_ids, alone.attention_mask, alone.pixel_values, torch.zeros(1, 8))
    with pytest.raises(ValueError, match="no proprio projector"):
        check_inputs(given, policy.config)


def shipped_answers(policy: OpenVLAPolicy) -> list[dict[str, Any]]:
    """What `mini_base_actions.json` holds; to be written again when other weights are shipped, by running this file."""
    rows = []
    for words in (STOVE, DRAWER):
        for phase in (0.0, 1.0):
            with torch.no_grad():
                chunk = policy(policy.prepare(picture(phase), words))
            assert chunk.token_ids is not None
            values = [round(value, 6) for value in chunk.values[0, 0].tolist()]
            row = {"instruction": words, "phase": phase, "token_ids": chunk.token_ids[0, 0].tolist(), "values": values}
            rows.append(row)
    return rows


if __name__ == "__main__":
    ACTIONS.write_text(json.dumps(shipped_answers(load_policy("mini-base")), indent=1) + "\n")
