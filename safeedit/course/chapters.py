"""The course as data: parts, chapters, exercises and minutes, read from their sources.

Nothing here is typed twice. Minutes of exercises stand in their boxes and nowhere else;
the minutes to read a chapter are counted from its source:

    reading = words / 80 + formulas * 1 + cells * 1/2   (minutes)

with the words of the prose, the displayed formulas, and the code cells whose code or
output a reader sees. The rate is slow on purpose: it is that of mathematical text, not
of a novel. Boxes of exercises count with their own minutes only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..provenance import ROOT

WORDS_PER_MINUTE = 80
MINUTES_PER_FORMULA = 1.0
MINUTES_PER_CELL = 0.5
UNSEEN = {"remove-cell", "exercise", "solution", "check"}  # tags of cells not counted

_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```[ \t]*$\n?", re.M | re.S)
_TAGS = re.compile(r"^:tags: \[(.*)\]$", re.M)
_BOX = re.compile(r"^:::\{admonition\} (.+?)\n(.*?)^:::[ \t]*$\n?", re.M | re.S)
_TITLE = re.compile(r"^(?:\(([\w-]+)\)=\n+)?# (.+)$", re.M)
_HEADING = re.compile(r"^(#{2,3}) (.+)$", re.M)
_FORMULA = re.compile(r"^\$\$.*?\$\$|^```\{math\}.*?^```", re.M | re.S)
_EXERCISE = re.compile(
    r"Exercise (\d+): (.+) \(difficulty (\d)/5, importance (\d)/5, (\d+) minutes?\)"
)
_IMPORT = re.compile(r"^\s*from safeedit([\w.]*) import ([^(\n]+|\([^)]+\))", re.M)


class CourseError(ValueError):
    """Something in the course names what is not there, with what is."""


@dataclass(frozen=True)
class Exercise:
    """What the box of an exercise says of it."""

    number: int
    title: str  # "by hand", "by code", ...
    difficulty: int  # of 5
    importance: int  # of 5
    minutes: int


@dataclass(frozen=True)
class Chapter:
    """A page of the course: the source of a notebook, or a page of prose."""

    path: Path  # <root>/notebooks/src/NN_topic.md or <root>/book/page.md
    text: str  # without the YAML header

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def code(self) -> str:
        """What readers call a notebook: "02", "T1"; a page's name otherwise."""
        return self.name.partition("_")[0]

    @property
    def is_notebook(self) -> bool:
        return self.path.parent.name == "src"

    @property
    def document(self) -> str:
        """Sphinx's name of the page, relative to the repository."""
        folder = "notebooks" if self.is_notebook else "book"
        return f"{folder}/{self.name}"

    @cached_property
    def title(self) -> str:
        found = _TITLE.search(self.prose)
        if not found:
            raise CourseError(f"{self.path} has no title: want a line '# Title'")
        return found[2].strip()

    @cached_property
    def label(self) -> str | None:
        """The label above the title, which {ref} can name."""
        found = _TITLE.search(self.prose)
        return found[1] if found else None

    @cached_property
    def cells(self) -> list[tuple[frozenset[str], str]]:
        """Tags and code of every code cell."""
        cells = []
        for body in _CELL.findall(self.text):
            tags = _TAGS.search(body)
            names = tags[1].replace(" ", "").split(",") if tags else []
            cells.append((frozenset(names), _TAGS.sub("", body)))
        return cells

    @cached_property
    def prose(self) -> str:
        """The text without code cells and comments."""
        return re.sub(r"<!--.*?-->", "", _CELL.sub("", self.text), flags=re.S)

    @cached_property
    def boxes(self) -> dict[str, str]:
        """Title and body of every admonition."""
        return dict(_BOX.findall(self.prose))

    def _bullets(self, title: str) -> list[str]:
        body = self.boxes.get(title, "")
        body = re.sub(r"\n +", " ", body)  # join continued lines
        return [line[2:].strip() for line in body.splitlines() if line[:2] == "- "]

    @property
    def learn(self) -> list[str]:
        """What the chapter says will be learnt."""
        return self._bullets("What you will learn")

    @property
    def takeaway(self) -> list[str]:
        return self._bullets("Take-away")

    @cached_property
    def exercises(self) -> list[Exercise]:
        """The exercises of a notebook, in its order.

        Raises:
            CourseError: a box that begins like an exercise and lacks a figure.
        """
        found = []
        for title in self.boxes:
            match = _EXERCISE.fullmatch(title.strip())
            if match:
                number, name, *rest = match.groups()
                found.append(Exercise(int(number), name, *map(int, rest)))
            elif title.startswith("Exercise"):
                raise CourseError(
                    f"{self.path}: the box {title!r} is no exercise; want 'Exercise 1: "
                    "by hand (difficulty 2/5, importance 3/5, 10 minutes)'"
                )
        return found

    @property
    def exercise_minutes(self) -> int:
        return sum(exercise.minutes for exercise in self.exercises)

    @property
    def reading_minutes(self) -> int:
        """Minutes to read the page, rounded up to five."""
        text = _BOX.sub(_without_exercise, self.prose)
        return _reading(text, len([1 for t, _ in self.cells if not t & UNSEEN]))

    @cached_property
    def headings(self) -> dict[str, str]:
        """Anchor of every section -> its title, in the order of the page."""
        return {anchor(h): h.strip() for _, h in _HEADING.findall(self.prose)}

    def section(self, name: str) -> str:
        """The title of a section, by its anchor.

        Raises:
            CourseError: the page has no such section.
        """
        if name not in self.headings:
            raise CourseError(
                f"{self.document} has no section #{name}; it has "
                + ", ".join(f"#{a}" for a in self.headings)
            )
        return self.headings[name]

    def section_minutes(self, name: str) -> int:
        """Minutes to read one section, with the ones below it, rounded up to five."""
        title = self.section(name)
        hits = list(_HEADING.finditer(self.text))
        here = next(h for h in hits if h[2].strip() == title)
        after = [h.start() for h in hits if h.start() > here.start()]
        deeper = {h.start() for h in hits if len(h[1]) > len(here[1])}
        end = next((at for at in after if at not in deeper), len(self.text))
        part = Chapter(self.path, self.text[here.start() : end])
        return part.reading_minutes

    @cached_property
    def modules(self) -> list[str]:
        """Modules of the package that the code imports, such as `safeedit.metrics`."""
        found = set()
        for _, code in self.cells:
            for where, names in _IMPORT.findall(code):
                if where:
                    found.add(f"safeedit{where}")
                    continue
                words = re.findall(r"\w+", names)
                found |= {f"safeedit.{word}" for word in words}
        return sorted(found)

    @cached_property
    def mentions(self) -> set[str]:
        """Labels of other pages and formulas that the text refers to."""
        return set(re.findall(r"\{(?:ref|eq)\}`(?:[^`<]*<)?([\w-]+)>?`", self.prose))

    @cached_property
    def labels(self) -> set[str]:
        """Labels that the page defines, of sections and formulas."""
        formulas = re.findall(r"\$\$ \(([\w-]+)\)", self.prose)
        sections = re.findall(r"^\(([\w-]+)\)=$", self.prose, re.M)
        named = re.findall(r"^:label: ([\w-]+)$", self.prose, re.M)
        return {*formulas, *sections, *named}

    def link(self, text: str | None = None, section: str | None = None) -> str:
        """A link to the page, or to one of its sections, in MyST.

        Args:
            text: what is shown; default: the title of the page or section.
            section: anchor of a section, which must exist.
        """
        if section is None:
            return f"{{doc}}`{text or self.title} </{self.document}>`"
        ending = ".ipynb" if self.is_notebook else ".md"
        shown = text or self.section(section)
        self.section(section)
        return f"[{shown}](/{self.document}{ending}#{section})"


@dataclass(frozen=True)
class Part:
    """A part of the book: what stands under one caption of the contents."""

    caption: str
    pages: tuple[Chapter, ...]

    @property
    def chapters(self) -> list[Chapter]:
        """The notebooks of the part."""
        return [page for page in self.pages if page.is_notebook]

    @property
    def content(self) -> list[Chapter]:
        """Its pages but for the introduction and the quiz."""
        return [p for p in self.pages if not p.name.startswith(("part-", "quiz-"))]

    @property
    def minutes(self) -> int:
        """Reading and exercises of all its pages, introduction and quiz left out."""
        return sum(p.reading_minutes + p.exercise_minutes for p in self.content)


def anchor(heading: str) -> str:
    """The anchor that MyST gives a heading: GitHub's form."""
    plain = re.sub(r"[`*]", "", heading.strip())
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def _without_exercise(box: re.Match) -> str:
    return "" if box[1].startswith("Exercise") else box[0]


def _reading(text: str, cells: int) -> int:
    formulas = len(_FORMULA.findall(text))
    words = len(re.findall(r"\S*\w\S*", _FORMULA.sub("", text)))
    minutes = words / WORDS_PER_MINUTE
    minutes += formulas * MINUTES_PER_FORMULA + cells * MINUTES_PER_CELL
    return max(5, 5 * math.ceil(minutes / 5))


def read_chapter(path: Path) -> Chapter:
    """A page from its source.

    Raises:
        CourseError: no such file.
    """
    if not path.is_file():
        raise CourseError(f"there is no page {path}; correct book/_toc.yml")
    text = path.read_text(encoding="utf-8")
    return Chapter(path, re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S))


def read_parts(root: Path = ROOT) -> list[Part]:
    """The parts of the book, in the order of its contents.

    A group of pages without a caption goes on with the part before it: that is how an
    introduction and a quiz stay without a number in a part whose chapters have one.
    """
    import yaml  # of the extra "book"

    toc = yaml.safe_load((root / "book" / "_toc.yml").read_text(encoding="utf-8"))
    groups: list[tuple[str, list[Chapter]]] = []
    for group in toc["parts"]:
        if "caption" in group or not groups:
            groups.append((group.get("caption", ""), []))
        for entry in group["chapters"]:
            folder, name = entry["file"].split("/")
            source = root / ("notebooks/src" if folder == "notebooks" else folder)
            groups[-1][1].append(read_chapter(source / f"{name}.md"))
    return [Part(caption, tuple(pages)) for caption, pages in groups]


def notebooks(parts: Sequence[Part]) -> list[Chapter]:
    """All notebooks in the order in which the book is read."""
    return [chapter for part in parts for chapter in part.chapters]


def find(pages: Sequence[Chapter], name: str) -> Chapter:
    """A page by its code ("02"), its name or its label.

    Raises:
        CourseError: none, or more than one.
    """
    hits = [p for p in pages if name in (p.code, p.name, p.label)]
    if len(hits) != 1:
        allowed = ", ".join(p.name for p in pages)
        raise CourseError(f"{name!r} names {len(hits)} pages; allowed: {allowed}")
    return hits[0]


def find_part(parts: Sequence[Part], caption: str) -> Part:
    """A part by its caption.

    Raises:
        CourseError: no such part.
    """
    for part in parts:
        if part.caption == caption:
            return part
    allowed = "; ".join(part.caption for part in parts)
    raise CourseError(f"there is no part {caption!r}; allowed: {allowed}")


def spelled(minutes: float) -> str:
    """Minutes as people say them: "45 min", "2 h", "2 h 30 min"."""
    hours, rest = divmod(round(minutes), 60)
    words = [f"{hours} h"] if hours else []
    return " ".join(words + ([f"{rest} min"] if rest or not hours else []))


def read_status(root: Path, chapter: Chapter) -> float | None:
    """Seconds of the run that a notebook shows, or None if it has not been run."""
    import json

    folder = root / "results" / "status"
    default = re.search(r'^model_name: str = "([^"]+)"', chapter.text, re.M)
    path = folder / f"{chapter.name}.{default[1] if default else ''}.json"
    if not path.is_file():
        return None
    status: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return float(status["seconds"])
