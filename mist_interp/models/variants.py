"""Which variant is a checkpoint folder?

The published files do not say; it follows from which of them are there:

* an action head whose weights start with `model.` regresses, one with `noise_predictor.` denoises;
* without a head the policy speaks in tokens: all at once (OpenVLA-OFT), or one after the other (base OpenVLA). Nothing
  in the weights tells these two apart, so other traces of OpenVLA-OFT are looked for, see `speaks_in_parallel`;
* a vision backbone of its own means FiLM, a proprio projector means that the robot state is used.

A folder written by this package states its variant in `config.json`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mist_interp.core.errors import UnknownName, listing
from mist_interp.models.config import VARIANTS
from mist_interp.models.folder import find_component

HEAD_PREFIXES = {"model.": "l1", "noise_predictor.": "diffusion"}
# Actions per query on the three platforms of the published recipes; no file of a checkpoint says which it was.
ALOHA_DIM, ALOHA_CHUNK = 14, 25
BRIDGE_STATE, BRIDGE_CHUNK = 7, 5
LIBERO_CHUNK = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wishes:
    """What the caller asks for, None where the folder decides."""

    variant: str | None = None
    num_images: int | None = None
    use_proprio: bool | None = None
    chunk_size: int | None = None


def infer(
    folder: Path,
    config: Mapping[str, Any],
    statistics: Mapping[str, Any],
    components: Mapping[str, Mapping[str, Tensor]],
    wishes: Wishes,
) -> tuple[dict[str, Any], str]:
    """Fill in what `config.json` leaves unsaid.

    Args:
        folder: the checkpoint folder.
        config: content of its `config.json`.
        statistics: action and proprio statistics by dataset.
        components: weights of the parts that were trained beside the main model.
        wishes: what the caller asks for.

    Returns:
        Fields of `OpenVLAConfig`, and in words what the variant was read off.

    Raises:
        UnknownName: for a variant that does not exist.
        ValueError: if the head is none of the known ones, or the wishes contradict the files.
    """
    variant, evidence = _variant(folder, config, statistics, components, wishes)
    if config.get("film") and "vision_backbone" not in components:
        raise ValueError(f"config.json says film, which needs a file vision_backbone--*checkpoint.pt in {folder}")
    use_proprio = _use_proprio(folder, components, wishes, config)
    action_dim = _action_dim(statistics, components)
    fields: dict[str, Any] = {
        "variant": variant,
        "film": "vision_backbone" in components,
        "use_proprio": use_proprio,
        "action_dim": action_dim,
        "proprio_dim": _proprio_dim(components),
        "chunk_size": _chunk_size(variant, action_dim, statistics, components),
        "bounds": "minmax" if action_dim == ALOHA_DIM else "q99",
        "num_images": _num_images(variant, use_proprio, wishes),
    }
    stated = {name: config[name] for name in ("chunk_size", "bounds") if config.get(name) is not None}
    if wishes.num_images is None and config.get("num_images") is not None:
        stated["num_images"] = config["num_images"]
    if wishes.chunk_size is not None:
        stated["chunk_size"] = _asked_chunk_size(variant, wishes.chunk_size)
    return {**fields, **stated}, evidence


def _variant(
    folder: Path,
    config: Mapping[str, Any],
    statistics: Mapping[str, Any],
    components: Mapping[str, Mapping[str, Tensor]],
    wishes: Wishes,
) -> tuple[str, str]:
    for name in (wishes.variant, config.get("variant")):
        if name is not None and name not in VARIANTS:
            raise UnknownName("variant", name, VARIANTS)
    if "action_head" in components:
        found, evidence = _head_variant(folder, components["action_head"])
        if found == "diffusion" and "noisy_action_projector" not in components:
            raise ValueError(
                f"{folder} has a diffusion head but no noisy_action_projector--*checkpoint.pt, which it needs"
            )
        for asked, source in ((wishes.variant, "asked for"), (config.get("variant"), "stated in config.json")):
            if asked not in (None, found):
                raise ValueError(f"variant {asked!r} was {source}, but {evidence}: it is {found!r}")
        return found, evidence
    for asked, source in ((wishes.variant, "the caller"), (config.get("variant"), "config.json")):
        if asked in ("l1", "diffusion"):
            raise ValueError(
                f"variant {asked!r} (from {source}) needs a file action_head--*checkpoint.pt in {folder}; "
                f"it holds {listing(sorted(path.name for path in folder.iterdir()))}"
            )
        if asked is not None:
            return asked, source
    parallel, evidence = speaks_in_parallel(folder, statistics, components, wishes)
    return ("discrete" if parallel else "base"), f"no action head, and {evidence}"


def _head_variant(folder: Path, head: Mapping[str, Tensor]) -> tuple[str, str]:
    for prefix, variant in HEAD_PREFIXES.items():
        if head and all(name.startswith(prefix) for name in head):
            return variant, f"the weights of the action head start with {prefix!r}"
    file = find_component(folder, "action_head")
    raise ValueError(
        f"unknown action head in {file}: its weights are {listing(head)}; possible are a regression head (names start "
        "with 'model.') and a diffusion head ('noise_predictor.')"
    )


def speaks_in_parallel(
    folder: Path,
    statistics: Mapping[str, Any],
    components: Mapping[str, Mapping[str, Tensor]],
    wishes: Wishes,
) -> tuple[bool, str]:
    """Whether a folder without an action head decodes all actions at once; and why, in words.

    In this order: parts that only OpenVLA-OFT has; the published model code, if it lies in the folder; several cameras
    asked for; and last the name of the data set, because OpenVLA-OFT was trained on data without idle frames. A name is
    weak evidence, so that is logged as a warning: the wrong choice raises no error anywhere.
    """
    if components:
        return True, f"there is {listing(components)}, which base OpenVLA does not have"
    code = folder / "modeling_prismatic.py"
    if code.exists():
        parallel = "NUM_ACTIONS_CHUNK" in code.read_text(errors="replace")
        return parallel, f"{code.name} {'decodes chunks' if parallel else 'knows no chunks'}"
    if (wishes.num_images or 1) > 1 or wishes.use_proprio:
        return True, "more than one camera or the robot state was asked for"
    parallel = bool(statistics) and all(key.endswith("_no_noops") for key in statistics)
    evidence = f"the data set is {listing(statistics)}" if parallel else "nothing in the folder is of OpenVLA-OFT"
    _log.warning(
        "%s has no action head and no model code; taken for %s because %s. If that is wrong, say variant=%r",
        *(folder, "OpenVLA-OFT, all actions at once" if parallel else "base OpenVLA, one token after the other"),
        *(evidence, "base" if parallel else "discrete"),
    )
    return parallel, evidence


def _use_proprio(folder: Path, components: Mapping[str, Any], wishes: Wishes, config: Mapping[str, Any]) -> bool:
    present = "proprio_projector" in components
    asked = config.get("use_proprio") if wishes.use_proprio is None else wishes.use_proprio
    if asked and not present:
        raise ValueError(
            f"use_proprio=True needs a file proprio_projector--*checkpoint.pt in {folder}; "
            f"it holds {listing(sorted(path.name for path in folder.iterdir()))}"
        )
    return present if asked is None else bool(asked)


def _action_dim(statistics: Mapping[str, Any], components: Mapping[str, Mapping[str, Tensor]]) -> int:
    for name, weight in components.get("action_head", {}).items():
        if name.endswith("fc2.bias"):
            return weight.shape[0]
    return len(next(iter(statistics.values()))["action"]["q01"])


def _proprio_dim(components: Mapping[str, Mapping[str, Tensor]]) -> int:
    weight = components.get("proprio_projector", {}).get("fc1.weight")
    return 8 if weight is None or weight.ndim != 2 else weight.shape[1]


def _chunk_size(
    variant: str, action_dim: int, statistics: Mapping[str, Any], components: Mapping[str, Mapping[str, Tensor]]
) -> int:
    if variant == "base":
        return 1
    if action_dim == ALOHA_DIM:
        return ALOHA_CHUNK
    bridge = bool(statistics) and all(key.startswith("bridge") for key in statistics)
    bridge = bridge or ("proprio_projector" in components and _proprio_dim(components) == BRIDGE_STATE)
    return BRIDGE_CHUNK if bridge else LIBERO_CHUNK


def _asked_chunk_size(variant: str, chunk_size: int) -> int:
    if not isinstance(chunk_size, int) or chunk_size < 1 or (variant == "base" and chunk_size != 1):
        possible = "1 for base OpenVLA" if variant == "base" else "a whole number of at least 1"
        raise ValueError(f"chunk_size is {chunk_size!r}; it must be {possible}")
    return chunk_size


def _num_images(variant: str, use_proprio: bool, wishes: Wishes) -> int | None:
    """Cameras per query: as asked, or of the published recipes (one alone, or two with the robot state)."""
    if wishes.num_images is not None:
        possible = "exactly one image" if variant == "base" else "one image or more"
        whole = isinstance(wishes.num_images, int)
        if not whole or wishes.num_images < 1 or (variant == "base" and wishes.num_images != 1):
            raise ValueError(f"num_images is {wishes.num_images!r}; the {variant} variant takes {possible}")
        return wishes.num_images
    if variant == "base":
        return 1
    return 2 if use_proprio else None
