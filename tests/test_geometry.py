"""project_out against closed forms, an independent optimiser, and its own proof."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from safeedit.edits import project_out
from safeedit.edits.active_set import block_pivot, penalty_path

F64 = torch.float64
METHODS = ("exact", "greedy")


def tensor(*rows):
    return torch.tensor(rows, dtype=F64)


def line(n):
    return torch.stack([0.9 * torch.arange(n, dtype=F64), torch.zeros(n, dtype=F64)], 1)


def triangle(size=0.8):
    angles = torch.arange(3, dtype=F64) * 2 * math.pi / 3
    return size * torch.stack([angles.cos(), angles.sin()], 1)


def cloud(n, d, batch, seed, spread=0.6):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n, d, generator=generator, dtype=F64)
    centres = spread * centres / centres.norm(dim=1, keepdim=True)
    points = torch.randn(batch, d, generator=generator, dtype=F64) * 0.3 / d**0.5
    return points, centres


def assert_feasible(result):
    assert float(result.margins.min()) >= -1e-6


# Closed forms


@pytest.mark.parametrize("method", METHODS)
def test_one_constraint_is_the_papers_closed_form(method):
    points, centres = cloud(1, 7, 5, seed=1)
    r = points - centres[0]
    size = r.norm(dim=1, keepdim=True)
    expected = (1.5 - size).clamp_min(0) * r / size
    result = project_out(points, centres, 1.5, method)
    assert torch.allclose(result.displacement, expected, atol=1e-12)
    assert torch.allclose(result.gap, torch.zeros(5, dtype=F64), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_point_outside_every_ball_stays(method):
    point = tensor(0.0, 2.0, 0.0)
    result = project_out(point, torch.zeros(1, 3, dtype=F64), 1.0, method)
    assert result.status == "inactive" and float(result.distance) == 0.0
    assert torch.equal(result.point, point) and not result.active.any()


@pytest.mark.parametrize("method", METHODS)
def test_scale_and_shift_do_not_matter(method):
    points, centres = cloud(12, 20, 6, seed=2)
    shift = torch.linspace(-3, 4, 20, dtype=F64)
    plain = project_out(points, centres, 1.0, method)
    other = project_out(points * 50 + shift, centres * 50 + shift, 50.0, method)
    assert torch.allclose(other.displacement, plain.displacement * 50, atol=1e-7)


# The failure cases of "fix the most violated, repeat"


@pytest.mark.parametrize(
    ("point", "centres", "optimum"),
    [
        pytest.param(tensor(0.0, 0.0), tensor([0.6, 0], [-0.6, 0]), 0.8, id="cycle"),
        pytest.param(
            tensor(0.0, 0.0), tensor([0.5, 0], [-0.5, 0]), 0.75**0.5, id="centre"
        ),
        pytest.param(
            tensor(0.1, 0.0), line(2), math.hypot(0.35, (1 - 0.45**2) ** 0.5), id="long"
        ),
        pytest.param(
            tensor(0.1, 0.0), line(20), math.hypot(0.35, (1 - 0.45**2) ** 0.5), id="far"
        ),
    ],
)
def test_failure_cases_in_the_plane(point, centres, optimum):
    exact = project_out(point, centres, 1.0, "exact")
    greedy = project_out(point, centres, 1.0, "greedy")
    assert float(exact.distance) == pytest.approx(optimum, abs=1e-9)
    assert exact.status == "ok" and float(exact.gap) < 1e-9
    assert_feasible(exact)
    assert_feasible(greedy)
    assert float(greedy.distance) >= optimum - 1e-9


def test_greedy_fails_as_described():
    cycle = project_out([0.0, 0.0], tensor([0.6, 0], [-0.6, 0]), 1.0, "greedy")
    assert cycle.status == "fallback"
    far = project_out([0.1, 0.0], line(20), 1.0, "greedy")
    assert far.status == "ok" and float(far.distance) == pytest.approx(18.0)
    # It must not look proved: one ball bounds the distance by 0.9 only.
    assert float(far.gap) > 17


def test_triangle_cycles_for_many_starts_and_is_solved_for_all():
    generator = torch.Generator().manual_seed(0)
    starts = (torch.rand(60, 2, generator=generator, dtype=F64) - 0.5) * 0.6
    greedy = project_out(starts, triangle(), 1.0, "greedy")
    exact = project_out(starts, triangle(), 1.0, "exact")
    assert greedy.status.count("fallback") > 10
    assert set(exact.status) == {"ok"}
    assert_feasible(greedy)
    assert_feasible(exact)
    assert bool((exact.distance <= greedy.distance + 1e-9).all())
    angles = torch.linspace(0, 2 * math.pi, 20001, dtype=F64)
    circles = triangle()[:, None] + torch.stack([angles.cos(), angles.sin()], 1)
    border = circles.reshape(-1, 2)
    free = torch.cdist(border, triangle()).amin(1) >= 1 - 1e-7
    best = torch.cdist(starts, border[free]).amin(1)
    assert torch.allclose(exact.distance, best, atol=1e-3)


def test_one_more_dimension_lets_the_triangle_out_sideways():
    flat = torch.cat([triangle(), torch.zeros(3, 1, dtype=F64)], 1)
    result = project_out([0.1, 0.05, 0.0], flat, 1.0)
    assert result.status == "ok" and bool(result.sideways)
    planar = project_out([0.1, 0.05], triangle(), 1.0)
    assert float(result.distance) < float(planar.distance)
    again = project_out([0.1, 0.05, 0.0], flat, 1.0)
    assert torch.equal(result.point, again.point)


# Free directions


@pytest.mark.parametrize("method", METHODS)
def test_a_point_on_a_centre_is_degenerate_and_deterministic(method):
    result = project_out([0.0] * 5, torch.zeros(1, 5, dtype=F64), 2.0, method)
    assert result.status == "degenerate"
    assert float(result.distance) == pytest.approx(2.0)
    again = project_out([0.0] * 5, torch.zeros(1, 5, dtype=F64), 2.0, method)
    assert torch.equal(result.point, again.point)


def test_duplicated_centres_change_nothing():
    points, centres = cloud(6, 9, 4, seed=3)
    twice = project_out(points, centres.repeat(2, 1), 1.0)
    once = project_out(points, centres, 1.0)
    assert torch.allclose(twice.point, once.point, atol=1e-12)
    assert twice.margins.shape == (4, 12)
    total = twice.multipliers.view(4, 2, 6).sum(1)
    assert torch.allclose(total, once.multipliers, atol=1e-9)


# Optimality: an independent optimiser, an independent form of the bound


def slsqp(point, centres, starts, rng):
    """Best of several local solves of the original, non-convex problem."""
    o, c = point.numpy(), centres.numpy()
    rule = {
        "type": "ineq",
        "fun": lambda p: ((p - c) ** 2).sum(1) - 1,
        "jac": lambda p: 2 * (p - c),
    }
    best = math.inf
    for _ in range(starts):
        found = minimize(
            lambda p: ((p - o) ** 2).sum(),
            o + rng.normal(size=o.size),
            jac=lambda p: 2 * (p - o),
            constraints=[rule],
            method="SLSQP",
            options={"maxiter": 60},
        )
        if rule["fun"](found.x).min() > -1e-6:
            best = min(best, math.sqrt(found.fun))
    return best


@pytest.mark.parametrize("d", [2, 3, 5, 12])
def test_random_instances_against_slsqp(d):
    rng = np.random.default_rng(d)
    ratios = []
    for seed in range(52):
        n = int(rng.integers(2, 9))
        points, centres = cloud(n, d, 1, seed=100 * d + seed, spread=0.7)
        result = project_out(points[0], centres, 1.0)
        best = slsqp(points[0], centres, 5, rng)
        distance = float(result.distance)
        assert_feasible(result)
        assert float(result.lower_bound) <= best + 1e-6
        if result.status == "ok":
            assert distance <= best + 1e-6
            assert float(result.gap) <= 1e-7
        else:
            assert result.status == "bounded" and n >= d > 3
        ratios.append(distance / best)
    assert np.median(ratios) <= 1 + 1e-6 and max(ratios) < 1.1


@pytest.mark.parametrize("n", [1, 5, 40, 100])
def test_multipliers_prove_the_optimum_through_the_dual(n):
    points, centres = cloud(n, 128, 10, seed=n)
    result = project_out(points, centres, 1.0)
    assert set(result.status) == {"ok"}
    lam = result.multipliers
    r = points[:, None] - centres
    b = 1 - r.square().sum(2)
    pull = (lam[..., None] * r).sum(1)
    dual = (lam * b).sum(1) - pull.square().sum(1) / (1 - lam.sum(1))
    assert bool((lam >= 0).all()) and bool((lam.sum(1) < 1).all())
    assert torch.allclose(dual.sqrt(), result.distance, atol=1e-8)
    stationary = (lam[..., None] * (result.point[:, None] - centres)).sum(1)
    assert torch.allclose(stationary, result.displacement, atol=1e-8)


def test_the_bound_is_below_every_feasible_point():
    for d, n in ((4, 12), (6, 30)):
        points, centres = cloud(n, d, 6, seed=d)
        generator = torch.Generator().manual_seed(0)
        trial = torch.randn(4000, d, generator=generator, dtype=F64) * 1.2
        trial = trial[torch.cdist(trial, centres).amin(1) >= 1]
        for method in METHODS:
            result = project_out(points, centres, 1.0, method)
            nearest = torch.cdist(points, trial).amin(1)
            assert bool((result.lower_bound <= nearest).all())
            assert bool((result.gap >= 0).all())
            assert_feasible(result)


def test_exact_is_never_longer_than_greedy():
    for n, d in ((100, 128), (30, 16), (60, 8)):
        points, centres = cloud(n, d, 20, seed=n)
        exact = project_out(points, centres, 1.0, "exact")
        greedy = project_out(points, centres, 1.0, "greedy")
        assert bool((exact.distance <= greedy.distance + 1e-6).all())
        assert_feasible(exact)


def test_both_solvers_of_the_relaxation_agree():
    points, centres = cloud(25, 40, 8, seed=5)
    r = points[:, None] - centres
    slow = penalty_path(r @ r.mT, 1 - r.square().sum(2))
    cross = points @ centres.T - points.square().sum(1, keepdim=True) / 2
    fast = block_pivot(centres @ centres.T, cross)
    assert bool(fast.done.all()) and bool(slow.done.all())
    assert torch.equal(slow.active, fast.active)
    assert torch.allclose(slow.mu, fast.mu, atol=1e-8)


def test_degenerate_concepts_get_a_feasible_point_and_an_honest_status():
    grid = torch.cartesian_prod(*[torch.tensor([0.0, 0.7, 1.4], dtype=F64)] * 4)
    points = torch.cat([grid[:4], grid.mean(0)[None], grid[:3] + 1e-9])
    generator = torch.Generator().manual_seed(0)
    blob = torch.randn(20, 25, generator=generator, dtype=F64) * 0.05
    twins = torch.cat([blob, blob + 1e-10])
    share = torch.rand(3, 20, generator=generator, dtype=F64) ** 10
    inside = (share / share.sum(1, keepdim=True)) @ blob
    for o, c in ((points, grid), (inside, blob), (inside, twins)):
        result = project_out(o, c, 1.0)
        assert float(result.margins.min()) >= -1e-8
        for gap, status in zip(result.gap.tolist(), result.status, strict=True):
            assert status == "bounded" or gap <= 1e-6
    tight = project_out(inside, blob, 1.0)  # fewer concepts than dimensions
    assert float(tight.gap.max()) <= 1e-3


def test_nearly_in_the_hull_is_still_exact():
    centres = tensor([0.6, 0, 0], [-0.6, 0, 0])
    for height in (1e-3, 1e-6, 1e-9, 1e-12):
        result = project_out([0.05, height, 0.0], centres, 1.0)
        best = math.hypot(0.05, 0.8 - height)
        assert float(result.distance) == pytest.approx(best, abs=1e-9)
        assert result.status == "ok"


# Batches, gradients, bad input


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_what_single_points_give(method):
    points, centres = cloud(20, 30, 7, seed=6)
    points[3] += 5.0
    batch = project_out(points, centres, 1.0, method)
    for i, point in enumerate(points):
        single = project_out(point, centres, 1.0, method)
        assert torch.allclose(single.point, batch.point[i], atol=1e-10)
        assert single.status == batch.status[i] == batch.row(i).status


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 3, 15])
def test_gradient_against_finite_differences(method, n):
    points, centres = cloud(n, 24, 2, seed=7)
    points[1] += 3.0  # one row moves, one does not

    def moved(p):
        return project_out(p, centres, 1.0, method).point

    points.requires_grad_(True)
    assert torch.autograd.gradcheck(moved, points, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"radius": math.inf}, "radius is inf"),
        ({"method": "fast"}, "'exact', 'greedy'"),
        ({"centres": torch.zeros(2, 4)}, "centres have shape (2, 4)"),
        ({"centres": torch.zeros(0, 3)}, "n >= 1"),
        ({"point": torch.zeros(2, 2, 3)}, "point has shape"),
        ({"point": torch.tensor([0.0, math.nan, 0.0])}, "point holds NaN"),
        ({"centres": torch.full((1, 3), math.inf)}, "centres holds NaN or infinite"),
    ],
)
def test_bad_input_is_refused_with_the_value_seen(change, words):
    call = {"point": torch.zeros(3), "centres": torch.ones(2, 3), "radius": 1.0}
    with pytest.raises(ValueError) as error:
        project_out(**(call | change))
    assert words in str(error.value)


def test_float32_input_is_solved_in_float64():
    points, centres = cloud(5, 9, 3, seed=8)
    result = project_out(points.float(), centres.float(), 1.0)
    assert result.point.dtype == F64
    assert_feasible(result)
