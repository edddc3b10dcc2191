"""A low-rank change of one linear layer, kept as its factors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, cat


@dataclass(frozen=True)
class LowRank:
    """The change D = U V^T of one linear layer, kept as its factors in float32.

    A leading batch axis holds one change for each prompt of a batch.
    """

    U: Tensor  # (..., d_out, r)
    V: Tensor  # (..., d_in, r)

    def __post_init__(self) -> None:
        u, v = self.U.shape, self.V.shape
        if len(u) not in (2, 3) or u[:-2] != v[:-2] or u[-1] != v[-1]:
            raise ValueError(
                f"U has shape {tuple(u)} and V {tuple(v)}; use (d_out, r) and "
                "(d_in, r), or (batch, d_out, r) and (batch, d_in, r)"
            )
        object.__setattr__(self, "U", self.U.float())
        object.__setattr__(self, "V", self.V.float())

    @property
    def batch(self) -> int | None:
        """Number of prompts, or None for one change shared by all."""
        return self.U.shape[0] if self.U.dim() == 3 else None

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in), as the weight that it changes."""
        return self.U.shape[-2], self.V.shape[-2]

    def norm(self) -> Tensor:
        """Frobenius norm, shape () or (batch,), from two r x r Gram matrices."""
        u, v = self.U.double(), self.V.double()
        grams = (u.mT @ u) * (v.mT @ v)
        return grams.sum((-2, -1)).clamp_min(0).sqrt()

    def dense(self) -> Tensor:
        """D itself, (..., d_out, d_in). Large: for merging and for tests."""
        return self.U @ self.V.mT

    def output_change(self, inputs: Tensor) -> Tensor:
        """D h for every position of the inputs, (..., positions, d_out)."""
        return output_change(self.U, self.V, inputs)

    def __mul__(self, factor: float) -> LowRank:
        return LowRank(self.U * factor, self.V)

    def __add__(self, other: LowRank) -> LowRank:
        if self.shape != other.shape:
            raise ValueError(f"cannot add changes of {self.shape} and {other.shape}")
        parts = [self, other]
        sizes = {part.batch for part in parts if part.batch is not None}
        if len(sizes) > 1:
            raise ValueError(
                f"cannot add edits of {self.batch} and {other.batch} prompts"
            )
        if sizes:
            size = sizes.pop()
            parts = [
                part
                if part.batch
                else LowRank(part.U.expand(size, -1, -1), part.V.expand(size, -1, -1))
                for part in parts
            ]
        return LowRank(
            cat([part.U for part in parts], -1),
            cat([part.V for part in parts], -1),
        )


def output_change(u: Tensor, v: Tensor, inputs: Tensor) -> Tensor:
    """U V^T h for every position of the inputs, without forming U V^T."""
    weights = inputs.to(u.dtype) @ v
    if u.shape[-1] == 1:  # a product is faster than a batch of outer products
        return weights * u.mT
    return weights @ u.mT
