"""What is an edit, before it is applied?

A site, a function, and which tokens it gets. `hooks(...)` and `run_with_hooks(...)` accept

    (site, fn)              fn(tensor, site) -> tensor of the same shape, or None to leave it alone
    (site, fn, tokens)      the same, but fn gets and gives only the selected tokens: (batch, selected, ...)
    Edit(...)               the same as an object

where `site` may name several sites (`"resid_post"`: every layer). The function must not change its tensor in place,
because it is the network's own memory. A network that runs several times within one query (base OpenVLA: once per
action token; a diffusion head: once per denoising step) calls the function at every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from mist_interp.core.axes import axis_of
from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Catalogue, Site
from mist_interp.core.selectors import Selection, Selector
from mist_interp.tracing.activation import take, token_dim

HookFunction = Callable[[torch.Tensor, Site], "torch.Tensor | None"]

# While base OpenVLA reads one of its own action tokens, that token is all there is; only these selectors mean it.
_DECODED = ("all", "action_read")


@dataclass(frozen=True, eq=False)
class Edit:
    """One live or planned change of one site.

    Attributes:
        site: where.
        fn: what, see the module's text.
        tokens: which tokens `fn` gets; None for all, padding included.
    """

    site: Site
    fn: HookFunction
    tokens: Selector | None = None

    def __str__(self) -> str:
        where = "" if self.tokens is None else f" at {self.tokens!r}"
        return f"{getattr(self.fn, '__qualname__', type(self.fn).__name__)} on {self.site}{where}"

    def apply(self, values: torch.Tensor, run: int, layout: TokenLayout | None) -> torch.Tensor | None:
        """New values of the site, or None to leave it alone; `layout` is needed where `tokens` is given."""
        if self.tokens is None:
            return self._new(values)
        assert layout is not None
        dim = token_dim(self.site)
        axis = axis_of(self.site.hook.axis, layout, values.shape[dim], run)
        if axis is not layout and layout.autoregressive and run > 0:
            return self._new(values) if self.tokens in _DECODED else None
        selection = axis.select(self.tokens)
        new = self._new(take(values, selection, dim))
        return None if new is None else put(values, new, selection, dim)

    def _new(self, values: torch.Tensor) -> torch.Tensor | None:
        new = self.fn(values, self.site)
        if new is None or (isinstance(new, torch.Tensor) and new.shape == values.shape):
            return new
        got = f"a tensor of shape {tuple(new.shape)}" if isinstance(new, torch.Tensor) else type(new).__name__
        expected = f"a tensor of shape {tuple(values.shape)} or None"
        raise ValueError(f"the hook at {self.site} must return {expected}, not {got}")


def put(values: torch.Tensor, new: torch.Tensor, selection: Selection, dim: int) -> torch.Tensor:
    """Copy of `values` with the selected tokens replaced by `new`, which has one entry per selected token."""
    index, valid = selection.index.to(values.device), selection.valid.to(values.device)
    rows = torch.arange(len(index), device=values.device)[:, None].expand_as(index)
    changed = values.movedim(dim, 1).clone()
    changed[rows[valid], index[valid]] = new.movedim(dim, 1)[valid].to(changed)
    return changed.movedim(1, dim)


def edits_of(pairs: Iterable[Any], catalogue: Catalogue) -> list[Edit]:
    """Edits that the user's pairs mean, one per site.

    Raises:
        UnknownName: a site that does not exist.
        TypeError: something that is neither (site, fn) nor (site, fn, tokens) nor an `Edit`.
    """
    edits = []
    for pair in pairs:
        if isinstance(pair, Edit):
            edits.append(Edit(catalogue.one(pair.site), pair.fn, pair.tokens))
            continue
        if not (isinstance(pair, tuple) and len(pair) in (2, 3) and callable(pair[1])):
            raise TypeError(
                f"{pair!r} is no hook: give (site, fn) or (site, fn, tokens), fn(tensor, site) -> tensor or None"
            )
        key, fn, tokens = (*pair, None)[:3]
        edits += [Edit(site, fn, tokens) for site in catalogue.expand(key)]
    return edits
