"""How does an observation become the inputs of a policy?

Raw LIBERO frames are upside down and mirrored for the policy's purposes: both axes are flipped. Each picture then takes
the way of the training images (`mist_interp.models.images`) and is normalised twice, once for each vision tower. The
instruction is put into the published prompt, and the robot state is read off in raw units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from transformers import PreTrainedTokenizerFast

from mist_interp.core.errors import listing
from mist_interp.core.inputs import PolicyInputs
from mist_interp.models.config import OpenVLAConfig
from mist_interp.models.folder import read_json
from mist_interp.models.images import Frame, check_frame, model_image
from mist_interp.models.robot_state import robot_state
from mist_interp.models.sequence import Prompt
from mist_interp.models.tokenizer import format_prompt, load_tokenizer

CAMERA_KEYS = ("agentview_image", "robot0_eye_in_hand_image")
Observation = Mapping[str, Any]


@dataclass(frozen=True)
class PixelScaling:
    """Mean and deviation of each colour, for each of the two vision towers (DINOv2 first)."""

    means: tuple[tuple[float, ...], ...] = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
    stds: tuple[tuple[float, ...], ...] = ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))

    @staticmethod
    def read(folder: Path) -> PixelScaling:
        """Take them from `preprocessor_config.json`, or the published values if there is no such file."""
        file = folder / "preprocessor_config.json"
        if not file.exists():
            return PixelScaling()
        settings = read_json(file)
        for name in ("means", "stds"):
            if np.shape(settings.get(name, ())) != (2, 3):
                raise ValueError(f"{file} must hold {name!r} as three numbers for each of the two vision towers")
        means, stds = (tuple(tuple(tower) for tower in settings[name]) for name in ("means", "stds"))
        return PixelScaling(means, stds)

    def table(self) -> Float[np.ndarray, "6 256"]:
        """The normalised value of every pixel level in every channel, float32."""
        levels = torch.arange(256, dtype=torch.float32)[None] / 255
        mean, std = (torch.tensor(rows, dtype=torch.float32).reshape(-1, 1) for rows in (self.means, self.stds))
        return ((levels - mean) / std).numpy()


@dataclass
class Processor:
    """Observations and instructions to `PolicyInputs`.

    Attributes:
        config: the policy's configuration: picture size, cameras, whether the robot state is used.
        tokenizer: with BOS first; None if the folder had none (then only token ids can be given).
        scaling: pixel normalisation of the two towers.
        center_crop: crop pictures as evaluation does.
    """

    config: OpenVLAConfig
    tokenizer: PreTrainedTokenizerFast | None = None
    scaling: PixelScaling = field(default_factory=PixelScaling)
    center_crop: bool = True

    def __post_init__(self) -> None:
        self._table = self.scaling.table()

    @staticmethod
    def read(folder: Path, config: OpenVLAConfig) -> Processor:
        """The processor of a checkpoint folder."""
        return Processor(config, load_tokenizer(folder), PixelScaling.read(folder))

    @property
    def num_images(self) -> int:
        """Cameras per query."""
        return self.config.num_images or 1

    def __call__(self, obs: Observation | Sequence[Observation], instruction: str | Sequence[str]) -> PolicyInputs:
        """Prepare one query, or a batch of them.

        Args:
            obs: LIBERO observation(s): raw camera frames uint8 (height, width, 3) and robot state. See `CAMERA_KEYS`
                and `mist_interp.models.robot_state.STATE_KEYS`.
            instruction: what to do, one for each observation or one for all.

        Raises:
            ValueError: if something is missing, or a frame has another shape or type.
        """
        if obs is None or instruction is None:
            raise ValueError("give an observation (or a list of them) and an instruction (or one for each)")
        observations = [obs] if isinstance(obs, Mapping) else list(obs)
        instructions = [instruction] * len(observations) if isinstance(instruction, str) else list(instruction)
        if not observations or len(observations) != len(instructions):
            raise ValueError(
                f"{len(observations)} observations and {len(instructions)} instructions: give at least one "
                "observation, and one instruction for each or one for all"
            )
        return PolicyInputs.cat(
            [self._single(one, text) for one, text in zip(observations, instructions, strict=True)],
            pad_id=self.config.pad_token_id or 0,
        )

    def _single(self, obs: Observation, instruction: str) -> PolicyInputs:
        ids = torch.tensor([self.token_ids(instruction)])
        pixels = torch.from_numpy(self.pixel_values(self.frames(obs)))
        proprio = torch.from_numpy(robot_state(obs))[None] if self.config.use_proprio else None
        return PolicyInputs(ids, torch.ones_like(ids), pixels[None], proprio)

    def token_ids(self, instruction: str) -> list[int]:
        """Ids of the prompt around an instruction, BOS first; the network itself appends what follows.

        Raises:
            ValueError: without a tokenizer, or if the tokenizer does not put BOS first.
        """
        if self.tokenizer is None:
            raise ValueError("this policy was loaded without a tokenizer (no tokenizer.json): give token ids instead")
        ids = list(self.tokenizer(format_prompt(instruction)).input_ids)
        if ids[0] != self.config.llm.bos_token_id:
            raise ValueError(f"the tokenizer starts prompts with id {ids[0]}, not BOS {self.config.llm.bos_token_id}")
        return ids

    def frames(self, obs: Observation) -> list[Frame]:
        """The camera frames that the policy sees, turned upright.

        Raises:
            ValueError: if a camera is missing, or its frame is not uint8 (height, width, 3).
        """
        if self.num_images > len(CAMERA_KEYS):
            raise ValueError(f"the policy takes {self.num_images} images; LIBERO has {len(CAMERA_KEYS)} cameras")
        frames = []
        for key in CAMERA_KEYS[: self.num_images]:
            if key not in obs:
                raise ValueError(
                    f"the observation lacks {key!r}; this policy sees {listing(CAMERA_KEYS[: self.num_images])}, "
                    f"the observation holds {listing(obs)}"
                )
            check_frame(obs[key], key)
            frames.append(np.ascontiguousarray(obs[key][::-1, ::-1]))
        return frames

    def pixel_values(self, frames: Sequence[Frame]) -> Float[np.ndarray, "channels size size"]:
        """Upright frames to normalised pixels, six channels for each, float32."""
        return self.normalize([model_image(frame, self.config.image_size, self.center_crop) for frame in frames])

    def normalize(self, pictures: Sequence[Frame]) -> Float[np.ndarray, "channels size size"]:
        """Model pictures to normalised pixels; a picture of another size is resized (bicubic, aspect ratio ignored)."""
        size = self.config.image_size
        planes = np.empty((len(pictures), 2, 3, size, size), np.float32)
        for i, picture in enumerate(pictures):
            check_frame(picture)
            if picture.shape[:2] != (size, size):
                picture = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
            for channel, levels in enumerate(self._table):
                np.take(levels, picture[:, :, channel % 3], out=planes[i, channel // 3, channel % 3])
        return planes.reshape(-1, size, size)

    def words(self, prompt: Prompt) -> list[list[str]] | None:
        """Text of every prompt id after BOS, "▁" standing for a space; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        rows = zip(prompt.ids.tolist(), prompt.lengths.tolist(), strict=True)
        return [list(self.tokenizer.convert_ids_to_tokens(ids[1:length])) for ids, length in rows]
