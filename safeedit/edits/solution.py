"""What the solvers of `project_out` share. Units: the radius is 1."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


def distances(points: Tensor, centres: Tensor) -> Tensor:
    # The product form of cdist loses eight digits near a centre.
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")


@dataclass
class Solution:
    """What a solver found for a batch of points, in units of the radius."""

    point: Tensor  # (batch, d)
    active: Tensor  # (batch, n) bool
    weights: Tensor  # (batch, n) multipliers
    steps: Tensor  # (batch,)
    bound: Tensor  # (batch,) lower bound of the distance
    flat: Tensor  # (batch,) bool
    status: list[str]
    # Greedy only: rows, and for each step the centre it left, (steps, rows) or -1
    visits: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def inactive(cls, points: Tensor, centres: Tensor) -> Solution:
        batch, n = len(points), len(centres)
        zeros = torch.zeros(batch, n, dtype=points.dtype, device=points.device)
        return cls(
            point=points.clone(),
            active=zeros.bool(),
            weights=zeros,
            steps=zeros[:, 0].long(),
            bound=zeros[:, 0].clone(),
            flat=zeros[:, 0].bool(),
            status=["inactive"] * batch,
        )

    def put(self, rows: Tensor, other: Solution) -> None:
        """Overwrite some rows by the results of a smaller batch."""
        for name in ("point", "active", "weights", "steps", "bound", "flat"):
            getattr(self, name)[rows] = getattr(other, name)
        for row, status in zip(rows.tolist(), other.status, strict=True):
            self.status[row] = status
        self.visits += [(rows[own], steps) for own, steps in other.visits]


class FreeDirection:
    """Unit vectors for moves whose direction is a free choice."""

    def __init__(self, centres: Tensor, seed: int):
        # Drawn on the CPU, so that every device makes the same choice.
        generator = torch.Generator().manual_seed(seed)
        width = centres.shape[1]
        drawn = torch.randn(8, width, generator=generator, dtype=torch.float64)
        self.drawn = drawn.to(centres.device)

    def candidates(self, avoid: Tensor) -> Tensor:
        """Unit vectors orthogonal to the rows of `avoid`, shape (k, d)."""
        pool = self.drawn
        if len(avoid):
            _, sizes, basis = torch.linalg.svd(avoid, full_matrices=False)
            basis = basis[sizes > 1e-10 * sizes.max().clamp_min(1e-300)]
            pool = pool - (pool @ basis.T) @ basis
            pool = pool - (pool @ basis.T) @ basis  # twice: to the last digit
        length = pool.norm(dim=1, keepdim=True)
        keep = length.squeeze(1) > 1e-6
        return pool[keep] / length[keep]
