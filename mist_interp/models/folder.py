"""What lies in a checkpoint folder?

The published layout: `config.json`, weights in numbered safetensors files with an index, `dataset_statistics.json`, one
`<component>--<step>_checkpoint.pt` for each part that was trained beside the main model (as in the original, any *.pt
whose name holds the component's name and "checkpoint"), and tokenizer and processor files. Weights are opened as memory
maps: nothing is read before it is used.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mist_interp.core.errors import UnknownName, listing

PUBLISHED = (
    "moojink/openvla-7b-oft-finetuned-libero-spatial",
    "moojink/openvla-7b-oft-finetuned-libero-object",
    "moojink/openvla-7b-oft-finetuned-libero-goal",
    "moojink/openvla-7b-oft-finetuned-libero-10",
    "moojink/openvla-7b-oft-finetuned-libero-spatial-object-goal-10",
    "openvla/openvla-7b-finetuned-libero-spatial",
    "openvla/openvla-7b",
)
COMPONENTS = ("action_head", "proprio_projector", "noisy_action_projector", "vision_backbone")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Policies that come with the package, by the name that loads them.
SHIPPED = {"mini": Path(__file__).parent / "mini", "mini-base": Path(__file__).parent / "mini_base"}
TEXTS = {".md", ".txt", ".json", ".jsonl", ".py", ".yaml", ".yml", ".log"}


def resolve(path_or_id: str | Path, revision: str | None = None) -> Path:
    """Find the folder of a policy, downloading it if it is the name of a repository on the Hugging Face Hub.

    Args:
        path_or_id: "mini" or "mini-base" (small policies that come with the package), a folder, or "owner/name".
        revision: branch, tag or commit of a repository; None takes its main branch.

    Raises:
        UnknownName: if it is none of these.
        ValueError: a revision of something that is no repository.
        FileNotFoundError: if the repository cannot be downloaded.
    """
    folder = SHIPPED.get(str(path_or_id)) or Path(path_or_id).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} was given, but {str(path_or_id)!r} is a folder, not a repository")
        return folder
    parts = str(path_or_id).split("/")
    if isinstance(path_or_id, Path) or len(parts) != 2 or not all(parts) or parts[0] in {".", "..", "~"}:
        raise UnknownName("policy (no such folder)", str(path_or_id), (*SHIPPED, *PUBLISHED))
    from huggingface_hub import snapshot_download

    try:
        ignore = ["lora_adapter/*.safetensors", "*.bin", "*.gguf"]
        return Path(snapshot_download(str(path_or_id), revision=revision, ignore_patterns=ignore))
    except Exception as problem:
        raise FileNotFoundError(
            f"{str(path_or_id)!r} is not a folder here, and downloading it from the Hugging Face Hub failed "
            f"({type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else 'no reason given'}); "
            f"possible: a folder, {listing(SHIPPED)}, or for example {listing(PUBLISHED[:2])}"
        ) from problem


def revision_of(folder: Path) -> str | None:
    """Commit of a repository on the Hub whose files lie in this folder; None for a folder of one's own."""
    return folder.name if folder.parent.name == "snapshots" else None


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: if there is no such file; the others in the folder are listed.
        ValueError: if it is damaged.
    """
    if not file.exists():
        present = sorted(path.name for path in file.parent.iterdir()) if file.parent.is_dir() else []
        raise FileNotFoundError(f"{file.parent} lacks {file.name}; it holds {listing(present)}")
    try:
        content = json.loads(file.read_text())
    except ValueError as problem:
        raise ValueError(f"{file} is truncated or damaged: {problem}") from problem
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, not a {type(content).__name__}")
    return content


def find_component(folder: Path, name: str) -> Path | None:
    """The file of a part that was trained beside the main model, or None.

    Raises:
        ValueError: if there are several, or one that is named so that it would be overlooked: without its head a
            policy would act, as another variant.
    """
    named = sorted(file for file in folder.glob(f"*{name}*") if file.is_file() and file.suffix not in TEXTS)
    found = [file for file in named if file.suffix == ".pt" and "checkpoint" in file.name]
    if named and not found:
        raise ValueError(
            f"{folder} holds {listing(file.name for file in named)}, which looks like its {name} but cannot be read as "
            f"one: the file must be called like {name}--150000_checkpoint.pt"
        )
    if len(found) > 1:
        raise ValueError(
            f"{folder} has {len(found)} files for {name}: {listing(file.name for file in found)}; keep one of them"
        )
    return found[0] if found else None


def read_component(file: Path) -> dict[str, Tensor]:
    """Read such a file, without the prefix that distributed training puts before each name.

    Raises:
        ValueError: if the file is damaged, or holds something else than named tensors.
    """
    try:
        # Only the format that torch has written since 1.6, a zip archive, can be mapped into memory.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as problem:
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) is truncated, damaged, or no file of plain tensors: "
            f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
        ) from problem
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file} must hold named tensors only")
    return {name.removeprefix("module."): value for name, value in content.items()}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the main model.

    Raises:
        FileNotFoundError: if there are none, or the index names files that do not exist.
    """
    if not (folder / INDEX).exists():
        if (folder / SINGLE).exists():
            return [folder / SINGLE]
        present = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(f"{folder} has neither {INDEX} nor {SINGLE}; it holds {listing(present)}")
    index = read_json(folder / INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{folder / INDEX} must hold a weight_map from the name of each weight to that of its file")
    files = [folder / name for name in sorted(set(places.values()))]
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of the {len(files)} weight files that {INDEX} names: {listing(missing)}; "
            f"present: {listing(file.name for file in files if file.exists())}"
        )
    return files


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and memory-mapped tensor of every weight of the main model.

    Raises:
        FileNotFoundError: if a weight file is missing.
        ValueError: if one is truncated or damaged.
    """
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt", device="cpu") as shard:
                for name in shard.keys():  # noqa: SIM118 (the handle is not iterable)
                    yield name, shard.get_tensor(name)
        except SafetensorError as problem:
            raise ValueError(
                f"{file} ({file.stat().st_size} bytes) is truncated or damaged: {problem}; copy or download it again"
            ) from problem
