"""What is left of one forward pass once it is over?

An `ActivationCache`: detached copies of the named activations, taken after (or before) the edits, with the meaning of
their tokens. It knows the names and the layout and never the network, so keeping a cache keeps no weights alive; its
size is the sum of its tensors. Everything that changes it returns a new cache.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mist_interp.core.axes import PatchAxis, TokenAxis, axis_of
from mist_interp.core.errors import UnknownName
from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Catalogue, Site, SiteKey
from mist_interp.core.selectors import Selector, as_range
from mist_interp.tracing import decomposition
from mist_interp.tracing.activation import NamedActivation, locate, take, token_dim
from mist_interp.tracing.decomposition import Mode, ResidualStack

FORMAT = "mist_interp.ActivationCache/1"
_FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, eq=False)
class Entry:
    """Values of one site and the meaning of their tokens."""

    values: torch.Tensor
    axis: TokenAxis


@dataclass(frozen=True, eq=False)
class ActivationCache:
    """Activations of one forward pass, by name.

    `cache["resid_post", -1]`, `cache["hook_embed"]` and `cache["blocks.0.mlp.hook_post"]` give a `NamedActivation`;
    `cache[0:4]` gives the same cache for some samples of the batch.

    Attributes:
        entries: what was captured, in the order of the network.
        layout: the meaning of the multimodal sequence.
        catalogue: the names that the policy has, so that layers can count from the end.
        tokens: the selector that was kept at capture, or None for all tokens.
        step: which run of the language model within the query was captured (0 where there is only one).
        model_id: where the weights came from.
    """

    entries: dict[Site, Entry]
    layout: TokenLayout
    catalogue: Catalogue
    tokens: Selector | None = None
    step: int = 0
    model_id: str = ""

    def __getitem__(self, key: SiteKey | int | slice) -> Any:
        """The named activation of one site, or the cache of some samples.

        Raises:
            UnknownName: no such name, or it was not captured.
            ValueError: the key names several captured sites.
        """
        if isinstance(key, int | Integral | slice):
            return self._samples(key if isinstance(key, slice) else int(key))
        site = self._captured(key)
        return NamedActivation.wrap(self.entries[site].values, site, self.entries[site].axis, self.tokens)

    def __contains__(self, key: object) -> bool:
        try:
            return self.catalogue.one(key) in self.entries  # type: ignore[arg-type]  # a wrong key is a plain no
        except (ValueError, KeyError):
            return False

    def __iter__(self) -> Iterator[Site]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def keys(self) -> list[Site]:
        """Captured sites, in the order of the network."""
        return list(self.entries)

    def items(self) -> list[tuple[Site, NamedActivation]]:
        """Captured sites and their activations."""
        return [(site, self[site]) for site in self.entries]

    @property
    def batch_size(self) -> int:
        """Samples."""
        return self.layout.batch_size

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        return sum(entry.values.nbytes for entry in self.entries.values())

    def stack(self, short: str) -> torch.Tensor:
        """All captured layers of one name: (layer, batch, token, ...), in the order of the layers."""
        sites = [site for site in self.catalogue.expand(short) if site in self.entries]
        if not sites:
            raise UnknownName("captured site", short, map(str, self.entries))
        return torch.stack([self.entries[site].values for site in sites])

    # -- terms of the residual stream, see `mist_interp.tracing.decomposition` --------------------------------------

    def accumulated_resid(
        self, layer: int | None = None, incl_mid: bool = False, tokens: Selector | None = None
    ) -> ResidualStack:
        """The stream at every depth: (row, batch, token, d_model) and labels "0_pre", ..., "final_post"."""
        return decomposition.accumulated_resid(self, layer, incl_mid, tokens)

    def decompose_resid(
        self, layer: int | None = None, mode: Mode = "all", tokens: Selector | None = None, rest: bool = False
    ) -> ResidualStack:
        """Embeddings, and what every attention and MLP added: rows "embed", "0_attn_out", "0_mlp_out", ..."""
        return decomposition.decompose_resid(self, layer, mode, tokens, rest)

    def stack_head_results(
        self, layer: int | None = None, tokens: Selector | None = None, rest: bool = False
    ) -> ResidualStack:
        """What every head added: rows "L0H0", ...; needs "result" among the captured names."""
        return decomposition.stack_head_results(self, layer, tokens, rest)

    def stack_neuron_results(
        self, vla: Any, layer: int, neurons: Sequence[int] | None = None, tokens: Selector | None = None
    ) -> ResidualStack:
        """What neurons of one MLP added: rows "L3N17", ...; needs "mlp.post", and the policy for its weights."""
        return decomposition.stack_neuron_results(self, vla, layer, neurons, tokens)

    def get_full_resid_decomposition(self, layer: int | None = None, tokens: Selector | None = None) -> ResidualStack:
        """Heads, MLPs, embeddings and a rest; the rows sum to the stream entering `layer` (None: leaving the last)."""
        return decomposition.full_resid_decomposition(self, layer, tokens)

    # -- new caches -------------------------------------------------------------------------------------------------

    def to(
        self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | str | None = None
    ) -> ActivationCache:
        """The same values on another device or in another floating-point type."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        kind = floating_type(dtype)
        return self._map(lambda site, entry: replace(entry, values=entry.values.to(device=device, dtype=kind)))

    def select(self, tokens: Selector) -> ActivationCache:
        """Only some tokens of every activation.

        Raises:
            UnknownName: a captured site's axis has no such tokens.
            ValueError: they were not captured.
        """

        def pick(site: Site, entry: Entry) -> Entry:
            wanted = entry.axis.select(tokens)
            if self.tokens is not None:
                found = locate(wanted, entry.axis.select(self.tokens), entry.axis.length)
                if found is None:
                    raise ValueError(f"{tokens!r} was not captured: this cache holds only the tokens {self.tokens!r}")
                wanted = found
            return replace(entry, values=take(entry.values, wanted, token_dim(site)))

        return replace(self._map(pick), tokens=tokens)

    def _samples(self, samples: int | slice) -> ActivationCache:
        span = as_range(samples, self.batch_size, "sample")
        rows = slice(span.start, span.stop if span.stop >= 0 else None, span.step)

        layout = self.layout[rows]

        def cut(site: Site, entry: Entry) -> Entry:
            axis = entry.axis[rows]
            # Padding that only the samples left out needed goes with them.
            length = axis.length if self.tokens is None else axis.select(self.tokens).index.shape[1]
            chosen = entry.values[rows] if span.step > 0 else entry.values[list(span)]  # torch cannot slice backwards
            values = chosen.narrow(token_dim(site), 0, length)
            if site.hook.axis == "pattern":
                # Keys are those of the whole sequence, whichever queries were kept. Tokens that base OpenVLA generated
                # come after the padding.
                values = torch.cat([values[..., : layout.length], values[..., self.layout.length :]], -1)
            return Entry(values, axis)

        return replace(self._map(cut), layout=layout)

    def _map(self, change: Any) -> ActivationCache:
        return replace(self, entries={site: change(site, entry) for site, entry in self.entries.items()})

    def _captured(self, key: SiteKey) -> Site:
        sites = self.catalogue.expand(key)
        found = [site for site in sites if site in self.entries]
        if not found:
            raise UnknownName("captured site", key, map(str, self.entries))
        if len(found) > 1:
            raise ValueError(f"{key!r} names {len(found)} captured sites; name one, {found[0].key!r}, or cache.stack()")
        return found[0]

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; it replaces an older one only when it is complete."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = {str(s): e.axis.prefix for s, e in self.entries.items() if isinstance(e.axis, PatchAxis)}
        facts = {
            "format": FORMAT,
            "layout": self.layout.to_dict(),
            "depths": dict(self.catalogue.depths),
            "absent": dict(self.catalogue.absent),
            "tokens": self.tokens,
            "step": self.step,
            "model_id": self.model_id,
            "prefix": prefix,
        }
        tensors = {str(site): entry.values.contiguous() for site, entry in self.entries.items()}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            save_file(tensors, temporary, metadata={"mist_interp": json.dumps(facts)})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu") -> ActivationCache:
        """Read a file written by `save`.

        Raises:
            ValueError: the file is not a saved cache.
        """
        with safe_open(path, framework="pt", device=str(device)) as file:
            facts = json.loads((file.metadata() or {}).get("mist_interp", "{}"))
            if facts.get("format") != FORMAT:
                raise ValueError(f"{path} is no saved activation cache (expected {FORMAT})")
            tensors = {Site(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        layout = TokenLayout.from_dict(facts["layout"])
        tokens = facts["tokens"] if isinstance(facts["tokens"], str | None) else tuple(facts["tokens"])
        entries = {}
        for site in sorted(tensors, key=lambda site: site.order):
            kind, prefix = site.hook.axis, facts["prefix"].get(str(site))
            if prefix is None:
                axis = axis_of(kind, layout, step=facts["step"])
            else:
                axis = PatchAxis(layout.batch_size, layout.cameras, layout.grid, prefix)
            entries[site] = Entry(tensors[site], axis)
        catalogue = Catalogue(facts["depths"], facts["absent"])
        return ActivationCache(entries, layout, catalogue, tokens, facts["step"], facts["model_id"])


def floating_type(given: torch.dtype | str | None) -> torch.dtype | None:
    """The type that a word names.

    Raises:
        UnknownName: another word.
    """
    if not isinstance(given, str):
        return given
    name = given.removeprefix("torch.")
    if name not in _FLOATS:
        raise UnknownName("floating-point type", given, _FLOATS)
    return getattr(torch, name)
