r"""Globally optimal projection out of a union of balls, with a certificate.

Units: the radius is 1 (the caller rescales). With r_i = o - c_i and
b_i = 1 - ||r_i||^2 the smallest move u out of all balls solves

    min t   subject to   t + 2 r_i . u >= b_i,   t = ||u||^2.

Relaxing the last equation to t >= ||u||^2 makes the problem convex. A gap
s^2 = t - ||u||^2 > 0 is filled by a step of length s orthogonal to every r_i,
which no constraint notices. So the relaxation is tight whenever the r_i leave
such a direction free, and always when there are fewer concepts than dimensions.

`active_set` solves the relaxation; here its active set becomes a point, and the
point gets its certificate.

The certificate needs no optimisation theory. For weights w >= 0 with sum 1,
mean m = sum w_i c_i and variance v = sum w_i ||c_i - m||^2, a point p outside
every ball has sum w_i ||p - c_i||^2 = ||p - m||^2 + v >= 1, therefore

    ||p - o|| >= sqrt(1 - v) - ||o - m||.

Any weights bound the distance from below; the optimal ones attain it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from safeedit.edits.active_set import active_slots, penalty_path

FLAT = 1e-10  # height over the hull below which a direction is pure noise


class Candidate(NamedTuple):
    """Nearest point on the intersection of the active spheres."""

    point: Tensor  # (batch, d)
    weights: Tensor  # (batch, n) multipliers lambda of the active centres
    flat: Tensor  # (batch,) bool: o lies in the hull, the direction is free
    height: Tensor  # (batch,) distance from the hull's plane to the point


def nearest_on_spheres(
    point: Tensor, centres: Tensor, active: Tensor, flat: Tensor | None = None
) -> Candidate:
    """Nearest point to o on the intersection of the active unit spheres.

    The intersection is a sphere around the circumcentre q of the active
    centres, in the plane through q orthogonal to their hull. The point is
    q + rho n with n the direction of o seen from that hull. Where o lies in
    the hull itself, n is free and the point returned is q; `height` is rho.

    Args:
        point: o, shape (batch, d). centres: (n, d). active: (batch, n) bool.
        flat: rows to treat as lying in the hull, (batch,) bool.
    """
    slots, valid = active_slots(active)
    anchor, others, valid = slots[:, :1], slots[:, 1:], valid[:, 1:]
    first = centres[anchor.squeeze(1)]
    edges = _Edges(centres, anchor, others, valid)
    factor, squares = edges.factor()
    offset = point - first
    around = squares / 2
    right = torch.stack([around, edges.along(offset)], -1)
    x, y = torch.cholesky_solve(right, factor).unbind(-1)
    rise = offset - edges.mixed(y)
    # One step of refinement: the rise can be far smaller than the offset.
    error = torch.cholesky_solve(edges.along(rise)[..., None], factor).squeeze(-1)
    y, rise = y + error, rise - edges.mixed(error)
    outward = edges.mixed(x)
    centre = first + outward
    height = (1 - outward.square().sum(1)).clamp_min(0).sqrt()
    length = rise.norm(dim=1)
    flat = length <= FLAT if flat is None else flat | (length <= FLAT)
    share = torch.where(flat, 0.0, length / height.clamp_min(1e-300))
    normal = rise / length.clamp_min(1e-300)[:, None]
    normal = torch.where(flat[:, None], torch.zeros_like(normal), normal)
    packed = (y - share[:, None] * x) * valid
    lead = 1 - share - packed.sum(1)
    weights = torch.zeros_like(active, dtype=point.dtype)
    weights = weights.scatter_add(1, others, packed)
    weights = weights.scatter_add(1, anchor, lead[:, None])
    return Candidate(centre + height[:, None] * normal, weights, flat, height)


class _Edges(NamedTuple):
    """Differences c_i - c_first of each row's active centres, never written out."""

    centres: Tensor  # (n, d)
    anchor: Tensor  # (batch, 1) index of the first active centre
    others: Tensor  # (batch, k) indices of the other ones, padded
    valid: Tensor  # (batch, k) bool

    def factor(self) -> tuple[Tensor, Tensor]:
        """Cholesky factor of their products (batch, k, k), and their squares."""
        inner = self.centres @ self.centres.T
        first, rest = self.anchor[..., None], self.others[..., None]
        lead = inner[first, self.others[:, None]]  # (batch, 1, k)
        gram = inner[rest, self.others[:, None]] - lead - lead.mT + inner[first, first]
        gram = gram * (self.valid[:, :, None] & self.valid[:, None, :])
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        factor, _ = torch.linalg.cholesky_ex(gram + eye * (~self.valid)[:, None, :])
        return factor, gram.diagonal(dim1=1, dim2=2)

    def along(self, vector: Tensor) -> Tensor:
        """Products of each edge with the row's vector, (batch, k)."""
        products = vector @ self.centres.T
        return (
            products.gather(1, self.others) - products.gather(1, self.anchor)
        ) * self.valid

    def mixed(self, weights: Tensor) -> Tensor:
        """Weighted sums of the edges, (batch, d)."""
        weights = weights * self.valid
        full = torch.zeros(len(weights), len(self.centres)).to(weights)
        full = full.scatter_add(1, self.others, weights)
        full = full.scatter_add(1, self.anchor, -weights.sum(1, keepdim=True))
        return full @ self.centres


def lower_bound(
    point: Tensor, centres: Tensor, square: Tensor, weights: Tensor
) -> Tensor:
    """Distance that every point outside the unit balls has from o, at least.

    Args:
        point: o, (batch, d). centres: (n, d). square: ||o - c_i||^2, (batch, n).
        weights: (batch, n); negative entries count as zero, rows are normalised
            to sum 1.

    Returns:
        sqrt(1 - v) - ||o - m|| as in the module's docstring, never below 0.
    """
    weights = weights.clamp_min(0).nan_to_num(0.0, 0.0)
    total = weights.sum(1, keepdim=True)
    weights = weights / total.clamp_min(1e-300)
    apart = (point - weights @ centres).norm(dim=1)
    # The variance as seen from o, near which the weighted centres are.
    spread = (weights * square).sum(1) - apart.square()
    reach = (1 - spread).clamp_min(0).sqrt() - apart
    return torch.where(total.squeeze(1) > 0, reach.clamp_min(0), 0.0)


def polish(point: Tensor, start: Tensor, centres: Tensor, rounds: int = 50) -> Tensor:
    """Shorten a feasible move by convex-concave steps; margins are kept.

    Args:
        point: o, (batch, d). start: a feasible point for each, (batch, d).
    """
    best = start.clone()
    for _ in range(rounds):
        moved, _, done = tangent_step(point, best, centres)
        before, after = (best - point).norm(dim=1), (moved - point).norm(dim=1)
        feasible = (moved[:, None] - centres).norm(dim=2).amin(1) >= 1 - 1e-9
        better = done & feasible & (after < before)
        best = torch.where(better[:, None], moved, best)
        if not bool((better & (before - after > 1e-12)).any()):
            break
    return best


def tangent_step(
    point: Tensor, place: Tensor, centres: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest point of the polyhedron of tangent half-spaces, and its multipliers.

    Each ball constraint is replaced by its tangent half-space at `place`, which lies
    outside the ball: what is feasible there is feasible for the balls, and at a
    local optimum the step stays put and its multipliers are those of the optimum.

    Returns:
        New points (batch, d), multipliers (batch, n), and whether they were found.
    """
    tangent = place[:, None] - centres
    toward = (tangent * (point[:, None] - centres)).sum(2)
    path = penalty_path(
        tangent @ tangent.mT,
        1 + tangent.square().sum(2) - 2 * toward,
        stop_at_zero=True,
    )
    moved = point + (path.mu[:, None] @ tangent).squeeze(1)
    return moved, path.mu, path.done & ~path.ray


def enumerate_points(point: Tensor, centres: Tensor, reach: float) -> Tensor | None:
    """Global optimum in two or three dimensions by trying every sphere set.

    An optimum is the nearest point on the spheres of its active set, or one of
    the two points in which d spheres meet.

    Args:
        point: o, (d,), d <= 3. centres: (n, d). reach: distance of a known
            feasible point; only nearer ones are looked for.

    Returns:
        The nearest feasible point, or None where none is nearer than `reach`.
    """
    near = centres[(centres - point).norm(dim=1) <= 1 + reach + 1e-12]
    found = []
    for size in range(1, point.numel() + 1):
        sets = torch.combinations(torch.arange(len(near)), r=size)
        found.extend(_sphere_points(point, near, sets, last=size == point.numel()))
    candidates = torch.cat(found)
    distance = (candidates - point).norm(dim=1)
    order = distance.argsort()
    order = order[distance[order] < reach - 1e-12]
    for chunk in order.split(4096):
        gaps = torch.cdist(
            candidates[chunk], near, compute_mode="donot_use_mm_for_euclid_dist"
        )
        free = (gaps >= 1 - 1e-9).all(1).nonzero()
        if free.numel():
            return candidates[chunk[free[0, 0]]]
    return None


def _sphere_points(
    point: Tensor, centres: Tensor, sets: Tensor, last: bool
) -> list[Tensor]:
    """Candidate points of each set of spheres: nearest ones, or both of a pair."""
    if len(sets) == 0:
        return []
    first = centres[sets[:, 0]]
    edges = centres[sets[:, 1:]] - first[:, None]
    gram = edges @ edges.transpose(1, 2)
    around = gram.diagonal(dim1=1, dim2=2) / 2
    inverse = torch.linalg.pinv(gram, hermitian=True, rtol=1e-13)
    x = (inverse @ around[..., None]).squeeze(-1)
    centre = first + (x[:, None] @ edges).squeeze(1)
    square = 1 - (centre - first).square().sum(1)
    independent = (gram @ x[..., None]).squeeze(-1).sub(around).abs().sum(1) < 1e-9
    keep = (square >= 0) & independent
    first, edges, inverse = first[keep], edges[keep], inverse[keep]
    centre, height = centre[keep], square[keep].sqrt()

    def normal(vector: Tensor) -> tuple[Tensor, Tensor]:
        inside = inverse @ (edges @ vector[..., None])
        out = vector - (edges.transpose(1, 2) @ inside).squeeze(-1)
        length = out.norm(dim=1)
        return out / length.clamp_min(1e-300)[:, None], length

    toward, length = normal((point - first).expand_as(first))
    points = [(centre + height[:, None] * toward)[length > FLAT]]
    # Both directions along each axis: the second point of a full set, and a
    # spread of choices where o itself lies in the hull of the set.
    for axis in torch.eye(point.numel()).to(point):
        side, size = normal(axis.expand_as(first))
        use = (size > 1e-6) & (last | (length <= FLAT))
        points.append((centre + height[:, None] * side)[use])
        points.append((centre - height[:, None] * side)[use])
    return points
