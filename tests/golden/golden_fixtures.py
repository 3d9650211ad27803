"""Golden fixtures: a checkpoint folder, and what the original code computed from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from mist_interp.core.inputs import PolicyInputs
from mist_interp.models import OpenVLAPolicy, load_policy

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Golden:
    folder: Path
    facts: dict
    arrays: dict[str, torch.Tensor]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.arrays[name]

    def case(self, index: int) -> dict:
        return self.facts["cases"][index]

    def tolerance(self, kind: str) -> float:
        return self.facts["tolerances_float32_max_abs"][kind]


@cache
def golden(name: str) -> Golden:
    folder = DATA / name
    return Golden(folder, json.loads((folder / "golden.json").read_text()), load_file(folder / "golden.safetensors"))


@cache
def policy(name: str, attention: str) -> OpenVLAPolicy:
    key = golden(name).case(0)["unnorm_key"]
    return load_policy(DATA / name, dtype="float32", attn_implementation=attention, unnorm_key=key)


def pixel_values(name: str, index: int) -> torch.Tensor:
    """The processor's output for a case, through bfloat16 as in the original; checked against the golden digest."""
    fixture, settings = golden(name), golden(name).facts["settings"]
    files = [fixture.folder / f"images/case{index}_img{i}.png" for i in range(settings["num_images_in_input"])]
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    pixels = torch.from_numpy(policy(name, "sdpa").processor.normalize(pictures))[None].bfloat16()
    digest = hashlib.sha256(pixels.view(torch.int16).numpy().tobytes()).hexdigest()
    assert digest == fixture.facts["pixel_values_sha256"][f"case{index}.pixel_values"]
    return pixels


def inputs(name: str, index: int) -> PolicyInputs:
    fixture = golden(name)
    proprio = fixture[f"case{index}.proprio_raw"][None] if fixture.facts["settings"]["use_proprio"] else None
    return PolicyInputs(
        fixture[f"case{index}.input_ids"], fixture[f"case{index}.attention_mask"], pixel_values(name, index), proprio
    )


class Recorder:
    """Collects outputs (or first inputs) of modules during one forward pass, one entry per call."""

    def __init__(self, model: torch.nn.Module, outputs: list[str], first_inputs: list[str] = ()):
        self.calls: dict[str, list[torch.Tensor]] = {name: [] for name in [*outputs, *first_inputs]}
        self.handles = [model.get_submodule(name).register_forward_hook(self._output(name)) for name in outputs]
        self.handles += [
            model.get_submodule(name).register_forward_pre_hook(self._input(name), with_kwargs=True)
            for name in first_inputs
        ]

    def _output(self, name):
        def hook(module, args, output):
            self.calls[name].append(output)

        return hook

    def _input(self, name):
        def hook(module, args, kwargs):
            self.calls[name].append(args[0] if args else kwargs["inputs_embeds"])

        return hook

    def __getitem__(self, name: str) -> torch.Tensor:
        (value,) = self.calls[name]
        return value

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
