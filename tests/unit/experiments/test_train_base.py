"""Is the policy that speaks in tokens taught what it will be asked, and DAgger labelled by the expert?"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.core.inputs import PolicyInputs
from mist_interp.models import bins, random_policy

SCRIPTS = Path(__file__).resolve().parents[3] / "experiments" / "mini"
POLICY = random_policy(0, variant="base", num_images=1, use_proprio=False, chunk_size=1)


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("libero")
    monkeypatch.syspath_prepend(str(SCRIPTS))


def queries() -> PolicyInputs:
    """Two prompts of different lengths."""
    parts = []
    for number, words in enumerate(("pick up the black bowl", "pick up the black bowl on the stove and place it")):
        assert POLICY.processor is not None
        ids = torch.tensor([POLICY.processor.token_ids(words)])
        pixels = torch.randn(1, 6, 56, 56, generator=torch.Generator().manual_seed(number))
        parts.append(PolicyInputs(ids, torch.ones_like(ids), pixels))
    return PolicyInputs.cat(parts, pad_id=POLICY.config.pad_token_id or 0)


@torch.no_grad()
def test_teacher_forcing_asks_what_generation_answers() -> None:
    """Fed with the tokens that the policy speaks, every place predicts the next of them, also in a padded batch."""
    inputs = queries()
    spoken = POLICY(inputs).token_ids.flatten(1)
    logits, _ = import_module("train_base").token_logits(POLICY, inputs, spoken)
    assert torch.equal(logits.argmax(-1), spoken)


@torch.no_grad()
def test_no_token_sees_itself() -> None:
    inputs, lesson = queries(), import_module("train_base")
    spoken = torch.full((2, 7), POLICY.config.bin_vocab_size - 100)
    changed = spoken.clone()
    changed[:, 3] -= 50
    before, after = (lesson.token_logits(POLICY, inputs, tokens)[0] for tokens in (spoken, changed))
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-5)
    assert ((before - after).abs().amax(-1) > 1e-3)[:, 4:].all()


@settings(deadline=None, max_examples=30)
@given(st.floats(-1.2, 1.2))
def test_targets_are_spread_around_their_bin_and_over_bins_only(value: float) -> None:
    config = POLICY.config
    spoken = bins.encode(torch.tensor([[value]]), config.bin_vocab_size)
    shares = import_module("train_base").spread(spoken, POLICY, 0.02)[0, 0]
    assert shares.argmax() == spoken and float(shares.sum()) == pytest.approx(1)
    every = torch.arange(len(shares))
    is_bin = (every >= config.bin_vocab_size - 256) & (every < config.bin_vocab_size)
    assert float(shares[~is_bin].sum()) == 0
    # Two and a half bins are one deviation; at the ends half of the bell is missing.
    assert float(shares[(every - spoken.item()).abs() <= 8].sum()) > 0.99


def test_what_no_input_says_is_regressed() -> None:
    lesson = import_module("train_base").TokenLesson()
    state = np.arange(16.0).reshape(2, 8)
    picked = {"bowl": np.full((2, 3), 0.1), "plate": np.full((2, 3), 0.2), "proprio": state}
    places = lesson.places(picked)
    assert places.shape == (2, 11)
    assert places[1].tolist() == pytest.approx([1] * 3 + [2] * 3 + [80, 90, 100] + [350, 375])


class World:
    """A task whose state is a number of steps; it succeeds after twenty."""

    def __init__(self) -> None:
        self.steps, self.looked = 0, 0
        self.task = type("Task", (), {"max_steps": 220, "instruction": "pick up the black bowl"})

    def observe(self) -> dict[str, Any]:
        self.looked += 1
        frame = np.full((56, 56, 3), self.steps, np.uint8)
        names = ("robot0_eef_pos", "akita_black_bowl_1_pos", "plate_1_pos")
        return {
            "agentview_image": frame,
            "robot0_eye_in_hand_image": frame,
            **{name: np.zeros(3) for name in names},
            "robot0_eef_quat": np.array([0, 0, 0, 1.0]),
            "robot0_gripper_qpos": np.zeros(2),
        }

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        return type("Outcome", (), {"success": self.steps >= 20})

    def save(self) -> int:
        return self.steps

    def restore(self, fork: int) -> None:
        self.steps = fork


class Counting:
    """An expert whose action says in which state it was asked."""

    def __init__(self, env: World) -> None:
        self.env = env

    def act(self) -> np.ndarray:
        return np.full(7, self.env.steps / 100)


@pytest.mark.parametrize(("size", "every"), [(8, 4), (1, 1), (1, 4)])
def test_dagger_labels_each_state_with_what_the_expert_would_do_there(
    monkeypatch: pytest.MonkeyPatch, size: int, every: int
) -> None:
    demonstrations = import_module("demonstrations")
    monkeypatch.setattr(demonstrations, "Expert", Counting)
    policy = random_policy(0, variant="base", chunk_size=1) if size == 1 else random_policy(0)
    arguments = demonstrations.Arguments(out=Path(), every=every)
    env = World()
    episode = demonstrations.by_policy(env, np.random.default_rng(0), policy, arguments)
    seen = episode["images"][:, 0, 60, 60, 0]
    assert episode["chunk"].shape == (len(seen), size, 7) and bool(episode["success"]) and env.steps == 20
    for state, chunk in zip(seen, episode["chunk"], strict=True):
        assert chunk[:, 0].round(6).tolist() == [(state + ahead) / 100 for ahead in range(size)]
    if size == 1:
        assert seen.tolist() == list(range(0, 20, every)) and env.looked == 20
