"""A point, some balls in the plane, and the two ways out of them.

The results are those of `project_out`. It tells where its greedy method ends but not
how it got there, so the steps are made here again by the same rule: `solve` compares
the two ends and raises if they differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from safeedit.edits import project_out

TOLERANCE = 1e-6  # greedy stops when every margin is >= -TOLERANCE radii
ON_CENTRE = 1e-12  # nearer to a centre than this, in radii, no direction leads away
CYCLE = 5e-3  # a round of a cycle closes to this, in radii
MOST = 8  # centres that an explorer handles


@dataclass(frozen=True)
class Scene:
    """A point to move out of balls of one radius around some centres."""

    point: tuple[float, float]
    centres: tuple[tuple[float, float], ...]
    radius: float = 1.0

    def __post_init__(self) -> None:
        shape = np.shape(self.centres)
        if np.shape(self.point) != (2,) or len(shape) != 2 or shape[1] != 2:
            raise ValueError(
                f"point has shape {np.shape(self.point)} and centres {shape}; give "
                "(2,) and (n, 2)"
            )
        if not 1 <= shape[0] <= MOST:
            raise ValueError(f"got {shape[0]} centres; give 1 to {MOST}")
        numbers = [*self.point, *np.ravel(self.centres), self.radius]
        if not np.isfinite(numbers).all() or self.radius <= 0:
            raise ValueError(
                f"got {self}; give finite numbers, and a radius that is > 0"
            )
        points = tuple((float(x), float(y)) for x, y in self.centres)
        object.__setattr__(self, "centres", points)
        object.__setattr__(self, "point", (float(self.point[0]), float(self.point[1])))
        object.__setattr__(self, "radius", float(self.radius))


def _triangle(size: float) -> tuple[tuple[float, float], ...]:
    angles = [math.pi / 2 + 2 * math.pi * k / 3 for k in range(3)]
    return tuple((size * math.cos(a), size * math.sin(a)) for a in angles)


CASES: dict[str, Scene] = {
    "two-cycle": Scene((0.0, 0.0), ((-0.6, 0.0), (0.6, 0.0))),
    "lands on a centre": Scene((0.0, 0.0), ((-0.5, 0.0), (0.5, 0.0))),
    "stops too far": Scene((0.1, 0.0), ((0.0, 0.0), (0.9, 0.0))),
    "a row of five": Scene((0.1, 0.0), tuple((0.9 * k, 0.0) for k in range(5))),
    "three-cycle": Scene((0.1, 0.05), _triangle(0.8)),
}


@dataclass(frozen=True)
class Solved:
    """Both ways out of a scene's balls, in its units.

    Attributes:
        path: what greedy visits, start first, shape (steps + 1, 2).
        stopped: whether greedy stopped by itself.
        cycle: number of steps of the cycle that greedy settles into; 0: none is seen.
        on_centre: whether greedy started a step on a centre.
        greedy: where `project_out(method="greedy")` ends: where the path does, or at
            the end of a ray.
        exact: where `project_out(method="exact")` ends.
    """

    scene: Scene
    path: np.ndarray = field(repr=False)
    stopped: bool
    cycle: int
    on_centre: bool
    greedy: tuple[float, float]
    greedy_distance: float
    exact: tuple[float, float]
    exact_distance: float

    @property
    def steps(self) -> int:
        return len(self.path) - 1


def solve(scene: Scene, seed: int = 0) -> Solved:
    """Leave the balls of a scene in both ways.

    Args:
        scene: a point and the balls.
        seed: of directions that are a free choice, as in `project_out`.

    Raises:
        RuntimeError: the steps do not end where `project_out` ends.
    """
    # As tensors of float64: Python's numbers would become float32 on the way.
    point = torch.tensor(scene.point, dtype=torch.float64)
    centres = torch.tensor(scene.centres, dtype=torch.float64)
    greedy = project_out(point, centres, scene.radius, "greedy", seed=seed)
    exact = project_out(point, centres, scene.radius, "exact", seed=seed)
    path, on_centre = _greedy_path(scene, seed)
    stopped = greedy.status != "fallback"
    end = greedy.point.numpy()
    if stopped and not np.allclose(path[-1], end, atol=1e-6 * scene.radius):
        raise RuntimeError(
            f"for {scene} the steps end at {path[-1]} and project_out at {end}; the "
            "greedy rule here and in safeedit/edits/greedy.py must be the same"
        )
    return Solved(
        scene=scene,
        path=path,
        stopped=stopped,
        cycle=0 if stopped else _period(path, scene.radius),
        on_centre=on_centre,
        greedy=(float(end[0]), float(end[1])),
        greedy_distance=float(greedy.distance),
        exact=(float(exact.point[0]), float(exact.point[1])),
        exact_distance=float(exact.distance),
    )


def spare_direction(seed: int = 0) -> tuple[float, float]:
    """The unit vector that `project_out` takes where every direction is as good."""
    zero = torch.zeros(1, 2, dtype=torch.float64)
    free = project_out(zero[0], zero, 1.0, "greedy", seed=seed).displacement
    return float(free[0]), float(free[1])


def _greedy_path(scene: Scene, seed: int) -> tuple[np.ndarray, bool]:
    """Radial steps out of the nearest ball, and whether one began on a centre."""
    centres = np.array(scene.centres)
    origin = centres.mean(0)
    # In the order of project_out, which decides between equally near centres.
    balls = np.unique((centres - origin) / scene.radius, axis=0)
    place = (np.array(scene.point) - origin) / scene.radius
    path, on_centre = [place], False
    if np.linalg.norm(place - balls, axis=1).min() >= 1 - ON_CENTRE:
        return origin + scene.radius * place[None], False
    for _ in range(10 * len(balls)):
        lengths = np.linalg.norm(place - balls, axis=1)
        nearest = int(lengths.argmin())
        if lengths[nearest] >= 1 - TOLERANCE:
            break
        away = place - balls[nearest]
        if lengths[nearest] <= ON_CENTRE:
            on_centre = True
            away = place - balls.mean(0)
            if np.linalg.norm(away) <= ON_CENTRE:
                away = np.array(spare_direction(seed))
        place = balls[nearest] + away / np.linalg.norm(away)
        path.append(place)
    return origin + scene.radius * np.array(path), on_centre


def _period(path: np.ndarray, radius: float) -> int:
    """Number of steps of the cycle that the path settles into; 0 if it does not.

    A cycle is seen when the last round ends where it began, much nearer than any of
    its steps is long, and closes at least as well as the round before. (Where the
    steps shrink as well, the path is on its way to a point where it will stop.)
    """
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=1)
    end = len(path) - 1
    for steps in range(2, end // 2 + 1):
        last = np.linalg.norm(path[end] - path[end - steps])
        before = np.linalg.norm(path[end - steps] - path[end - 2 * steps])
        closes = last <= min(CYCLE * radius, lengths[-steps:].min() / 10)
        if closes and last <= before + ON_CENTRE * radius:
            return steps
    return 0


def describe(solved: Solved) -> str:
    """What happens, in words; the page's script says the same of the same scene."""
    greedy, exact = solved.greedy_distance, solved.exact_distance
    if exact == 0:
        return "The point is outside every ball: nothing moves."
    if solved.stopped:
        steps = f"{solved.steps} step" + "s" * (solved.steps != 1)
        text = f"Greedy stops after {steps} and moves {greedy:.2f}."
    elif solved.cycle:
        text = (
            f"Greedy never stops: it settles into a cycle of {solved.cycle} steps. "
            f"A ray ends it, with a move of {greedy:.2f}."
        )
    else:
        text = (
            f"Greedy has not stopped after {solved.steps} steps. "
            f"A ray ends it, with a move of {greedy:.2f}."
        )
    if solved.on_centre:
        text += " One step begins on a centre, where every direction is as good."
    text += f" The exact solution moves {exact:.2f}"
    if greedy / exact >= 1.005:
        return f"{text}: greedy goes {greedy / exact:.2f} times as far."
    return f"{text}, as far as greedy."
