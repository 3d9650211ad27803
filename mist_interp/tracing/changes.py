"""Did the edits of this forward do anything, and how much?

An edit that silently stopped is the one fault that no success rate would reveal, so every forward with live edits
measures each of them at its own site, in that very forward:

    norm      Euclidean length of (new - old), over all tokens and over all runs of the network within the query
    touched   tokens with any difference, of how many

`vla.changes()` gives one `Change` per live edit of the last forward. Nothing older is kept.

The norm says how far values were moved, and not what followed from it: a large push in a direction that nobody reads
changes no action. For attention scores it is the change of the weights that they give, because a score may be infinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mist_interp.core.names import Site

if TYPE_CHECKING:
    from mist_interp.tracing.edits import Edit


@dataclass(frozen=True, eq=False)
class Change:
    """What one edit changed at one site in one forward, per sample of the batch.

    Attributes:
        edit: the edit, in words.
        site: where.
        norm: Euclidean length of the change, 0 where the edit did nothing.
        touched: tokens that were changed (over all runs, where a query has several).
        tokens: tokens that there were; padding is not counted if the edit is data or names tokens.
    """

    edit: str
    site: Site
    norm: Float[Tensor, " batch"]
    touched: Int[Tensor, " batch"]
    tokens: Int[Tensor, " batch"]

    @property
    def fraction(self) -> Float[Tensor, " batch"]:
        """Share of the tokens that were changed."""
        return self.touched / self.tokens.clamp(min=1)

    @property
    def total(self) -> float:
        """Norm over the whole batch."""
        return float(self.norm.square().sum().sqrt())

    def to_dict(self, sample: int = 0) -> dict[str, Any]:
        """Plain values of one sample, for a result file."""
        counts = {"touched": int(self.touched[sample]), "tokens": int(self.tokens[sample])}
        return {"edit": self.edit, "norm": float(self.norm[sample]), **counts}


@dataclass
class Ledger:
    """Collects the changes of one forward.

    Attributes:
        batch: samples of the query.
        finite: whether an edit that brings in a NaN or an infinity is an error.
    """

    batch: int
    finite: bool = True
    _sums: dict[int, tuple[Edit, tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)

    def note(
        self,
        edit: Edit,
        old: Tensor,
        new: Tensor,
        valid: Tensor | None,
        tokens: Tensor | None,
        chosen: bool = False,
    ) -> None:
        """Add what an edit did to a piece of its site in one run.

        Args:
            edit: which.
            old: (batch, ...) the piece before.
            new: the piece after.
            valid: (batch, token) which tokens of the piece exist; None for all.
            chosen: whether the piece is what a selector chose, whose padding is not written back.
            tokens: (batch,) tokens of the whole site; None for those of the piece.

        Raises:
            FloatingPointError: the edit made values that are not finite out of finite ones.
        """
        old, new = old.detach().as_subclass(Tensor), new.detach().as_subclass(Tensor).to(old)
        if edit.site.hook.short == "attn_scores":
            old, new = old.float().softmax(-1), new.float().softmax(-1)
        dim = 2 if edit.site.hook.axis == "pattern" else 1
        written = valid if chosen else None
        squares = _squares(old, new, dim, written, torch.promote_types(old.dtype, torch.float32))
        # Finite squares mean finite values; squares of finite values may be beyond float32.
        if not bool(squares.isfinite().all()):
            squares = _squares(old, new, dim, written, torch.float64)
            if self.finite:
                _demand_finite(edit, old, new, dim, written)
        if not chosen:
            squares = _unpadded(squares, valid)
        count = torch.full((len(squares),), squares.shape[1]) if tokens is None else tokens
        parts = squares.sum(1, dtype=torch.float64), (squares > 0).sum(1), count
        before = self._sums.get(id(edit))
        if before is not None:
            parts = before[1][0] + parts[0], before[1][1] + parts[1], before[1][2] + parts[2]
        self._sums[id(edit)] = edit, parts

    def changes(self, edits: Sequence[Edit]) -> tuple[Change, ...]:
        """One entry per edit, in their order; an edit that left everything alone has norm 0 of 0 tokens."""
        none = torch.zeros(self.batch), torch.zeros(self.batch).long(), torch.zeros(self.batch).long()
        rows = []
        for edit in edits:
            _, (squares, touched, tokens) = self._sums.get(id(edit), (edit, none))
            rows.append(Change(str(edit), edit.site, squares.double().sqrt().cpu(), touched.cpu(), tokens.cpu()))
        return tuple(rows)


def _squares(old: Tensor, new: Tensor, dim: int, valid: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Squared length of the change of each token, (batch, token); 0 for padding."""
    return _unpadded((new.to(dtype) - old.to(dtype)).movedim(dim, 1).flatten(2).square().sum(-1), valid)


def _unpadded(counts: Tensor, valid: Tensor | None) -> Tensor:
    return counts if valid is None else counts.masked_fill(~valid.to(counts.device), 0)


def _demand_finite(edit: Edit, old: Tensor, new: Tensor, dim: int, valid: Tensor | None) -> None:
    """Refuse values that are not finite where the network's own were."""
    wrong = ~new.isfinite() & old.isfinite()
    bad = int(_unpadded(wrong.movedim(dim, 1).flatten(2).sum(-1), valid).sum())
    if bad:
        wrote = f"{edit} wrote NaN or infinite values over finite ones ({bad} of {new.numel()})"
        raise FloatingPointError(f"{wrote}; to allow it, set vla.check_finite = False")
