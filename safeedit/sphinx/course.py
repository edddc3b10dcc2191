"""Directives of the course: hours, plans, the map of ideas, and the capstone's rubric.

    ```{safeedit-hours} Start            minutes of the pages of one part
    ```{safeedit-hours}                  minutes of all parts
    ```{safeedit-plan}                   a timetable from a YAML list
    ```{safeedit-map} ideas              also `chapters` and `modules`
    ```{safeedit-rubric} machine         also `report`

They write Markdown from the sources at build time (`course.pages`,
`course.idea_map`), which MyST then reads like any other, so that its links are checked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ..course import chapters as course
from ..course import idea_map, pages, rubric


class _FromSources(SphinxDirective):
    """A directive whose text is made from the sources of the course."""

    optional_arguments = 1
    final_argument_whitespace = True

    def text(self, root: Path, parts: list[course.Part]) -> str:
        """The Markdown that stands in the directive's place."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """Make the text and let MyST read it.

        Raises:
            docutils' error of this directive: the course names what is not there.
        """
        self.env.note_reread()  # sources change without the page changing
        root = Path(self.env.srcdir)
        try:
            made = self.text(root, course.read_parts(root))
        except course.CourseError as error:
            raise self.error(f"{self.name}: {error}") from error
        node = nodes.Element()
        self.state.nested_parse(StringList(made.splitlines(), self.name), 0, node)
        return node.children


class Hours(_FromSources):
    """How long a part takes, or all of them."""

    def text(self, root: Path, parts: list[course.Part]) -> str:
        if self.arguments:
            return pages.part_hours(parts, self.arguments[0], root)
        return pages.all_hours(parts)


class Plan(_FromSources):
    """A timetable."""

    has_content = True

    def text(self, root: Path, parts: list[course.Part]) -> str:
        import yaml

        try:
            entries = yaml.safe_load("\n".join(self.content))
        except yaml.YAMLError as error:
            raise course.CourseError(f"the plan is no YAML: {error}") from error
        return pages.plan(entries, [page for p in parts for page in p.pages])


class Map(_FromSources):
    """Which idea, chapter or module is used where."""

    required_arguments = 1
    optional_arguments = 0

    def text(self, root: Path, parts: list[course.Part]) -> str:
        chapters = course.notebooks(parts)
        kinds: dict[str, Callable[[], str]] = {
            "ideas": lambda: idea_map.ideas_table(chapters, root),
            "chapters": lambda: idea_map.uses_table(chapters),
            "modules": lambda: idea_map.modules_table(chapters, root),
        }
        kind = self.arguments[0]
        if kind not in kinds:
            raise course.CourseError(f"{kind!r}: one of {', '.join(kinds)}")
        return kinds[kind]()


class Rubric(_FromSources):
    """The rubric of the capstone."""

    required_arguments = 1
    optional_arguments = 0

    def text(self, root: Path, parts: list[course.Part]) -> str:
        kinds = {"machine": rubric.machine_table, "report": rubric.report_table}
        kind = self.arguments[0]
        if kind not in kinds:
            raise course.CourseError(f"{kind!r}: one of {', '.join(kinds)}")
        return kinds[kind]()


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.add_directive("safeedit-hours", Hours)
    app.add_directive("safeedit-plan", Plan)
    app.add_directive("safeedit-map", Map)
    app.add_directive("safeedit-rubric", Rubric)
