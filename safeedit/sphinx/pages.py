"""What every page needs beyond the theme: names for screen readers, whole numbers,
and a way back for readers who get lost.

The markup of notebooks and of two extensions is mended where axe finds fault with it;
`tests/test_book_browser.py` runs axe over all pages.
"""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from sphinx.application import Sphinx

from .sharing import base_address

MENDED = (
    # pandas: empty cells of the header are no headers; its style is ours (tables.css)
    (re.compile(r"<th></th>"), "<td></td>"),
    (re.compile(r"<style scoped>.*?</style>\s*", re.DOTALL), ""),
    (re.compile(r'<tr style="text-align: right;">'), "<tr>"),
    (re.compile(r'<table border="1" class="dataframe">'), '<table class="dataframe">'),
    # myst-nb: a table can be scrolled, also by keyboard (a script of the theme)
    (
        re.compile(r'<div class="output text_html">'),
        '<div class="output text_html pst-scrollable-table-container">',
    ),
    # myst-nb: a name that hides what is written there, "Show code cell source"
    (re.compile(r'<summary aria-label="Toggle hidden content">'), "<summary>"),
    # docutils: entries that their list does not allow
    (re.compile(r'role="doc-biblioentry"'), 'role="listitem"'),
)


# Sphinx: the parameters of a long signature, each on a line, as a list without terms
PARAMETERS = re.compile(r"<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>", re.DOTALL)


def _lines(found: re.Match) -> str:
    """The parameters as lines of the signature that they lie in."""
    lines = found[1].replace("<dd>", '<span class="sig-line">')
    return lines.replace("</dd>", "</span>")


def mend_markup(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Replace markup that screen readers stumble over, in place."""
    if context.get("body"):
        for pattern, text in MENDED:
            context["body"] = pattern.sub(text, context["body"])
        context["body"] = PARAMETERS.sub(_lines, context["body"])


def unbroken_intervals(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Keep a value and its interval on one line of a narrow table cell, in place."""

    def unbroken(cell: re.Match) -> str:
        text = re.sub(r"\[([-+\d.]+), ([-+\d.]+)\]", "[\\1,&#160;\\2]", cell[0])
        text = re.sub(r"([\d.]) \[", "\\1&#160;[", text)
        return re.sub(r"\bn (\d+)", "n&#160;\\1", text)

    if context.get("body"):
        context["body"] = re.sub(r"<td>[^<]+</td>", unbroken, context["body"])


def extra_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The page for addresses that are not there, and the door at the root.

    A server shows the first in place of a missing page at any depth, so it loads no
    file and finds the book's root by itself.
    """
    if app.builder.name != "html":
        return
    start = app.config.root_doc
    base = base_address(app.config)
    path = urlsplit(base).path or "/"
    yield "404", {"start": start, "base_path": path}, "404.html"
    if start != "index":
        yield "index", {"start": start, "address": base}, "door.html"


def setup(app: Sphinx) -> None:
    """Register with the builder of pages."""
    app.connect("html-page-context", unbroken_intervals)
    app.connect("html-page-context", mend_markup)
    app.connect("html-collect-pages", extra_pages)
