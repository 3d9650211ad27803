"""How do published weights get into the network?

The network is built without memory, then each parameter is replaced by the memory-mapped tensor of its name. Weights
kept in the type they are stored in are never copied: pages are read from disk when they are first used. Names are
compared strictly, nothing may be missing or left over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mist_interp.core.errors import UnknownName, listing, suggest
from mist_interp.models.config import OpenVLAConfig
from mist_interp.models.film_checkpoint import adapter_alpha, fold_adapters
from mist_interp.models.folder import (
    COMPONENTS,
    find_component,
    read_component,
    read_json,
    read_weights,
    resolve,
    revision_of,
)
from mist_interp.models.normalization import Bounds, resolve_unnorm_key
from mist_interp.models.policy import OpenVLAPolicy
from mist_interp.models.processor import Processor
from mist_interp.models.variants import Wishes, infer

SELF_CHECK_BELOW = 1_000_000_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("sdpa", "eager", "flash_attention_2")


def load_policy(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    attn_implementation: str = "sdpa",
    unnorm_key: str | None = None,
    num_images: int | None = None,
    use_proprio: bool | None = None,
    variant: str | None = None,
    chunk_size: int | None = None,
    revision: str | None = None,
) -> OpenVLAPolicy:
    """Load OpenVLA or OpenVLA-OFT from its published folder layout.

    Args:
        path_or_id: "mini", "mini-base", a folder, or a repository on the Hugging Face Hub, see `resolve`.
        dtype: of all weights; None takes float32 below a billion parameters and bfloat16, as stored, above.
        device: where the weights go.
        attn_implementation: "sdpa", "eager" (attention patterns can be read) or "flash_attention_2".
        unnorm_key: dataset whose statistics map actions to robot units; a suite's name is enough. May be left out if
            the checkpoint has a single one.
        num_images: cameras per query; None takes the published recipe's (1 for base OpenVLA, 2 with robot state) or,
            where there is none, as many as the inputs bring.
        use_proprio: whether the robot state is used; None uses it if the folder has its projector.
        variant: overrules what is inferred for folders without an action head: "discrete" or "base".
        chunk_size: actions per query; None takes the published recipe's (8 for LIBERO, 5 for BRIDGE, 25 for ALOHA), as
            no file of a checkpoint states it.
        revision: branch, tag or commit of a repository on the Hub; None takes its main branch.

    Returns:
        The policy in evaluation mode, with `.processor`, `.model_id`, `.revision` (of a repository on the Hub),
        `.variant`, `.variant_evidence`. Models below a
        billion parameters have passed `policy.check()`.

    Raises:
        FileNotFoundError: if a file is missing.
        UnknownName: for an unknown policy, data set, variant or type.
        ValueError: for damaged files, weights that do not fit, or an unknown head.
    """
    kept_dtype, target = _dtype(dtype), _device(device)
    if attn_implementation not in ATTENTION:
        raise UnknownName("attention implementation", attn_implementation, ATTENTION)
    folder = resolve(path_or_id, revision)
    settings = read_json(folder / "config.json")
    if settings.get("model_type", "openvla") != "openvla":
        raise ValueError(f"{folder / 'config.json'} describes a {settings['model_type']!r} model, not an 'openvla' one")
    components = read_components(folder)
    statistics = read_statistics(folder, settings)
    wishes = Wishes(variant, num_images, use_proprio, chunk_size)
    fields, evidence = infer(folder, settings, statistics, components, wishes)
    config = OpenVLAConfig(**{**settings, **fields, "norm_stats": statistics})
    config._attn_implementation = attn_implementation
    check_statistics(statistics, resolve_unnorm_key(statistics, unnorm_key), config)

    policy = build_without_memory(config)
    is_small = policy.num_parameters() < SELF_CHECK_BELOW
    kept_dtype = kept_dtype or (torch.float32 if is_small else torch.bfloat16)
    weights = gather_weights(folder, components, config)
    assign_weights(policy, weights, target, kept_dtype, folder)
    policy.unnorm_key = unnorm_key
    policy.model_id, policy.revision = str(path_or_id), revision_of(folder)
    policy.variant_evidence = evidence
    policy.processor = Processor.read(folder, config)
    policy.eval()
    if is_small:
        policy.check()
    return policy


def read_components(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Weights of the parts that were trained beside the main model, by part; see `COMPONENTS`."""
    files = {name: find_component(folder, name) for name in COMPONENTS}
    return {name: read_component(file) for name, file in files.items() if file is not None}


def read_statistics(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics by dataset: `dataset_statistics.json`, or else those of `config.json`.

    Raises:
        ValueError: if there are none, or an entry has no action statistics.
    """
    file = folder / "dataset_statistics.json"
    statistics = read_json(file) if file.exists() else settings.get("norm_stats")
    if not statistics:
        raise ValueError(f"{folder} has no action statistics, neither in {file.name} nor in config.json (norm_stats)")
    for key, entry in statistics.items():
        if "action" not in entry:
            raise ValueError(f"the statistics of {key!r} in {folder} lack 'action'; they hold {listing(entry)}")
    return dict(statistics)


def check_statistics(statistics: Mapping[str, Any], key: str, config: OpenVLAConfig) -> None:
    """Compare the statistics of the data set that is used with what the network takes and gives.

    Raises:
        ValueError: if a part or a bound is missing, or counts other numbers than the network.
    """
    parts = {"action": config.action_dim} | ({"proprio": config.proprio_dim} if config.use_proprio else {})
    for part, size in parts.items():
        if part not in statistics[key]:
            raise ValueError(f"the statistics of {key!r} lack {part!r}; they hold {listing(statistics[key])}")
        try:
            bounds = Bounds.read(statistics[key][part], config.bounds)
        except (TypeError, ValueError) as problem:
            raise ValueError(f"the {part} statistics of {key!r} cannot be used: {problem}") from problem
        if len(bounds.low) != size:
            given = f"{len(bounds.low)} numbers"
            raise ValueError(f"the {part} statistics of {key!r} are of {given}; the network has {size}")


def build_without_memory(config: OpenVLAConfig) -> OpenVLAPolicy:
    """The network with every parameter on the meta device."""
    with torch.device("meta"):
        return OpenVLAPolicy(config)


def gather_weights(
    folder: Path, components: Mapping[str, Mapping[str, Tensor]], config: OpenVLAConfig
) -> dict[str, Tensor]:
    """All weights of a folder under the network's names, still as stored."""
    weights = {renamed(name): value for name, value in read_weights(folder) if not name.endswith("inv_freq")}
    if config.film:
        # The main files of a FiLM run hold the backbone without its adapters.
        weights = {name: value for name, value in weights.items() if not name.startswith("vision_backbone.")}
    for part, content in components.items():
        if part == "vision_backbone":
            content = fold_adapters(content, adapter_alpha(folder))
        if part == "proprio_projector" and not config.use_proprio:
            continue
        weights |= {f"{part}.{name}": value for name, value in content.items()}
    return weights


def renamed(name: str) -> str:
    """The network's name for a stored weight: timm writes `gamma` where OpenVLA writes `scale_factor`."""
    for branch in ("ls1", "ls2"):
        name = name.replace(f".{branch}.gamma", f".{branch}.scale_factor")
    return name


def assign_weights(
    policy: OpenVLAPolicy, weights: dict[str, Tensor], device: torch.device, dtype: torch.dtype, folder: Path
) -> None:
    """Put weights into a network without memory.

    Raises:
        ValueError: if a weight is missing, left over, or of another shape.
    """
    compare_names({name: tuple(value.shape) for name, value in policy.state_dict().items()}, weights, folder)
    for name in list(weights):
        weights[name] = weights[name].to(device=device, dtype=dtype)
    policy.load_state_dict(weights, strict=True, assign=True)
    # The rotary frequencies are computed, not stored.
    policy.language_model.model.rotary_emb = LlamaRotaryEmbedding(policy.config.llm).to(device)
    policy.config.dtype = dtype
    left = [name for name, value in (*policy.named_parameters(), *policy.named_buffers()) if value.is_meta]
    if left:
        raise ValueError(f"no value was loaded for {listing(left)}")


def compare_names(expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], folder: Path) -> None:
    """Compare names and shapes of the network with those of the folder.

    Raises:
        ValueError: naming what is missing, left over, or of another shape.
    """
    problems = []
    if missing := [name for name in expected if name not in weights]:
        hint = suggest(missing[0], [name for name in weights if name not in expected])
        problems.append(f"{len(missing)} weights are missing: {listing(missing)}" + (f" ({hint})" if hint else ""))
    if unexpected := [name for name in weights if name not in expected]:
        problems.append(f"{len(unexpected)} weights have no place: {listing(unexpected)}")
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if wrong:
        problems.append(f"{len(wrong)} weights have another shape: {listing(wrong)}")
    if problems:
        facts = "; ".join(problems)
        raise ValueError(f"the weights in {folder} do not fit the network that config.json describes: {facts}")


def _device(device: torch.device | str) -> torch.device:
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError) as problem:
        possible = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        text = f"device {device!r} cannot be used here ({reason}); possible: {listing(possible)}"
        raise ValueError(text) from problem


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise UnknownName("dtype", dtype, DTYPES)
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype.removeprefix("torch.") not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    return DTYPES[dtype.removeprefix("torch.")]
