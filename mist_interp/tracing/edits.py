"""What is an edit, before it is applied?

A site, what happens there, and which tokens it happens to. `hooks(...)` and `run_with_hooks(...)` accept

    (site, fn)              fn(tensor, site) -> tensor of the same shape, or None for "whatever I left in the tensor"
    (site, fn, tokens)      the same, but fn gets and gives only the selected tokens: (batch, selected, ...)
    add(...), ablate(...)   an edit that is data (`mist_interp.tracing.verbs`)
    Edit(...)               any of them as an object
    [...]                   a list of them

where `site` may name several sites (`"resid_post"`: every layer). The function gets a copy, so it may also change its
tensor in place, and return it or nothing; what it neither changes nor replaces stays as it is. A network
that runs several times within one query (base OpenVLA: once per action token; a diffusion head: once per denoising
step) applies an edit at every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from mist_interp.core.axes import axis_of
from mist_interp.core.errors import UnknownName
from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Catalogue, Site
from mist_interp.core.selectors import Selection, Selector
from mist_interp.tracing.activation import take, token_dim
from mist_interp.tracing.changes import Ledger
from mist_interp.tracing.interventions import Intervention
from mist_interp.tracing.operations import KINDS, Place, pieces
from mist_interp.tracing.runs import pick_run

HookFunction = Callable[[torch.Tensor, Site], "torch.Tensor | None"]

# While base OpenVLA reads one of its own action tokens, that token is all there is; only these selectors mean it.
_DECODED = ("all", "action_read")


@dataclass(frozen=True, eq=False)
class Edit:
    """One live or planned change of one site.

    Attributes:
        site: where.
        fn: what: a function, see the module's text, or an intervention.
        tokens: which tokens it gets; None for all, padding included (at which no other token looks).
    """

    site: Site
    fn: HookFunction | Intervention
    tokens: Selector | None = None

    def __str__(self) -> str:
        where = "" if self.tokens is None else f" at {self.tokens!r}"
        data = isinstance(self.fn, Intervention)
        what = str(self.fn) if data else getattr(self.fn, "__qualname__", type(self.fn).__name__)
        return f"{what} on {self.site}{where}"

    @property
    def is_data(self) -> bool:
        """Whether `fn` is an intervention, which can be written into a file, and no function."""
        return isinstance(self.fn, Intervention)

    @property
    def needs_layout(self) -> bool:
        """Whether `apply` has to know which token is which."""
        return self.tokens is not None or self.is_data

    def apply(
        self, values: torch.Tensor, run: int, layout: TokenLayout | None, ledger: Ledger | None = None
    ) -> torch.Tensor | None:
        """New values of the site, or None to leave it alone; what was changed is written into `ledger`.

        Raises:
            ValueError: a new value of the wrong shape, an intervention that does not fit, a selector without tokens.
            FloatingPointError: new values that are not finite (with a ledger).
        """
        fn, dim = self.fn, token_dim(self.site)
        if isinstance(fn, Intervention) and fn.step not in (None, run):
            return None
        selection, valid, count = None, None, None
        if layout is not None and self.needs_layout:
            axis = axis_of(self.site.hook.axis, layout, values.shape[dim], run)
            whole = axis.select("all")
            valid, count = whole.valid, whole.valid.sum(1)
            if axis is not layout and layout.autoregressive and run > 0:
                if not _decoded(self.tokens):
                    return None
            elif self.tokens is not None:
                selection = axis.select(self.tokens)
            elif isinstance(fn, Intervention) and f"values@{self.site}" in fn.tensors and whole.ragged:
                selection = whole  # what was captured of each sample has no padding
        if selection is not None and selection.index.shape[1] == 0:
            raise ValueError(f"{self} selects no token")
        piece = values if selection is None else take(values, selection, dim)
        if isinstance(fn, Intervention):
            assert layout is not None
            old, new, changed = _intervene(fn, piece, Place(self.site, layout, run, selection))
        else:
            answer = self._answer(fn, piece)
            if answer is None:
                return None
            old, new, changed = piece, answer, answer
        if ledger is not None:
            there = valid if selection is None else selection.valid
            ledger.note(self, old, new, there, count, chosen=selection is not None)
        return changed if selection is None else put(values, changed, selection, dim)

    def _answer(self, fn: HookFunction, values: torch.Tensor) -> torch.Tensor | None:
        # A copy: the tensor may be the network's own memory, and without the old values no change could be measured,
        # nor written to a site that the network never holds.
        mine = values.clone()
        new = fn(mine, self.site)
        if new is None:
            # Compared by content, because writes through `.data` or numpy raise no version counter.
            return None if torch.equal(mine, values) else mine
        if isinstance(new, torch.Tensor) and new.shape == values.shape:
            return new
        got = f"a tensor of shape {tuple(new.shape)}" if isinstance(new, torch.Tensor) else type(new).__name__
        expected = f"a tensor of shape {tuple(values.shape)} or None"
        raise ValueError(f"the hook at {self.site} must return {expected}, not {got}")


def _intervene(
    edit: Intervention, values: torch.Tensor, place: Place
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The part that an intervention changes, its new values, and `values` with them in their place."""
    cuts = []
    for dim, chosen in pieces(place.site, edit.heads, edit.neurons):
        numbers = _counted(chosen, values.shape[dim], f"{edit} on {place.site}")
        cuts.append((dim, torch.tensor(numbers, device=values.device)))
    parts = [values]
    for dim, index in cuts:
        parts.append(parts[-1].index_select(dim, index))
    new = KINDS[edit.kind](edit, parts[-1], place)
    changed = new
    for (dim, index), whole in reversed(list(zip(cuts, parts[:-1], strict=True))):
        changed = whole.index_copy(dim, index, changed)
    return parts[-1], new, changed


def _counted(chosen: tuple[int, ...], size: int, what: str) -> list[int]:
    """Places counted from the start, each once."""
    for number in chosen:
        if not -size <= number < size:
            raise IndexError(f"{what}: there is no {number}, only 0..{size - 1}")
    places = [number % size for number in chosen]
    if len(set(places)) < len(places):
        raise ValueError(f"{what}: {list(chosen)} names one of {size} twice")
    return places


def put(values: torch.Tensor, new: torch.Tensor, selection: Selection, dim: int) -> torch.Tensor:
    """Copy of `values` with the selected tokens replaced by `new`, which has one entry per selected token."""
    index, valid = selection.index.to(values.device), selection.valid.to(values.device)
    rows = torch.arange(len(index), device=values.device)[:, None].expand_as(index)
    changed = values.movedim(dim, 1).clone()
    changed[rows[valid], index[valid]] = new.movedim(dim, 1)[valid].to(changed)
    return changed.movedim(1, dim)


def edits_of(pairs: Iterable[Any], catalogue: Catalogue, policy: Any) -> list[Edit]:
    """Edits that the user's pairs mean, one per site.

    Args:
        pairs: what the user gave.
        catalogue: the sites of the policy.
        policy: whose sizes and runs tell what cannot fit.

    Raises:
        UnknownName: a site or a step that does not exist.
        TypeError: something that is neither (site, fn) nor (site, fn, tokens) nor an intervention nor an `Edit`.
        ValueError, IndexError: an intervention for another width, heads, neurons or a run that a site does not have, or
            for tokens that this run does not read.
    """
    edits: list[Edit] = []
    for pair in pairs:
        if isinstance(pair, list):
            edits += edits_of(pair, catalogue, policy)
            continue
        if isinstance(pair, Edit) and isinstance(pair.fn, Intervention):
            tokens = pair.fn.tokens if pair.tokens is None else pair.tokens
            pair = replace(pair.fn, sites=(str(pair.site),), tokens=tokens)
        if isinstance(pair, Intervention):
            edits += _placed(pair, catalogue, policy)
            continue
        if isinstance(pair, Edit):
            edits.append(Edit(catalogue.one(pair.site), pair.fn, pair.tokens))
            continue
        if not (isinstance(pair, tuple) and len(pair) in (2, 3) and callable(pair[1])):
            raise TypeError(
                f"{pair!r} is no hook: give (site, fn) or (site, fn, tokens), fn(tensor, site) -> tensor or None, "
                "or an edit made by add, scale, ablate, ..."
            )
        key, fn, tokens = (*pair, None)[:3]
        edits += [Edit(site, fn, tokens) for site in catalogue.expand(key)]
    return edits


def _placed(edit: Intervention, catalogue: Catalogue, policy: Any) -> list[Edit]:
    """An intervention at each of its sites, once it is known to fit there as far as can be said without values."""
    if edit.kind not in KINDS:
        raise UnknownName("kind of intervention", edit.kind, KINDS)
    sizes, run = _sizes(policy), None if edit.step is None else pick_run(policy, edit.step)
    if run and policy.variant == "base" and not _decoded(edit.tokens):
        raise ValueError(
            f"{edit} can never act on {edit.tokens!r}: after its first run base OpenVLA reads only the token that it "
            "generated last; leave tokens= out, or name 'all' or 'action_read'"
        )
    if run != edit.step:
        edit = replace(edit, step=run)
    edits = [Edit(site, edit, edit.tokens) for site in catalogue.expand(list(edit.sites))]
    for site in (placed.site for placed in edits):
        axes = site.hook.shape.strip("()").split(", ")
        known = sizes if site.hook.stack == "llm" or axes[-1] == "d_model" else {}
        for dim, chosen in pieces(site, edit.heads, edit.neurons):
            if axes[dim] in known:
                _counted(chosen, known[axes[dim]], f"{edit} on {site}")
        if edit.kind == "knockout" and site.hook.short != "attn_scores":
            raise ValueError(f"{edit} works on attention scores, not on {site}")
        if edit.step is not None and site.hook.axis not in ("sequence", "pattern", "chunk", "logits"):
            raise ValueError(f"{edit}: {site} is computed once per query, so it has no step")
        values = [name for name in edit.tensors if name.startswith("values")]
        if values and not {"values", f"values@{site}"} & set(values):
            raise ValueError(f"{edit} holds no values for {site}, only {', '.join(values)}")
        width = len(edit.neurons) if edit.neurons is not None else known.get(axes[-1])
        for name in ("vector", "direction", "values", f"values@{site}"):
            if width and name in edit.tensors and edit.tensors[name].shape[-1:] != (width,):
                wide = f"{site} is {width} wide here, {edit} holds a tensor of shape {tuple(edit.tensors[name].shape)}"
                raise ValueError(f"{wide}: it was made with another model, or for other neurons")
    return edits


def _decoded(tokens: Selector | None) -> bool:
    """Whether a selector means the token that base OpenVLA reads in a run after the first."""
    return tokens is None or all(part in _DECODED for part in ([tokens] if isinstance(tokens, str) else tokens))


def _sizes(policy: Any) -> dict[str, int]:
    """Sizes of the language model by their name in the registry's shapes."""
    llm = policy.config.llm
    heads = {"head": llm.num_attention_heads, "kv_head": llm.num_key_value_heads, "d_head": llm.head_dim}
    return {"d_model": llm.hidden_size, "d_mlp": llm.intermediate_size, **heads}
