"""`project_out` on drawn instances: what holds for every point, centres and radius.

Coordinates are quarters, so that points on centres, points on spheres, equal centres
and centres on a line are drawn often; in general position they would never be.
"""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from properties import stable

from safeedit.edits import project_out

PROVED = ("inactive", "ok", "degenerate")  # the optimum is known, and so its distance
NEAR = 1e-6  # in units of the radius


@st.composite
def instances(draw, width: int | None = None, most: int = 6):
    """A point, centres and a radius; the width is drawn unless it is given."""
    width, count = width or draw(st.integers(1, 4)), draw(st.integers(1, most))
    number = st.integers(-8, 8).map(lambda n: n / 4)
    row = st.lists(number, min_size=width, max_size=width)
    rows = draw(st.lists(row, min_size=count, max_size=count))
    point = torch.tensor(draw(row), dtype=torch.float64)
    radius = draw(st.sampled_from([0.25, 0.5, 1.0, 1.75, 3.0]))
    return point, torch.tensor(rows, dtype=torch.float64), radius


def depth(point, centres, radius) -> float:
    """How far the point is inside the ball that it is deepest in, >= 0."""
    return max(0.0, radius - float((centres - point).norm(dim=1).min()))


ON_CENTRE = (torch.zeros(2).double(), torch.zeros(1, 2).double(), 1.0)
SAME_TWICE = (torch.tensor([0.5, 0]).double(), torch.zeros(2, 2).double(), 1.0)
BETWEEN = (torch.zeros(1).double(), torch.tensor([[-1.0], [1.0]]).double(), 1.75)


@stable(60)
@given(instances())
@example(ON_CENTRE)
@example(SAME_TWICE)
@example(BETWEEN)
def test_the_result_is_outside_and_its_numbers_agree(instance):
    point, centres, radius = instance
    found = project_out(point, centres, radius)
    seen = (found.point - centres).norm(dim=1) - radius
    assert torch.allclose(found.margins, seen, rtol=0, atol=1e-9)
    assert float(seen.min()) >= -1e-8 * radius
    moved = float((found.point - point).norm())
    assert moved == pytest.approx(float(found.distance), abs=1e-9)
    assert moved >= depth(point, centres, radius) - NEAR * radius  # triangle inequality
    assert float(found.lower_bound) <= moved + 1e-12 and float(found.gap) >= 0
    inside = depth(point, centres, radius) > 1e-12
    assert (found.status == "inactive") is not inside
    if found.status == "inactive":
        assert torch.equal(found.point, point)
    if found.status in ("ok", "degenerate"):
        assert float(found.gap) <= NEAR * radius


@stable(60)
@given(instances())
@example(BETWEEN)
def test_exact_is_never_longer_than_greedy(instance):
    greedy = project_out(*instance, method="greedy")
    exact = project_out(*instance)
    radius = instance[2]
    # Greedy stops up to 1e-6 radii inside, and may then be shorter.
    assert float(greedy.margins.min()) >= -2e-6 * radius
    if float(greedy.margins.min()) >= 0:
        assert float(exact.distance) <= float(greedy.distance) + NEAR * radius


@stable(30)
@given(instances(), st.integers(0, 2**16), st.floats(0.01, 100))
def test_motions_of_space_change_nothing(instance, seed, scale):
    point, centres, radius = instance
    generator = torch.Generator().manual_seed(seed)
    width = len(point)
    shift = torch.randn(width, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(
        torch.randn(width, width, generator=generator, dtype=torch.float64)
    )
    order = torch.randperm(len(centres), generator=generator)
    first = project_out(point, centres, radius)
    for name, move, factor, chosen in (
        ("translation", lambda x: x + shift, 1.0, slice(None)),
        ("scaling", lambda x: x * scale, scale, slice(None)),
        ("rotation", lambda x: x @ turn.T, 1.0, slice(None)),
        ("permutation", lambda x: x, 1.0, order),
    ):
        other = project_out(move(point), move(centres)[chosen], radius * factor)
        if first.status in PROVED and other.status in PROVED:
            gap = abs(float(other.distance) / factor - float(first.distance))
            assert gap <= 1e-5 * radius, name


@stable(30)
@given(instances(), st.sampled_from(["exact", "greedy"]))
def test_what_is_outside_stays(instance, method):
    """Twice is once: the second move is no longer than rounding."""
    _, centres, radius = instance
    once = project_out(*instance, method=method)
    again = project_out(once.point, centres, radius, method=method)
    if method == "greedy":  # which stops a little inside
        assert float(again.distance) <= 1e-4 * radius
    elif once.status in PROVED:
        assert float(again.distance) <= NEAR * radius


@stable(25)
@given(st.lists(instances(width=3), min_size=1, max_size=4))
def test_a_batch_is_its_points_one_by_one(drawn):
    _, centres, radius = drawn[0]
    points = torch.stack([point for point, _, _ in drawn])
    together = project_out(points, centres, radius)
    for index, point in enumerate(points):
        alone = project_out(point, centres, radius)
        gap = float(together.distance[index] - alone.distance)
        assert abs(gap) <= NEAR * radius
