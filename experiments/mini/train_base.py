"""How is the small policy trained that speaks its actions in tokens, one after the other, as base OpenVLA does?

The loop of `train.py` with another lesson: causal attention, one camera, no robot state, one action per query in seven
tokens. Cross-entropy with teacher forcing: each token is predicted from the picture, the prompt and the true tokens
before it. A target is spread over its neighbours by a Gaussian, because 256 bins of which no one knows that they are
ordered are too many for ten thousand samples. Whatever fits is taken over from `mini`:
towers, projector and language model; embeddings and output weights of the action bins were never used there.

The auxiliary loss also regresses where the hand is and how far its fingers are apart: no input says that here.

    python experiments/mini/train_base.py --demos runs/mini/demos --out runs/mini/base --minutes 30
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import train
import tyro
from torch import Tensor, nn

from mist_interp.core.inputs import PolicyInputs
from mist_interp.models import OpenVLAPolicy, bins, sequence

BASE: dict[str, Any] = {"variant": "base"}


@dataclass
class Arguments(train.Arguments):
    """How to train."""

    out: Path = Path("runs/mini/base")
    minutes: float = 30.0
    batch: int = 32
    rate: float = 6e-4
    auxiliary: float = 2.0
    start: str | None = "mini"
    """Policy to start from; "None" starts from random weights."""
    spread: float = 0.02
    """Width (standard deviation) of the Gaussian over the bins, in normalised units: a bin is 0.0078."""


@dataclass(frozen=True)
class TokenLesson(train.Lesson):
    """Base OpenVLA's: the next action token, given the true ones before it; `width` is that of its target."""

    width: float = 0.02

    def places(self, picked: dict[str, np.ndarray]) -> Tensor:
        """Bowl and plate from the hand and the hand itself, in decimetres; the two fingers, 1 = open; (samples, 11)."""
        state = torch.from_numpy(picked["proprio"]).float()
        return torch.cat([super().places(picked), 10 * state[:, :3], 25 * state[:, 6:]], dim=1)

    def answer(self, policy: OpenVLAPolicy, inputs: PolicyInputs, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of a token, and the state from which the first one is predicted."""
        config = policy.config
        spoken = bins.encode(target.flatten(1), config.bin_vocab_size, config.n_action_bins)
        logits, states = token_logits(policy, inputs, spoken)
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), spread(spoken, policy, self.width).flatten(0, 1)
        ), states[:, 0]


def token_logits(policy: OpenVLAPolicy, inputs: PolicyInputs, spoken: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of every action token given the spoken ones before it, and the states they are read from.

    Args:
        policy: of the base variant.
        inputs: a batch of queries.
        spoken: action tokens, (batch, tokens).
    """
    config, llm = policy.config, policy.language_model
    prompt = sequence.close_prompt(inputs.input_ids, inputs.attention_mask, config.lone_space_token_id)
    text = sequence.append_slots(prompt, config.action_slots, config.placeholder_token_id, config.stop_token_id)
    # The last token and the stop after it are in the sequence too, but attention is causal: nothing reads them.
    ids = text.ids.masked_scatter(text.is_slot, spoken)
    states = policy.read_out(llm.get_input_embeddings()(ids), text, policy.see(inputs))
    return llm.lm_head(states).float(), states


def spread(spoken: Tensor, policy: OpenVLAPolicy, width: float) -> Tensor:
    """Each token as a distribution over the vocabulary: its bin and those beside it, (samples, tokens, vocabulary)."""
    config = policy.config
    every = torch.arange(config.llm.vocab_size)
    # A bin is as wide as a step from one id to the next, whatever it decodes to.
    distance = (every - spoken[..., None]) * (2 / (config.n_action_bins - 1))
    is_bin = (every < config.bin_vocab_size) & (every >= config.bin_vocab_size - config.n_action_bins)
    return (-0.5 * (distance / width) ** 2).masked_fill(~is_bin, -torch.inf).softmax(-1)


if __name__ == "__main__":
    given = tyro.cli(Arguments)
    train.main(given, TokenLesson(fields=BASE, cameras=1, chunk=1, start=given.start, width=given.spread))
