"""How is a policy written so that it loads like a published one?

The published folder layout, weights in bfloat16. What the published `config.json` leaves unsaid (the variant, cameras,
chunk length) is written into it, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from mist_interp.core.files import write_atomic
from mist_interp.models.film_checkpoint import wrapped
from mist_interp.models.folder import COMPONENTS, INDEX
from mist_interp.models.policy import OpenVLAPolicy
from mist_interp.models.processor import Processor

BYTES_PER_FILE = 5_000_000_000


def save_policy(
    policy: OpenVLAPolicy,
    folder: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    step: int = 0,
    max_file_bytes: int = BYTES_PER_FILE,
) -> Path:
    """Write a policy in the published folder layout.

    Args:
        policy: any variant.
        folder: made if it does not exist; files of an earlier save are overwritten.
        dtype: type of the stored weights; the proprio projector is stored in float32, as published.
        step: training step, part of some file names.
        max_file_bytes: size at which the main weights are split into another file.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder holds weights of another save under other names.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    main, parts = split_weights(policy, dtype)
    files = shard(main, max_file_bytes)
    written = set(files) | {f"{part}--{step}_checkpoint.pt" for part in parts}
    stale = {file.name for pattern in ("*.safetensors", "*--*checkpoint.pt") for file in folder.glob(pattern)} - written
    if stale:
        raise FileExistsError(f"{folder} already holds other weights: {sorted(stale)}; choose another folder")

    for name, tensors in files.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    total = sum(value.numel() * value.element_size() for value in main.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    for part, tensors in parts.items():
        torch.save(tensors, folder / f"{part}--{step}_checkpoint.pt")
    _write_json(folder / "dataset_statistics.json", policy.config.norm_stats or {})
    _write_json(folder / "config.json", described(policy, dtype))
    if policy.processor is not None:
        save_processor(policy.processor, folder)
    return folder


def split_weights(policy: OpenVLAPolicy, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Weights of the main files, and of each part that has a file of its own, under their published names."""
    main: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in policy.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "vision_backbone" and policy.config.film:
            parts.setdefault(part, {})[wrapped(rest)] = _stored(value, dtype)
            if ".scale." in rest or ".shift." in rest:
                continue
        if part in COMPONENTS and part != "vision_backbone":
            kept = torch.float32 if part == "proprio_projector" else dtype
            parts.setdefault(part, {})[f"module.{rest}"] = _stored(value, kept)
        else:
            main[name] = _stored(value, dtype)
    return main, parts


def shard(weights: dict[str, Tensor], max_bytes: int) -> dict[str, dict[str, Tensor]]:
    """Distribute weights over numbered files."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in weights.items():
        bytes_ = value.numel() * value.element_size()
        if groups[-1] and size + bytes_ > max_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = value
        size += bytes_
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def described(policy: OpenVLAPolicy, dtype: torch.dtype) -> dict[str, Any]:
    """Content of `config.json`; the statistics have a file of their own."""
    config = _specific(policy.config.to_dict())
    config["text_config"] = _specific(config["text_config"])
    dtype_name = str(dtype).removeprefix("torch.")
    return {**config, "norm_stats": None, "dtype": dtype_name, "architectures": [type(policy).__name__]}


def _specific(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out what every configuration of transformers says."""
    generic = PretrainedConfig().to_dict()
    return {name: value for name, value in settings.items() if name not in generic or generic[name] != value}


def save_processor(processor: Processor, folder: Path) -> None:
    """Write the tokenizer's files and `preprocessor_config.json`."""
    if processor.tokenizer is not None:
        processor.tokenizer.save_pretrained(folder)
    size = [3, processor.config.image_size, processor.config.image_size]
    settings = {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": processor.config.image_resize_strategy,
        "input_sizes": [size, size],
        "interpolations": ["bicubic", "bicubic"],
        "means": [list(mean) for mean in processor.scaling.means],
        "stds": [list(std) for std in processor.scaling.stds],
        "use_fused_vision_backbone": True,
    }
    _write_json(folder / "preprocessor_config.json", settings)


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.detach().to("cpu", dtype).clone().contiguous()


def _write_json(file: Path, content: dict[str, Any]) -> None:
    write_atomic(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
