"""The geometry of PCR in the plane, to move about.

On the page the point, the centres and the radius are dragged, or moved by arrow keys,
and a script solves. In Jupyter they have sliders, and `project_out` solves.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from html import escape

import ipywidgets

from .drawing import svg
from .geometry import CASES, MOST, Scene, Solved, describe, solve, spare_direction
from .page import Explorer, tag

TITLE = "PCR in the plane"
REACH = 4.0  # sliders of coordinates go from -REACH to REACH


class GeometryExplorer(Explorer):
    """One scene to begin with, and others to choose.

    Args:
        scene: shown first; default: the first of `cases`.
        cases: name -> scene; the page's table says how both methods do on each.
    """

    def __init__(
        self, scene: Scene | None = None, cases: dict[str, Scene] | None = None
    ) -> None:
        self.cases = dict(CASES if cases is None else cases)
        if scene is None and not self.cases:
            raise ValueError("there is no scene and no case; give at least one")
        self.scene = scene or next(iter(self.cases.values()))

    def summary(self) -> str:
        """The first scene in words."""
        return describe(solve(self.scene))

    def page(self) -> str:
        """The first scene as a picture, and a table of all cases."""
        solved = solve(self.scene)
        head = "".join(
            tag("th", text, scope="col")
            for text in ("case", "greedy", "exact", "what happens")
        )
        lines = [_case_row(name, solve(case)) for name, case in self.cases.items()]
        table = tag(
            "table",
            tag("thead", tag("tr", head)) + "\n" + tag("tbody", "\n".join(lines)),
        )
        scroll = tag(
            "div",
            table,
            class_="safeedit-scroll",
            tabindex=0,
            role="region",
            aria_label=f"{TITLE}: table of cases",
        )
        details = tag("summary", f"All {len(self.cases)} cases as a table") + scroll
        return tag(
            "div",
            tag("div", svg(solved), class_="safeedit-picture")
            + tag("p", escape(describe(solved)), class_="safeedit-says")
            + tag("details", details),
            class_="safeedit-explorer",
            data_explorer="geometry",
            data_scene=_as_json(self.scene),
            data_spare=json.dumps(spare_direction()),
            data_most=MOST,
            role="group",
            aria_label=TITLE,
        )

    def widget(self) -> ipywidgets.Widget:
        """Sliders for everything, solved by `project_out` at each move."""
        return _Live(self).box


class _Live:
    """Widgets, and the scene that they stand for."""

    def __init__(self, owner: GeometryExplorer) -> None:
        self.cases = {"as it is": owner.scene, **owner.cases}
        self.scene = owner.scene
        self.quiet = False  # while the widgets follow the scene
        self.case = ipywidgets.Dropdown(options=list(self.cases), description="case")
        self.radius = _slider("radius", 0.2, 2.0)
        self.x, self.y = _slider("point x"), _slider("point y")
        self.which = ipywidgets.Dropdown(description="centre")
        self.cx, self.cy = _slider("centre x"), _slider("centre y")
        self.more = ipywidgets.Button(description="add a centre")
        self.less = ipywidgets.Button(description="remove it")
        self.shown = ipywidgets.HTML()
        self.box = ipywidgets.VBox(
            [
                self.case,
                ipywidgets.HBox([self.radius, self.x, self.y]),
                ipywidgets.HBox([self.which, self.cx, self.cy]),
                ipywidgets.HBox([self.more, self.less]),
                self.shown,
            ]
        )
        self.case.observe(self._choose, "value")
        self.which.observe(lambda _: self._follow(), "value")
        for knob in (self.radius, self.x, self.y, self.cx, self.cy):
            knob.observe(self._move, "value")
        self.more.on_click(self._add)
        self.less.on_click(self._remove)
        self._follow()

    def _choose(self, _: object) -> None:
        self.scene = self.cases[self.case.value]
        self._follow()

    def _move(self, _: object) -> None:
        if self.quiet:
            return
        centres = list(self.scene.centres)
        centres[self.which.value] = (self.cx.value, self.cy.value)
        point = (self.x.value, self.y.value)
        self.scene = Scene(point, tuple(centres), self.radius.value)
        self._show()

    def _add(self, _: object) -> None:
        if len(self.scene.centres) < MOST:
            x, y = self.scene.centres[-1]
            step = 0.5 * self.scene.radius
            centres = (*self.scene.centres, (x + step, y))
            self.scene = replace(self.scene, centres=centres)
            self._follow(len(centres) - 1)

    def _remove(self, _: object) -> None:
        if len(self.scene.centres) > 1:
            centres = list(self.scene.centres)
            del centres[self.which.value]
            self.scene = replace(self.scene, centres=tuple(centres))
            self._follow()

    def _follow(self, which: int | None = None) -> None:
        """Set the widgets to the scene."""
        self.quiet, count = True, len(self.scene.centres)
        wanted = self.which.value if which is None else which
        options = [(f"c{i + 1}", i) for i in range(count)]
        if self.which.options != tuple(options):
            self.which.options = options
        self.which.value = min(wanted or 0, count - 1)
        self.radius.value = self.scene.radius
        self.x.value, self.y.value = self.scene.point
        self.cx.value, self.cy.value = self.scene.centres[self.which.value]
        self.quiet = False
        self._show()

    def _show(self) -> None:
        solved = solve(self.scene)
        self.shown.value = svg(solved) + tag("p", escape(describe(solved)))


def _slider(name: str, low: float = -REACH, high: float = REACH):
    return ipywidgets.FloatSlider(
        min=low, max=high, step=0.05, description=name, readout_format=".2f"
    )


def _case_row(name: str, solved: Solved) -> str:
    greedy = f"{solved.greedy_distance:.2f}"
    cells = [
        tag("th", escape(name), scope="row"),
        tag("td", greedy if solved.stopped else f"{greedy} (by a ray)"),
        tag("td", f"{solved.exact_distance:.2f}"),
        tag("td", escape(describe(solved))),
    ]
    return tag("tr", "".join(cells), data_scene=_as_json(solved.scene))


def _as_json(scene: Scene) -> str:
    return json.dumps(asdict(scene))
