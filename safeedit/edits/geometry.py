"""The geometry of a point-wise constraint: leave a union of balls, move little.

    min ||u||   subject to   ||o + u - c_i|| >= eps   for every concept c_i

Nothing here knows about language models: o is a point, the c_i are centres and
eps is a radius. `greedy` is the paper's "fix the most violated constraint and
repeat" (arXiv 2510.03567); `exact` finds the global optimum through the hidden
convex form of the problem and proves it with a lower bound (module `exact`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from safeedit.edits import exact
from safeedit.edits.active_set import Path, active_slots, block_pivot, penalty_path
from safeedit.edits.greedy import greedy, ray, replay
from safeedit.edits.solution import FreeDirection, Solution, distances

METHODS = ("exact", "greedy")
CHUNK = 256  # points solved at once; exact holds a (CHUNK, n, n) array
CERTIFIED = 1e-6  # exact calls a move optimal up to this gap, in units of the radius


@dataclass(frozen=True)
class Projection:
    """Where the point went, how far, and what is known about the answer.

    A leading batch axis is there when `project_out` was given one. All numbers
    are float64 and in the units of the point.

    Status of each point:
        "inactive": no constraint was violated; nothing moved.
        "ok": every margin holds; with method exact also certified optimal.
        "degenerate": as "ok", but the point sat on a centre, where the direction
            is a free choice (the paper's formula is 0/0).
        "bounded": exact only. Every margin holds, optimality is not proved; the
            optimum lies between `lower_bound` and `distance`.
        "fallback": greedy only. It did not stop by itself, a ray search did.
    """

    point: Tensor  # (batch, d) the new point o + u
    displacement: Tensor  # (batch, d) u
    distance: Tensor  # (batch,) ||u||
    status: list[str] | str
    margins: Tensor  # (batch, n) ||o + u - c_i|| - eps
    active: Tensor  # (batch, n) bool: constraints that hold the point in place
    multipliers: Tensor  # (batch, n) KKT: u = sum_i multipliers_i (o + u - c_i)
    iterations: Tensor  # (batch,) changes of the active set, or greedy steps
    lower_bound: Tensor  # (batch,) no feasible point is nearer than this
    gap: Tensor  # (batch,) distance - lower_bound, >= 0; 0 proves optimality
    sideways: Tensor  # (batch,) bool: o in the hull of the active concepts, so
    # the direction of the move was a free choice

    def row(self, index: int) -> Projection:
        """The result of one point of a batch."""
        if isinstance(self.status, str):
            raise ValueError("this Projection holds one point already: no rows to take")
        return Projection(**{name: v[index] for name, v in vars(self).items()})

    def detach(self) -> Projection:
        """The same result without its autograd graph."""
        return replace(
            self, point=self.point.detach(), displacement=self.displacement.detach()
        )


def project_out(
    point: Tensor | Sequence,
    centres: Tensor | Sequence,
    radius: float,
    method: str = "exact",
    *,
    seed: int = 0,
) -> Projection:
    """Move each point out of all balls around the centres, as little as possible.

    Differentiable in `point`: exact results with the active set frozen, greedy
    ones with the order of the steps frozen, a ray fallback with the displacement
    frozen.

    Args:
        point: o, shape (d,) or (batch, d).
        centres: c_i, shape (n, d), shared by the batch. Duplicates are harmless.
        radius: eps > 0, in the units of the point.
        method: "exact" or "greedy".
        seed: where the direction of the move is free it is drawn from this; the same
            seed gives the same move.

    Returns:
        A `Projection`, float64 whatever the dtype of the input.

    Raises:
        ValueError: wrong shapes, NaN or infinite values, radius not positive, or
            an unknown method.
    """
    start, centres = _checked(point, centres, radius, method)
    points = start.reshape(-1, start.shape[-1])
    # Centre and rescale: the solvers work with radius 1 around the origin.
    origin = centres.mean(0)
    scaled = (points - origin) / radius
    balls, home = torch.unique((centres - origin) / radius, dim=0, return_inverse=True)
    apart = distances(scaled.detach(), balls)
    nearest = apart.amin(1)
    violated, on_centre = nearest < 1 - 1e-12, nearest <= 1e-12

    free = FreeDirection(balls, seed)
    found = Solution.inactive(scaled.detach(), balls)
    rows = violated.nonzero().squeeze(1)
    if rows.numel():
        solve = greedy if method == "greedy" else _exact
        for chunk in rows.split(CHUNK):
            inside = scaled.detach()[chunk]
            found.put(chunk, solve(inside, balls, apart[chunk], free))

    end = found.point
    if points.requires_grad:
        if method == "greedy":
            end = replay(scaled, balls, found)
        else:
            end = _attach(scaled, balls, found)
    displacement = torch.where(violated[:, None], end - scaled, 0.0) * radius
    moved = torch.where(violated[:, None], origin + end * radius, points)
    distance = displacement.detach().norm(dim=1)
    bound = torch.minimum(found.bound * radius, distance)
    status = [
        "inactive" if not v else "degenerate" if z and s == "ok" else s
        for v, z, s in zip(
            violated.tolist(), on_centre.tolist(), found.status, strict=True
        )
    ]
    # Back from the distinct centres to the caller's: equal ones share a weight.
    copies = torch.bincount(home, minlength=len(balls))
    active = found.active[:, home]
    weights = (found.weights / copies)[:, home]
    result = Projection(
        point=moved,
        displacement=displacement,
        distance=distance,
        status=status,
        margins=distances(moved.detach(), centres) - radius,
        active=active,
        multipliers=weights,
        iterations=found.steps,
        lower_bound=bound,
        gap=distance - bound,
        sideways=found.flat,
    )
    return result.row(0) if start.dim() == 1 else result


def _checked(point, centres, radius, method) -> tuple[Tensor, Tensor]:
    """Float64 copies of the inputs, or one clear error."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; use one of {METHODS}")
    if not (isinstance(radius, int | float | Tensor) and math.isfinite(radius)):
        raise ValueError(f"radius is {radius!r}; it must be a finite number > 0")
    if radius <= 0:
        raise ValueError(f"radius is {float(radius)}; it must be a finite number > 0")
    point = torch.as_tensor(point).to(torch.float64)
    centres = torch.as_tensor(centres).detach().to(point)
    if point.dim() not in (1, 2) or 0 in point.shape:
        raise ValueError(
            f"point has shape {tuple(point.shape)}; use (d,) or (batch, d), not empty"
        )
    if centres.dim() != 2 or centres.shape[1] != point.shape[-1] or len(centres) == 0:
        raise ValueError(
            f"centres have shape {tuple(centres.shape)}; with these points use "
            f"(n, {point.shape[-1]}) and n >= 1"
        )
    for name, values in (("point", point), ("centres", centres)):
        if not torch.isfinite(values).all():
            raise ValueError(
                f"{name} holds NaN or infinite values; check the pass it came from"
            )
    return point, centres


def _exact(
    points: Tensor, centres: Tensor, apart: Tensor, free: FreeDirection
) -> Solution:
    """Global optimum where it can be proved, else a polished feasible point."""
    square = apart.square()
    inner = centres @ centres.T
    cross = points @ centres.T - points.square().sum(1, keepdim=True) / 2
    path = block_pivot(inner, cross)
    open_rows = (~path.done).nonzero().squeeze(1)
    if open_rows.numel():
        part = cross[open_rows]
        gram = inner - part[:, :, None] - part[:, None, :]
        slow = penalty_path(gram, 1 - gram.diagonal(dim1=1, dim2=2))
        for whole, solved in zip(path, slow, strict=True):
            whole[open_rows] = solved
    found, proved = _from_active(points, centres, square, path, free)
    near = (~proved & path.ray).nonzero().squeeze(1)
    if near.numel():
        # So near the hull that the path took it for inside: treat it so.
        ended = Path(*(whole[near] for whole in path))
        again, proved[near] = _from_active(
            points[near], centres, square[near], ended, free, ended.ray
        )
        found.put(near, again)
    rest = (~proved).nonzero().squeeze(1)
    if rest.numel():
        found.put(rest, _unproved(found, rest, points[rest], centres, free))
    return found


def _from_active(
    points: Tensor,
    centres: Tensor,
    square: Tensor,
    path: Path,
    free: FreeDirection,
    flat: Tensor | None = None,
) -> tuple[Solution, Tensor]:
    """The point that an active set implies, its bound, and whether that proves it."""
    candidate = exact.nearest_on_spheres(points, centres, path.active, flat)
    bound = exact.lower_bound(points, centres, square, candidate.weights)
    # Where the path ended early its own multipliers may be better weights.
    bound = torch.maximum(bound, exact.lower_bound(points, centres, square, path.mu))
    found = Solution(
        point=candidate.point,
        active=path.active,
        weights=candidate.weights.clamp_min(0).nan_to_num(0.0, 0.0),
        steps=path.steps,
        bound=bound,
        flat=candidate.flat,
        status=["ok"] * len(points),
    )
    for row in candidate.flat.nonzero().squeeze(1).tolist():
        _go_sideways(row, found, candidate.height[row], points, centres, free)
    margins = distances(found.point, centres).amin(1) - 1
    gap = (found.point - points).norm(dim=1) - bound
    return found, (margins >= -1e-9) & (gap.abs() <= CERTIFIED)


def _go_sideways(
    row: int,
    found: Solution,
    height: Tensor,
    points: Tensor,
    centres: Tensor,
    free: FreeDirection,
) -> None:
    """Leave the hull of the active concepts by a free direction, if one is free.

    A direction orthogonal to every r_i always works. Where the concepts span the
    space there is none, but one orthogonal to the active ones may do.
    """
    middle = found.point[row]
    everyone = free.candidates(points[row] - centres)
    need = (1 - (middle - centres).square().sum(1)).amax().clamp_min(0).sqrt()
    own = centres[found.active[row]]
    own = free.candidates(own[1:] - own[0])
    ends = torch.cat(
        [middle + need * everyone, middle + height * own, middle - height * own]
    )
    works = (distances(ends, centres).amin(1) >= 1 - 1e-9).nonzero()
    if len(works):
        found.point[row] = ends[works[0, 0]]


def _unproved(
    attempt: Solution,
    rows: Tensor,
    points: Tensor,
    centres: Tensor,
    free: FreeDirection,
) -> Solution:
    """Greedy and ray starts, polished; in 2-D and 3-D every sphere set is tried."""
    found = greedy(points, centres, distances(points, centres), free)
    rays = ray(points, centres, free)
    # Greedy stops a little inside; that is not good enough here.
    good = distances(found.point, centres).amin(1) >= 1 - 1e-9
    found.point = torch.where(good[:, None], found.point, rays)
    third = attempt.point[rows]
    good = distances(third, centres).amin(1) >= 1 - 1e-9  # False for NaN
    third = torch.where(good[:, None], third, rays)
    starts = torch.cat([found.point, rays, third])
    polished = exact.polish(points.repeat(3, 1), starts, centres)
    ends = polished.view(3, *points.shape)
    pick = (ends - points).norm(dim=2).argmin(0)
    found.point = ends[pick, torch.arange(len(points), device=points.device)]
    found.bound, found.visits = attempt.bound[rows], []
    found.status = ["bounded"] * len(points)
    if points.shape[1] <= 3:
        for row, point in enumerate(points):
            reach = float((found.point[row] - point).norm())
            nearer = exact.enumerate_points(point, centres, reach)
            if nearer is not None:
                found.point[row] = nearer
        found.bound = (found.point - points).norm(dim=1)
        found.status = ["ok"] * len(points)
    found.active = distances(found.point, centres) <= 1 + 1e-7
    found.flat = torch.zeros_like(found.flat)
    _, weights, _ = exact.tangent_step(points, found.point, centres)
    found.weights = weights * found.active
    return found


def _attach(points: Tensor, centres: Tensor, found: Solution) -> Tensor:
    """Give the solved point its gradient, with the active set frozen.

    With multipliers l and Q an orthonormal basis of the active p - c_i the
    Jacobian of p is (I - Q Q^T) / (1 - sum l). Where o lies in the hull the
    factor is infinite and 1 is used.
    """
    slots, valid = active_slots(found.active)
    push = (found.point[:, None] - centres[slots]) * valid[..., None]
    inverse = torch.linalg.pinv(push @ push.transpose(1, 2), hermitian=True)
    slack = 1 - found.weights.sum(1)
    factor = torch.where(slack > 1e-9, 1 / slack.clamp_min(1e-9), 1.0)
    change = points - points.detach()
    within = (inverse @ (push @ change[..., None])).squeeze(-1)
    across = change - (within[:, None] @ push).squeeze(1)
    return found.point + factor[:, None] * across
