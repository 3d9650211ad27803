"""How does one read "the patch at row 8, column 11" or "the tokens of bowl" off an activation?

A captured activation is a tensor (batch first, tokens second) that also knows what its tokens are. It is a plain tensor
to torch, numpy and einops, and every operation on it gives a plain tensor; the names are for picking tokens:

    r = cache["resid_post", 3]             (batch, token, d_model)
    r.values                               the same memory as an ordinary tensor
    r.agentview[8, 11]                     (batch, d_model); ranges give (batch, rows, cols, d_model)
    r.text["bowl"]                         (batch, tokens of the word, d_model)
    r.action["dz"], r.action["t3.dz"]      (batch, chunk, d_model), (batch, d_model): the positions that the head reads
    r.proprio, r.bos, r.stop               (batch, d_model)
    r.at("text:bowl")                      any selector (`mist_interp.core.selectors`): (batch, selected, d_model)

It is a subclass of `torch.Tensor`, and not a wrapper around one, because libraries ask `isinstance(x, torch.Tensor)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mist_interp.core.axes import PatchAxis, ReadAxis, StepAxis, TokenAxis
from mist_interp.core.errors import UnknownName
from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Site
from mist_interp.core.selectors import Selection, Selector, parse_action


class NamedActivation(torch.Tensor):
    """Values of one site with named tokens; see the module's text. Made by `ActivationCache`.

    Attributes:
        site: where the values were read.
        axis: what the token axis means.
        tokens: the selector that was kept at capture, or None for all tokens.
    """

    site: Site
    axis: TokenAxis
    tokens: Selector | None

    # Names describe this very tensor; what is computed from it may have other tokens, so results are plain.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def wrap(values: torch.Tensor, site: Site, axis: TokenAxis, tokens: Selector | None = None) -> NamedActivation:
        """Attach names to `values` without copying."""
        named = torch.Tensor._make_subclass(NamedActivation, values)
        named.site, named.axis, named.tokens = site, axis, tokens
        return named

    @property
    def values(self) -> torch.Tensor:  # type: ignore[override]  # the sparse-tensor method of that name has no use here
        """The same memory as an ordinary tensor."""
        return self.as_subclass(torch.Tensor)

    def at(self, selector: Selector) -> torch.Tensor:
        """Selected tokens: (batch, selected, ...); queries, for attention weights: (batch, head, selected, key).

        Raises:
            UnknownName: the axis has no such token.
            ValueError: it was not captured, or samples of the batch have different numbers of it.
        """
        selection = self.axis.select(selector)
        if selection.ragged:
            counts = selection.valid.sum(1).tolist()
            raise ValueError(f"the samples have {counts} tokens of {selector!r}: take one sample, cache[0][...]")
        found = selection if self.tokens is None else locate(selection, self.axis.select(self.tokens), self.axis.length)
        if found is None:
            raise ValueError(f"{selector!r} was not captured: this activation holds only the tokens {self.tokens!r}")
        return take(self.values, found, self.token_dim)

    def labels(self, sample: int = 0) -> list[str]:
        """One readable label per token of one sample."""
        return self.axis.labels("all" if self.tokens is None else self.tokens, sample)

    def between(self, queries: Selector, keys: Selector) -> torch.Tensor:
        """Attention weights from some tokens to others: (batch, head, query, key).

        Raises:
            ValueError: this activation is no attention pattern, or the numbers of tokens differ between samples.
        """
        if self.site.hook.axis != "pattern":
            raise ValueError(f"{self.site} has no pairs of tokens; only attention patterns have")
        columns = self.axis.select(keys)
        if columns.ragged:
            raise ValueError(f"the samples have different numbers of {keys!r} tokens: take one sample, cache[0][...]")
        return take(self.at(queries).transpose(2, 3), columns, 2).transpose(2, 3)

    @property
    def token_dim(self) -> int:
        """Which axis counts tokens (queries, for attention weights)."""
        return token_dim(self.site)

    # -- segments ---------------------------------------------------------------------------------------------------

    @property
    def vision(self) -> torch.Tensor:
        """(batch, camera, row, col, ...)."""
        grid, cameras = self._grid_sizes()
        return _unflatten(self.at("vision"), self.token_dim, (len(cameras), *grid))

    @property
    def agentview(self) -> Grid:
        """Patches of the third-person camera; index with [row, col]."""
        return self.camera("agentview")

    @property
    def wrist(self) -> Grid:
        """Patches of the wrist camera; index with [row, col]."""
        return self.camera("wrist")

    def camera(self, name: str) -> Grid:
        """Patches of one camera; index with [row, col]."""
        return Grid(self, name)

    @property
    def text(self) -> Words:
        """Prompt tokens after BOS; index with words."""
        return Words(self)

    @property
    def action(self) -> Actions:
        """The positions that the action head reads; index with "dz", "t3" or "t3.dz"."""
        return Actions(self, "action_read")

    @property
    def action_slot(self) -> Actions:
        """The action placeholders themselves; index as `action`."""
        return Actions(self, "action_slot")

    @property
    def proprio(self) -> torch.Tensor:
        """The proprioception token: (batch, ...)."""
        return self._single("proprio")

    @property
    def bos(self) -> torch.Tensor:
        """The first token: (batch, ...)."""
        return self._single("bos")

    @property
    def stop(self) -> torch.Tensor:
        """The stop token: (batch, ...)."""
        return self._single("stop")

    def _single(self, segment: str) -> torch.Tensor:
        return self.at(segment).squeeze(self.token_dim)

    def _grid_sizes(self) -> tuple[tuple[int, int], tuple[str, ...]]:
        if isinstance(self.axis, TokenLayout | PatchAxis):
            return self.axis.grid, self.axis.cameras
        raise UnknownName("token segment", "vision", self.axis.segments)

    def __deepcopy__(self, memo: dict[int, Any]) -> NamedActivation:
        return NamedActivation.wrap(self.values.clone(), self.site, self.axis, self.tokens)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return NamedActivation.wrap, (self.values, self.site, self.axis, self.tokens)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # untyped in torch
        kept = "" if self.tokens is None else f", tokens={self.tokens!r}"
        return f"NamedActivation({self.site}, shape={tuple(self.shape)}, {self.dtype}{kept})"


@dataclass(frozen=True)
class Grid:
    """Patches of one camera; `grid[row, col]` with numbers or ranges."""

    activation: NamedActivation
    camera: str

    @property
    def values(self) -> torch.Tensor:
        """(batch, row, col, ...)."""
        grid, _ = self.activation._grid_sizes()
        return _unflatten(self.activation.at(self.camera), self.activation.token_dim, grid)

    def __getitem__(self, place: tuple[int | slice, int | slice]) -> torch.Tensor:
        if not (isinstance(place, tuple) and len(place) == 2):
            raise TypeError(f"{self.camera}[{place!r}]: a patch has a row and a column, as in {self.camera}[3, 5]")
        values = self.values
        before = (slice(None),) * self.activation.token_dim
        return values[(*before, *place)]


@dataclass(frozen=True)
class Words:
    """Prompt tokens; `words["bowl"]` gives (batch, tokens of the word, ...)."""

    activation: NamedActivation

    @property
    def values(self) -> torch.Tensor:
        """All prompt tokens after BOS."""
        return self.activation.at("text")

    def __getitem__(self, words: str) -> torch.Tensor:
        return self.activation.at(f"text:{words}")


@dataclass(frozen=True)
class Actions:
    """Action positions; `actions["dz"]`, `actions["t3"]`, `actions["t3.dz"]`."""

    activation: NamedActivation
    segment: str

    @property
    def values(self) -> torch.Tensor:
        """(batch, chunk, dim, ...) on the sequence, (batch, chunk, ...) inside the action head."""
        axis = self.activation.axis
        if isinstance(axis, TokenLayout):
            places = axis.action_grid(self.segment)
            return _unflatten(self.activation.at(self.segment), self.activation.token_dim, tuple(places.shape[1:]))
        if isinstance(axis, ReadAxis):
            sizes = (axis.layout.chunk, axis.layout.action_dim)
            return _unflatten(self.activation.at(self.segment), self.activation.token_dim, sizes)
        return self.activation.at("all")

    def __getitem__(self, key: str) -> torch.Tensor:
        axis, dim = self.activation.axis, self.activation.token_dim
        step, name = parse_action(key)
        if isinstance(axis, StepAxis):
            if name is not None:
                raise UnknownName("chunk step", key, axis.names)
            return self.activation.at(key).squeeze(dim)
        found = self.activation.at(f"{self.segment}.{key}")
        return found.squeeze(dim) if step is not None and name is not None else found


def token_dim(site: Site) -> int:
    """Which axis of a site's values counts tokens."""
    return 2 if site.hook.axis == "pattern" else 1


def take(values: torch.Tensor, selection: Selection, dim: int) -> torch.Tensor:
    """Copy of the selected tokens; places that are not valid hold zeros."""
    if len(selection.index) == 1:  # one sample has no shorter neighbour, so all its places are valid
        return values.index_select(dim, selection.index[0].to(values.device))
    index, valid = selection.index.to(values.device), selection.valid.to(values.device)
    rows = torch.arange(len(index), device=values.device)[:, None]
    moved = values.movedim(dim, 1)
    picked = moved[rows, index]
    if selection.ragged:
        picked = picked * valid.reshape(*valid.shape, *[1] * (picked.ndim - 2))
    return picked.movedim(1, dim)


def locate(wanted: Selection, kept: Selection, length: int) -> Selection | None:
    """Columns of the wanted positions among the kept ones of an axis of `length` tokens; None if one is not there."""
    table = torch.full((len(kept.index), length), -1)
    rows = torch.arange(len(kept.index))[:, None].expand_as(kept.index)
    columns = torch.arange(kept.index.shape[1]).expand_as(kept.index)
    table[rows[kept.valid], kept.index[kept.valid]] = columns[kept.valid]
    found = table.gather(1, wanted.index)
    if bool((found[wanted.valid] < 0).any()):
        return None
    return Selection(found.clamp(min=0), wanted.valid)


def _unflatten(values: torch.Tensor, dim: int, sizes: tuple[int, ...]) -> torch.Tensor:
    return values.unflatten(dim, sizes)
