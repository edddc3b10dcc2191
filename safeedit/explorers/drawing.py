"""A scene of the plane as SVG: balls, the way of greedy, the exact way.

The same picture is drawn, and can be moved, by `book/_static/explorer-geometry.js`.
Colours are those of the book's figures; text takes the colour of the page, so that it
is read in light and dark.
"""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import ArrayLike

from safeedit.plots import color

from .geometry import Solved, describe
from .page import tag

WIDTH, HEIGHT = 560, 380  # units of the picture
MARGIN = 0.12  # of the balls' extent, left free on each side


class View:
    """Maps the plane into a picture: all balls are inside, up is up."""

    def __init__(self, centres: np.ndarray, radius: float) -> None:
        low, high = centres.min(0) - radius, centres.max(0) + radius
        pad = MARGIN * (high - low).max()
        size = high - low + 2 * pad
        self.scale = float(min(WIDTH / size[0], HEIGHT / size[1]))
        self.middle = (low + high) / 2

    def __call__(self, point: ArrayLike) -> tuple[float, float]:
        x, y = (np.asarray(point) - self.middle) * self.scale
        return round(WIDTH / 2 + float(x), 2), round(HEIGHT / 2 - float(y), 2)


def svg(solved: Solved) -> str:
    """The picture of a solved scene; well-formed, with a text for screen readers."""
    scene = solved.scene
    view = View(np.array(scene.centres), scene.radius)
    parts = []
    for centre in scene.centres:
        x, y = view(centre)
        parts.append(_circle(x, y, scene.radius * view.scale, color("greedy"), 0.15))
    for number, centre in enumerate(scene.centres, start=1):
        x, y = view(centre)
        cross = f"M{x - 5} {y}h10M{x} {y - 5}v10"
        parts.append(tag("path", d=cross, stroke=color("greedy"), stroke_width=2))
        parts.append(_label(x, y, f"c{number}"))
    way = [view(point) for point in solved.path]
    if not solved.stopped:
        parts.append(_line([way[0], view(solved.greedy)], "greedy", "3 5"))
    parts.append(_line(way, "greedy"))
    parts += [_circle(x, y, 3, color("greedy")) for x, y in way[1:]]
    parts.append(_line([way[0], view(solved.exact)], "exact"))
    parts.append(_circle(*view(solved.exact), 5, color("exact")))
    parts.append(_circle(*way[0], 6, "currentColor"))
    parts.append(_label(*way[0], "o"))
    return tag(
        "svg",
        "\n".join(parts),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        width="100%",
        role="img",
        aria_label=f"Balls around concepts. {describe(solved)}",
        style=f"max-width: {WIDTH}px",
    )


def _circle(x: float, y: float, r: float, fill: str, opacity: float = 1.0) -> str:
    return tag("circle", cx=x, cy=y, r=round(r, 2), fill=fill, fill_opacity=opacity)


def _line(
    points: list[tuple[float, float]], method: str, dashes: str | None = None
) -> str:
    return tag(
        "polyline",
        points=" ".join(f"{x},{y}" for x, y in points),
        fill="none",
        stroke=color(method),
        stroke_width=2.5 if method == "exact" else 1.5,
        stroke_dasharray=dashes,
    )


def _label(x: float, y: float, text: str) -> str:
    return tag(
        "text", escape(text), x=x + 8, y=y - 8, fill="currentColor", font_size=13
    )
