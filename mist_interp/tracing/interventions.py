"""What is an edit that can be written down: compared, saved, and repeated by someone else?

An `Intervention` is a record, not a function: what is done (`kind`), where (`sites`, `tokens`, `heads`, `neurons`,
`step`), with which numbers (`options`) and which tensors. The verbs of `mist_interp.tracing.verbs` make such records,
`mist_interp.tracing.operations` says what each kind does to values, and `vla.hooks(...)` takes them beside functions.

    edits = [add(("resid_post", 3), vector, tokens="action_read", coef=2.0), ablate(("z", 5), head=1)]
    save_edits("edits.safetensors", edits)
    assert load_edits("edits.safetensors") == edits

The JSON form names every tensor by a hash of its content, so it is complete enough to tell two edits apart without
their tensors, and a tensor that was exchanged is noticed.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from mist_interp.core.errors import UnknownName
from mist_interp.core.files import write_atomic
from mist_interp.core.names import Layers, Site, SiteKey, is_pair
from mist_interp.core.selectors import Selector, parts

FORMAT = "mist_interp.edits/1"


@dataclass(frozen=True, eq=False)
class Intervention:
    """One change of activations, as data. Equal when kind, place, numbers and tensors are equal, bit for bit.

    Attributes:
        kind: what is done; a key of `mist_interp.tracing.operations.KINDS`.
        sites: where, as keys that a policy resolves: a name, a short form with layers, a pattern.
        tokens: which tokens; None for all of them.
        heads: which heads of a site that has heads; None for all.
        neurons: which entries of the last axis of an MLP site; None for all.
        step: at which run of the language model within one query (base OpenVLA: the action token that is generated;
            diffusion: the denoising step), counted from either end, or by the name of that action number; None for
            every run.
        options: numbers and words, JSON only; `as` is the verb that made it, where that is not the kind.
        tensors: whatever the kind needs; copies, so that later changes of the caller's tensors change nothing here.
    """

    kind: str
    sites: tuple[SiteKey, ...]
    tokens: Selector | None = None
    heads: tuple[int, ...] | None = None
    neurons: tuple[int, ...] | None = None
    step: int | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tokens is not None and not isinstance(self.tokens, str):
            object.__setattr__(self, "tokens", parts(self.tokens))
        for name in ("tokens", "heads", "neurons"):
            if getattr(self, name) == ():
                raise ValueError(f"{self.kind}: {name}=[] selects nothing; leave it out to change all {name}")
        if self.step is not None and not isinstance(self.step, str):
            if isinstance(self.step, bool) or not hasattr(self.step, "__index__"):
                raise TypeError(f"{self.kind}: step={self.step!r}; give the number of a run, or the name of an action")
            object.__setattr__(self, "step", int(self.step))
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{self.kind}: {name} holds values that are not finite")
        json.dumps(dict(self.options), allow_nan=False)  # refuses here what a result file could not hold

    # -- as data ----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; of a tensor, its shape, type and hash. Inverse: `from_dict`."""
        return {
            "kind": self.kind,
            "sites": [_key_to_json(key) for key in self.sites],
            "tokens": list(self.tokens) if isinstance(self.tokens, tuple) else self.tokens,
            "heads": None if self.heads is None else list(self.heads),
            "neurons": None if self.neurons is None else list(self.neurons),
            "step": self.step,
            "options": dict(self.options),
            "tensors": {name: dict(facts) for name, facts in self._described.items()},
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Intervention:
        """Inverse of `to_dict`, also after a round trip through JSON.

        Args:
            values: what `to_dict` gave.
            tensors: the tensors by their hash, as `Intervention.blobs` gives them.

        Raises:
            UnknownName: a field that an intervention does not have, or a tensor that is not among `tensors`.
            ValueError: a tensor has another content than the one that was described.
        """
        names = [f.name for f in fields(Intervention)]
        for name in values:
            if name not in names:
                raise UnknownName("field of an intervention", name, names)
        given, here = dict(values), tensors or {}
        given["sites"] = tuple(_key_from_json(key) for key in given["sites"])
        for name in ("heads", "neurons"):
            given[name] = None if given.get(name) is None else tuple(given[name])
        found = {}
        for name, facts in given.get("tensors", {}).items():
            if facts["sha256"] not in here:
                raise UnknownName(f"tensor for {name!r} of {given['kind']}", facts["sha256"], here)
            found[name] = here[facts["sha256"]]
            if _described(found[name]) != dict(facts):
                raise ValueError(
                    f"{name!r} of {given['kind']} is not the tensor that was saved: {_described(found[name])}"
                )
        given["tensors"] = found
        return Intervention(**given)

    @property
    def blobs(self) -> dict[str, Tensor]:
        """The tensors by the hash of their content, for `from_dict`."""
        return {facts["sha256"]: self.tensors[name] for name, facts in self._described.items()}

    @cached_property
    def _described(self) -> dict[str, dict[str, Any]]:
        return {name: _described(tensor) for name, tensor in sorted(self.tensors.items())}

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of everything: equal interventions have equal fingerprints."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervention) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __str__(self) -> str:
        words = dict(self.options)
        name = words.pop("as", self.kind)
        parts = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in words.items()]
        parts += [f"{key}={list(value)}" for key, value in (("head", self.heads), ("neuron", self.neurons)) if value]
        parts += [] if self.step is None else [f"step={self.step}"]
        return f"{name}({', '.join(parts)})"

    def __repr__(self) -> str:
        where = "" if self.tokens is None else f", tokens={self.tokens!r}"
        sites = ", ".join(str(key) for key in self.sites)
        return f"Intervention({self}, sites=[{sites}]{where})"


def save_edits(path: str | Path, edits: Iterable[Intervention]) -> None:
    """Write interventions to one safetensors file, in their order; it replaces an older one only when complete.

    Raises:
        TypeError: one of them is a function, which has no written form.
    """
    edits = list(edits)
    for edit in edits:
        if not isinstance(edit, Intervention):
            raise TypeError(f"{edit!r} cannot be saved: only edits that are data can, made by add, scale, ablate, ...")
    blobs = {sha: tensor.contiguous() for edit in edits for sha, tensor in edit.blobs.items()}
    facts = {"format": FORMAT, "edits": [edit.to_dict() for edit in edits]}
    write_atomic(path, tensors_to_bytes(blobs, metadata={"mist_interp": json.dumps(facts, allow_nan=False)}))


def load_edits(path: str | Path, device: torch.device | str = "cpu") -> list[Intervention]:
    """Read a file written by `save_edits`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no edits, or not those that were written.
    """
    with safe_open(path, framework="pt", device=str(device)) as file:
        facts = json.loads((file.metadata() or {}).get("mist_interp", "{}"))
        if facts.get("format") != FORMAT:
            raise ValueError(f"{path} holds no saved edits (expected {FORMAT})")
        blobs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    return [Intervention.from_dict(values, blobs) for values in facts["edits"]]


def site_keys(site: SiteKey | Iterable[SiteKey]) -> tuple[SiteKey, ...]:
    """One key or several, as a tuple of keys whose layers are plain numbers."""
    if callable(site):
        raise TypeError("an edit that is data has names for its sites, not a function: give vla.sites(function)")
    keys = [site] if isinstance(site, str | Site) or is_pair(site) else list(site)
    if not keys:
        raise ValueError("no site was named; an empty list would edit nothing")
    return tuple(_plain_key(key) for key in keys)


def _plain_key(key: Any) -> SiteKey:
    if isinstance(key, str | Site):
        return str(key)
    if not is_pair(key):
        raise UnknownName("site", key, ["'blocks.3.hook_resid_post'", "('resid_post', 3)", "'resid_post'"])
    name, layers = key
    return name, plain_layers(layers)


def plain_layers(layers: Layers) -> Layers:
    """The same as numbers of Python, so that they can be written down."""
    if isinstance(layers, slice | bool):  # the latter is no layer, and refused where its name is looked up
        return layers
    return operator.index(layers) if isinstance(layers, int | Integral) else tuple(map(int, layers))


def _key_to_json(key: SiteKey) -> Any:
    if isinstance(key, tuple):
        layers: Any = key[1]
        if isinstance(layers, slice):
            return [key[0], {"slice": [layers.start, layers.stop, layers.step]}]
        return [key[0], layers if isinstance(layers, int) else list(layers)]
    return str(key)


def _key_from_json(key: Any) -> SiteKey:
    if isinstance(key, str):
        return key
    name, layers = key
    if isinstance(layers, Mapping):
        return name, slice(*layers["slice"])
    return name, layers if isinstance(layers, int) else tuple(layers)


def _described(tensor: Tensor) -> dict[str, Any]:
    values = tensor.detach().cpu().contiguous()
    kind, shape = str(values.dtype).removeprefix("torch."), list(values.shape)
    digest = hashlib.sha256(f"{kind}{shape}".encode() + values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"shape": shape, "dtype": kind, "sha256": digest.hexdigest()[:32]}


def indices(what: str, chosen: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """`head=` or `neuron=` as the user may write it, as a tuple.

    Raises:
        TypeError: not whole numbers.
        ValueError: a number twice, or none at all.
    """
    if chosen is None:
        return None
    listed = list(chosen) if isinstance(chosen, Iterable) else [chosen]
    if any(isinstance(i, bool) or not hasattr(i, "__index__") for i in listed):
        raise TypeError(f"{what}={chosen!r}: give a whole number or a list of them")
    numbers = tuple(int(i) for i in listed)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{what}={list(numbers)} names one of them twice")
    if not numbers:
        raise ValueError(f"{what}=[] selects nothing; leave it out to change all of them")
    return numbers
