"""One edit for many prompts: the shared form of the point-wise constraint.

    min ||D||_F^2   subject to   ||o_j + D h_j - c_i|| >= eps   for all i, j

An optimal D has rows in the span of the h_j, so D = sum_j a_j h_j^T. The prompts
interfere: a step for one shifts the others by a_j (h_j . h_k). Cyclic sweeps of
the paper's single steps find a feasible D (slowly where the h_j are nearly
parallel, which prompts of one template are); a joint least-norm solve and, for
method "exact", convex-concave steps then shorten it to a local optimum. The
global optimum is a semidefinite program, too slow at real sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from safeedit.edits.active_set import penalty_path
from safeedit.edits.geometry import project_out
from safeedit.edits.low_rank import LowRank

SLACK = 1e-6  # margins down to -SLACK * eps count as met


@dataclass(frozen=True)
class SharedSolution:
    """A shared change of one weight and what is known about it."""

    delta: LowRank  # rank = number of positions that carry a step
    margins: Tensor  # (m,) smallest margin of each position, with the change
    sweeps: int
    condition: float  # of the Gram matrix of the h_j that carry a step
    norms: dict[str, float]  # ||D||_F after "sweeps", "joint" and "tightened"


def solve_shared(
    inputs: Tensor,
    outputs: Tensor,
    centres: Tensor,
    eps: float,
    sweeps: int = 50,
    ridge: float = 1e-8,
    tighten: bool = True,
) -> SharedSolution:
    """Find one small D that meets the constraints at all positions.

    Args:
        inputs: h_j, shape (m, d_ff).
        outputs: o_j, shape (m, d_model).
        centres: c_i, shape (n, d_model).
        eps: radius, in units of the outputs.
        sweeps: upper limit of cyclic sweeps.
        ridge: added to the Gram matrix of the h_j, relative to its mean diagonal.
        tighten: shorten a feasible D by convex-concave steps.

    Raises:
        ValueError: h_j = 0 at a violated position, which no weight change can move.
    """
    h = inputs.double()
    origin = centres.double().mean(0)
    o, c = (outputs.double() - origin) / eps, (centres.double() - origin) / eps
    gram = h @ h.T
    start = torch.cdist(o, c).amin(1)
    if bool(((gram.diagonal() == 0) & (start < 1)).any()):
        raise ValueError(
            "the MLP intermediate h is 0 at a violated position, so no change of "
            "down_proj moves its output; choose other layers or positions"
        )
    steps, done = _sweep(gram, o, c, sweeps)
    norms = {"sweeps": _norm(steps, gram) * eps}

    touched = (steps.abs().amax(1) > 0).nonzero().squeeze(1)
    condition = 1.0
    if touched.numel():
        own = gram[touched][:, touched]
        values = torch.linalg.eigvalsh(own)
        condition = float(values[-1] / values[0].clamp_min(1e-16 * values[-1]))
        damp = ridge * own.diagonal().mean()
        eye = torch.eye(len(own), dtype=own.dtype, device=own.device)
        joint = torch.zeros_like(steps)
        joint[touched] = torch.linalg.solve(own + damp * eye, own @ steps[touched])
        if _least(gram, o, c, joint) >= min(-SLACK, _least(gram, o, c, steps)):
            steps = joint
        norms["joint"] = _norm(steps, gram) * eps
        if tighten:
            steps = _tighten(gram, o, c, steps)
            norms["tightened"] = _norm(steps, gram) * eps

    used = (steps.abs().amax(1) > 0).nonzero().squeeze(1)
    margins = (torch.cdist(o + gram @ steps, c).amin(1) - 1) * eps
    delta = LowRank((steps[used] * eps).T, h[used].T)
    return SharedSolution(delta, margins, done, condition, norms)


def _norm(steps: Tensor, gram: Tensor) -> float:
    return float(((steps @ steps.T) * gram).sum().clamp_min(0).sqrt())


def _least(gram: Tensor, o: Tensor, c: Tensor, steps: Tensor) -> float:
    return float(torch.cdist(o + gram @ steps, c).min() - 1)


def _sweep(gram: Tensor, o: Tensor, c: Tensor, limit: int) -> tuple[Tensor, int]:
    """Cyclic single steps until every position is outside every ball."""
    steps = torch.zeros_like(o)
    place = o.clone()
    for sweep in range(limit):
        violated = (torch.cdist(place, c).amin(1) < 1 - SLACK).nonzero().squeeze(1)
        if violated.numel() == 0:
            return steps, sweep
        for j in violated.tolist():
            # Earlier steps of this sweep may have moved j, out of or into a ball.
            distance, i = (place[j] - c).norm(dim=1).min(0)
            if distance >= 1 - SLACK:
                continue
            if distance > 1e-9:
                move = (place[j] - c[i]) * (1 / distance - 1)
            else:
                move = project_out(place[j], c[i : i + 1], 1.0).displacement
            move = move / gram[j, j]
            steps[j] += move
            place += gram[:, j : j + 1] * move
    return steps, limit


def _tighten(
    gram: Tensor, o: Tensor, c: Tensor, steps: Tensor, rounds: int = 20, most: int = 400
) -> Tensor:
    """Convex-concave steps on the joint problem, with lazily added constraints.

    As `exact.polish`, with the constraint of position j and concept i replaced by
    its tangent half-space; D = sum mu_ji g_ji h_j^T with g_ji = p_j - c_i.
    """
    if _least(gram, o, c, steps) < -2 * SLACK:
        return steps  # needs a feasible start
    for _ in range(rounds):
        place = o + gram @ steps
        distance = torch.cdist(place, c)
        pairs = (distance < 1 + 1e-4).nonzero()
        better = None
        for _ in range(10):
            if not 0 < len(pairs) <= most:
                break
            j, i = pairs.unbind(1)
            g = place[j] - c[i]
            bound = 1 + g.square().sum(1) - 2 * (g * (o[j] - c[i])).sum(1)
            kernel = (g @ g.T) * gram[j][:, j]
            path = penalty_path(kernel[None], bound[None], stop_at_zero=True)
            if not bool(path.done) or bool(path.ray):
                break
            trial = torch.zeros_like(steps).index_add(0, j, path.mu[0, :, None] * g)
            inside = torch.cdist(o + gram @ trial, c) < 1 - 1e-9
            inside[j, i] = False
            if not bool(inside.any()):
                better = trial
                break
            pairs = torch.cat([pairs, inside.nonzero()])
        if better is None:
            return steps
        before, after = _norm(steps, gram), _norm(better, gram)
        feasible = _least(gram, o, c, better) >= -2 * SLACK
        if not feasible or after >= before * (1 - 1e-7):
            return steps
        steps = better
    return steps
