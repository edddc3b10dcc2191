"""Slides from an executed notebook: what it says, without its code.

    heading          -> a slide, with the first sentence of each paragraph below it and
                        the displayed formulas; the whole paragraph is the note
    figure or table  -> a slide of its own, with its caption and the first sentence that
                        reads it; the rest of the reading is the note
    boxes            -> a slide for what will be learnt, for each remark, for the
                        exercises together (without solutions), and for the take-away

`safeedit.course.slides_page` makes one HTML file of them that needs nothing beside it.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ..provenance import ROOT
from ..workflow.editions import tags
from .chapters import CourseError, read_chapter
from .slides_text import Writer

ROOM = 7  # lines of a slide of text; a formula takes two
SHORT = 45  # letters; a shorter first sentence gets the next one beside it


@dataclass
class Slide:
    """One slide; all fields are HTML."""

    title: str
    kind: str = "text"  # "title" | "text" | "figure" | "table"
    body: list[str] = field(default_factory=list)
    caption: str = ""
    reading: str = ""  # of a figure or table: what to see in it
    notes: list[str] = field(default_factory=list)
    size: int = 0  # lines of the body


def read_slides(path: Path, root: Path = ROOT) -> list[Slide]:
    """The slides of an executed notebook.

    Args:
        path: a student edition, `notebooks/NN_topic.ipynb`.
        root: the repository, whose titles and bibliography the text refers to.

    Raises:
        CourseError: no such notebook, or one without a title.
    """
    if not path.is_file():
        raise CourseError(
            f"there is no executed notebook {path}. Next step: make notebooks"
        )
    node = nbformat.read(path, as_version=4)
    text = "\n\n".join(c.source for c in node.cells if c.cell_type == "markdown")
    maker = _Maker(Writer(root, text))
    for cell in node.cells:
        if cell.cell_type == "markdown":
            maker.markdown(cell.source)
        elif not {"remove-cell", "solution", "check"} & set(tags(cell)):
            maker.outputs(cell)
    slides = maker.done()
    if not slides or slides[0].kind != "title":
        raise CourseError(f"{path} does not begin with a title '# ...'")
    return slides


class _Maker:
    """Goes through the cells of one notebook and collects slides."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.slides: list[Slide] = []
        self.exercises: list[str] = []
        self.title = ""
        self.uncaptioned: list[Slide] = []  # figures and tables of the last cells
        self.is_reading = False  # whether the next paragraph reads a figure

    def markdown(self, source: str) -> None:
        for block in blocks(source):
            if block.startswith("<!--"):
                self.is_reading = "reading" in block
                block = re.sub(r"<!--.*?-->\s*", "", block, flags=re.S)
            if block:
                self._block(block)

    def _block(self, block: str) -> None:
        box = re.match(r":::\{admonition\} ([^\n]+)\n(.*?)\n?:::$", block, re.S)
        heading = re.match(r"(#{1,3}) ([^\n]+)$", block)
        if re.fullmatch(r"\([\w-]+\)=", block):
            return
        if box:
            self._box(box[1].strip(), re.sub(r"^:\w+:.*\n", "", box[2], flags=re.M))
        elif heading:
            self._heading(len(heading[1]), self.writer.inline(heading[2]))
        elif self.uncaptioned and is_caption(block):
            caption = self.writer.inline(block.strip("*"))
            for slide in self.uncaptioned:
                slide.caption = caption
            self.uncaptioned = []
        elif block.startswith("$$"):
            self._text(self.writer.formula(block), 2)
        elif block.startswith("|"):
            rows = block.count("\n")
            shown = self.writer.block(block)
            self.slides.append(Slide(self.title, "table", [shown], size=rows))
        else:
            self._paragraph(block)

    def _heading(self, level: int, title: str) -> None:
        self.title, self.uncaptioned, self.is_reading = title, [], False
        self.slides.append(Slide(title, "title" if level == 1 else "text"))

    def _box(self, title: str, body: str) -> None:
        if title.startswith("Exercise"):
            name = re.sub(r"difficulty \d/5, importance \d/5, ", "", title)
            task = self.writer.inline(first_sentence(body))
            self.exercises.append(f"<b>{self.writer.inline(name)}.</b> {task}")
        else:
            shown = self.writer.block(body)
            slide = Slide(self.writer.inline(title), "text", [shown], size=ROOM)
            self.slides.append(slide)

    def _paragraph(self, block: str) -> None:
        whole = self.writer.block(block)
        is_list = re.match(r"([-*]|\d+\.) ", block)
        last = self.slides[-1] if self.slides else Slide("")
        is_shown = last.kind in ("figure", "table") and last.title == self.title
        if block.startswith("**Further reading"):
            last.notes.append(whole)
        elif not is_list and is_shown and (self.is_reading or not last.reading):
            self.is_reading = False
            if not last.reading:
                last.reading = self.writer.inline(first_sentence(block))
            last.notes.append(whole)
        elif is_list:
            self._text(whole, block.count("\n") + 1)
        else:
            shown = f"<p>{self.writer.inline(first_sentence(block))}</p>"
            self._text(shown, 1)
            self.slides[-1].notes.append(whole)

    def _text(self, shown: str, lines: int) -> None:
        last = self.slides[-1] if self.slides else None
        if last is None or last.kind not in ("text", "title") or last.size >= ROOM:
            last = Slide(self.title)
            self.slides.append(last)
        last.body.append(shown)
        last.size += lines

    def outputs(self, cell: NotebookNode) -> None:
        """A slide for each picture and each table that a cell shows."""
        made = []
        for output in cell.outputs:
            data = output.get("data", {})
            found = _picture(data) or _table(data)
            if found:
                kind, shown, rows = found
                made.append(Slide(self.title, kind, [shown], size=rows))
        if made:
            self.slides += made
            self.uncaptioned = made

    def done(self) -> list[Slide]:
        """The slides in order; a lone sentence goes to the figure beside it."""
        kept: list[Slide] = []
        for index, slide in enumerate(self.slides):
            after = self.slides[index + 1] if index + 1 < len(self.slides) else None
            if slide.kind == "figure":
                _describe(slide)
            if slide.kind != "text" or len(slide.body) > 1 or slide.size > 1:
                kept.append(slide)
                continue
            shown = ("figure", "table")
            if after and after.kind in shown and after.title == slide.title:
                after.notes = slide.notes + after.notes
                if slide.body and not after.reading:
                    after.reading = re.sub("</?p>", "", slide.body[0])
            elif kept and kept[-1].kind in shown and kept[-1].title == slide.title:
                kept[-1].notes += slide.notes
            elif slide.body:
                kept.append(slide)
        if self.exercises:
            items = "".join(f"<li>{exercise}</li>" for exercise in self.exercises)
            slide = Slide("Exercises", body=[f"<ul>{items}</ul>"])
            is_last = bool(kept) and kept[-1].title == "Take-away"
            kept.insert(len(kept) - is_last, slide)
        return kept


def _describe(slide: Slide) -> None:
    """Give the picture of a slide its caption as alternative text."""
    words = html.unescape(re.sub(r"<[^>]+>", "", slide.caption or slide.title))
    alt = html.escape(words, quote=True)
    slide.body = [slide.body[0].replace('alt=""', f'alt="{alt}"')]


def blocks(source: str) -> Iterator[str]:
    """Paragraphs, boxes, formulas, headings and lists of a Markdown text, in order."""
    waiting: list[str] = []
    fence = ""  # what ends the block
    for line in [*source.splitlines(), ""]:
        if fence:
            waiting.append(line)
            ended = line == fence if fence == ":::" else line.startswith(fence)
            if ended or (fence == "$$" and re.search(r"\$\$( \([\w-]+\))?$", line)):
                yield "\n".join(waiting)
                waiting, fence = [], ""
            continue
        starts = line.startswith((":::", "$$", "#")) or re.match(r"\([\w-]+\)=", line)
        if waiting and (starts or not line.strip()):
            yield "\n".join(waiting)
            waiting = []
        if line.startswith(":::"):
            fence = ":::"
        elif line.startswith("$$") and not re.search(r"\S\$\$( \([\w-]+\))?$", line):
            fence = "$$"
        if line.strip():
            waiting.append(line)
            if starts and not fence:
                yield "\n".join(waiting)
                waiting = []


def is_caption(block: str) -> bool:
    """Whether a paragraph is set in italics as a whole, as captions are."""
    return bool(re.fullmatch(r"\*(?![* ]).+(?<![* ])\*", block, re.S))


def first_sentence(text: str) -> str:
    """The first sentence of a paragraph, or two where it is short.

    Points in formulas, code and brackets do not end it.
    """
    flat = " ".join(text.split())
    for match in re.finditer(r"[.!?](?=\s+[A-Z\"(*$`{])", flat):
        before = flat[: match.end()]
        balanced = before.count("$") % 2 == 0 and before.count("`") % 2 == 0
        even = balanced and before.count("(") == before.count(")")
        if even and len(before) >= SHORT:
            return before
    return flat


def _picture(data: dict) -> tuple[str, str, int] | None:
    for mime in ("image/svg+xml", "image/png", "image/jpeg"):
        if mime in data:
            content = "".join(data[mime])
            if mime == "image/svg+xml":
                content = base64.b64encode(content.encode()).decode()
            content = content.replace("\n", "")
            return "figure", f'<img src="data:{mime};base64,{content}" alt="">', 0
    return None


def _table(data: dict) -> tuple[str, str, int] | None:
    found = re.search(r"<table.*?</table>", "".join(data.get("text/html", "")), re.S)
    if not found:
        return None
    shown = re.sub(r""" (border|style)=("[^"]*"|'[^']*')""", "", found[0])
    return "table", shown, shown.count("<tr")


def titles(root: Path) -> dict[str, str]:
    """Label -> title, of all pages and notebooks."""
    found = {}
    for folder in ("notebooks/src", "book"):
        for path in sorted((root / folder).glob("*.md")):
            page = read_chapter(path)
            if page.label:
                found[page.label] = page.title
            found[page.name] = page.title
    return found
