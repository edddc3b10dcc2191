"""The paper's loop: fix the most violated constraint, repeat (arXiv 2510.03567).

It may cycle, land on a centre, or stop far from the optimum; where it does not
stop, a search along rays ends it. Units: the radius is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safeedit.edits.solution import FreeDirection, Solution, distances

TOLERANCE = 1e-6  # stops when every margin >= -TOLERANCE (ours)


def greedy(
    points: Tensor, centres: Tensor, apart: Tensor, free: FreeDirection
) -> Solution:
    """The paper's loop: step radially out of the nearest ball until none is left."""
    n = len(centres)
    found = Solution.inactive(points, centres)
    # One ball alone needs 1 - ||r||; no more than this is proved here.
    found.bound = (1 - apart.amin(1)).clamp_min(0)
    found.status = ["ok"] * len(points)
    rows = torch.arange(len(points), device=points.device)
    visits = []
    for _ in range(10 * n):
        distance, index = distances(found.point[rows], centres).min(1)
        inside = distance < 1 - TOLERANCE
        rows, index = rows[inside], index[inside]
        if rows.numel() == 0:
            break
        visits.append(torch.full((len(points),), -1, device=points.device))
        visits[-1][rows] = index
        start, centre = found.point[rows], centres[index]
        found.point[rows] = _radial_step(start, centre, centres, free)
        on_top = (start - centre).norm(dim=1) <= 1e-12
        found.flat[rows] |= on_top
        found.steps[rows] += 1
        found.active[rows] = False
        found.active[rows, index] = True
        if int(found.steps.max()) == 1:  # exactly one ball: its KKT multiplier
            found.weights[rows, index] = 1 - distance[inside]
    more = found.steps > 1
    found.weights[more] = 0.0
    rows = rows[distances(found.point[rows], centres).amin(1) < 1 - TOLERANCE]
    if rows.numel():
        found.point[rows] = ray(points[rows], centres, free)
        found.active[rows] = distances(found.point[rows], centres) <= 1 + 1e-9
        for row in rows.tolist():
            found.status[row] = "fallback"
    if visits:
        everyone = torch.arange(len(points), device=points.device)
        found.visits = [(everyone, torch.stack(visits))]
    return found


def _radial_step(
    points: Tensor, centre: Tensor, centres: Tensor, free: FreeDirection
) -> Tensor:
    """To the sphere of the given centre, along the radius (its 0/0 case included)."""
    residual = points - centre
    length = residual.norm(dim=1, keepdim=True)
    on_top = length <= 1e-12
    if bool(on_top.any()):
        away = points - centres.mean(0)
        size = away.norm(dim=1, keepdim=True)
        spare = free.candidates(centres[:0])[:1].expand_as(away)
        away = torch.where(size > 1e-12, away / size.clamp_min(1e-300), spare)
        residual = torch.where(on_top, away, residual)
        length = torch.where(on_top, torch.ones_like(length), length)
    return centre + residual / length


def ray(points: Tensor, centres: Tensor, free: FreeDirection) -> Tensor:
    """The nearest free point along a few rays: always feasible, never optimal by rule.

    Along o + t v the balls cover a union of intervals of t. The rays tried lead
    away from the mean of the concepts, away from each concept, and in a free
    direction.
    """
    residual = points[:, None] - centres
    spare = free.candidates(centres - centres.mean(0))
    spare = spare if len(spare) else free.candidates(centres[:0])
    spare = spare[:1].expand(len(points), 1, -1)
    away = (points - centres.mean(0))[:, None]
    rays = torch.cat([away, residual, spare], 1)
    length = rays.norm(dim=2, keepdim=True)
    rays = torch.where(length > 1e-9, rays / length.clamp_min(1e-300), spare)
    along = rays @ residual.transpose(1, 2)  # (batch, rays, n)
    inside = along.square() - residual.square().sum(2)[:, None] + 1
    half = inside.clamp_min(0).sqrt()
    hit = inside > 0
    low = torch.where(hit, -along - half, torch.inf)
    high = torch.where(hit, -along + half, -torch.inf)
    low, order = low.sort(dim=2)
    high = high.gather(2, order)
    # Covered up to here by the balls that begin earlier, and by t < 0.
    covered = high.cummax(dim=2).values.clamp_min(0)
    covered = torch.cat([torch.zeros_like(covered[..., :1]), covered], 2)
    low = torch.cat([low, torch.full_like(low[..., :1], torch.inf)], 2)
    first = (low >= covered).to(torch.uint8).argmax(dim=2, keepdim=True)
    t = covered.gather(2, first).squeeze(2)
    best = t.argmin(1)
    here = torch.arange(len(points), device=points.device)
    return points + t[here, best, None] * rays[here, best]


def replay(points: Tensor, centres: Tensor, found: Solution) -> Tensor:
    """Repeat the greedy steps under autograd; a fallback keeps its displacement."""
    fixed = torch.tensor([s == "fallback" for s in found.status], device=points.device)
    fixed = fixed | found.flat
    end = found.point + (points - points.detach())
    for rows, steps in found.visits:
        rows, steps = rows[~fixed[rows]], steps[:, ~fixed[rows]]
        path = points[rows]
        for step in steps:
            centre = centres[step.clamp_min(0)]
            residual = path - centre
            length = residual.norm(dim=1, keepdim=True)
            path = torch.where((step >= 0)[:, None], centre + residual / length, path)
        end = end.index_put((rows,), path)
    return end
