"""How does one handle a large matrix of small rank without ever writing it out?

As the product of its two thin factors. The circuits of an attention head are such matrices: (d_model, d_model) of rank
d_head. Norm, singular values and products cost what the factors cost.

Source: Elhage et al. 2021 (circuits as products); singular values of a product by QR of both factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Factored:
    """`left @ right`, in factors; leading axes are a batch of matrices.

    Row vectors: `x @ circuit` is what the circuit makes of x.

    Raises:
        ValueError: the factors do not fit.
    """

    left: Float[Tensor, "... n rank"]
    right: Float[Tensor, "... rank m"]

    def __post_init__(self) -> None:
        if self.left.ndim < 2 or self.right.ndim < 2 or self.left.shape[-1] != self.right.shape[-2]:
            raise ValueError(f"factors of shapes {tuple(self.left.shape)} and {tuple(self.right.shape)} do not fit")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the product."""
        batch = torch.broadcast_shapes(self.left.shape[:-2], self.right.shape[:-2])
        return (*batch, self.left.shape[-2], self.right.shape[-1])

    @property
    def rank(self) -> int:
        """Inner size: the largest rank that the product can have."""
        return self.left.shape[-1]

    @property
    def matrix(self) -> Float[Tensor, "... n m"]:
        """The product, written out."""
        return self.left @ self.right

    @property
    def T(self) -> Factored:
        """Transpose."""
        return Factored(self.right.mT, self.left.mT)

    def __getitem__(self, index: int | slice | tuple[int | slice, ...]) -> Factored:
        """Some matrices of the batch."""
        if self.left.ndim == 2:
            raise IndexError("this is one matrix, not a batch of them")
        return Factored(self.left[index], self.right[index])

    def __matmul__(self, other: Factored | Tensor) -> Factored:
        """Product with another circuit, or with a plain matrix on the right; stays in factors."""
        if isinstance(other, Tensor):
            return Factored(self.left, self.right @ other)
        middle = self.right @ other.left
        if self.rank <= other.rank:
            return Factored(self.left, middle @ other.right)
        return Factored(self.left @ middle, other.right)

    def __rmatmul__(self, other: Tensor) -> Factored:
        """Product with a plain matrix on the left."""
        return Factored(other @ self.left, self.right)

    @property
    def norm(self) -> Float[Tensor, "..."]:
        """Frobenius norm."""
        gram = (self.left.mT @ self.left) @ (self.right @ self.right.mT)
        return gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(0).sqrt()

    @cached_property
    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (..., n, rank), singular values (..., rank) falling, and Vh (..., rank, m): U diag(S) Vh is the product."""
        u_left, core_left = torch.linalg.qr(self.left)
        u_right, core_right = torch.linalg.qr(self.right.mT)
        u, s, vh = torch.linalg.svd(core_left @ core_right.mT, full_matrices=False)
        return u_left @ u, s, vh @ u_right.mT

    @property
    def singular_values(self) -> Float[Tensor, "... rank"]:
        """Falling."""
        return self.svd[1]

    def compact(self) -> tuple[Float[Tensor, "... rank m"], Float[Tensor, "... n rank"]]:
        """Two thin matrices that stand for this one in norms of products with it.

        `norm(A @ B) == norm(A.compact()[0] @ B.compact()[1])`, because what an orthonormal basis does outside changes
        no norm.
        """
        return torch.linalg.qr(self.left)[1] @ self.right, self.left @ torch.linalg.qr(self.right.mT)[1].mT
