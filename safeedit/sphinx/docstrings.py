"""Docstrings are plain text in this kit; what would be markup in them is escaped."""

import re
from typing import Any

from sphinx.application import Sphinx

SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Attributes:", "Note:")


def plain_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Escape what reStructuredText would read as markup in a docstring, in place.

    A formula such as ||D h|| or a name such as c_ is text here. Code in backquotes,
    examples and blocks that are indented under a paragraph are shown as they are.
    """
    shown: list[str] = []
    section = item = literal = False  # where the line is: `Args:`, a list, a block
    for line in lines:
        if line.strip() and not line.startswith(" "):
            if literal:
                shown.append("")
            section, literal = line.strip() in SECTIONS, False
            item = bool(re.match(r"([-*]|\d+\.) ", line))
        elif line.strip() and not (section or item or literal):
            if shown and not shown[-1].endswith("::"):
                shown += ["", "::", ""]
            literal = True
        verbatim = literal or line.lstrip().startswith((">>>", "..."))
        shown.append(line if verbatim else _escape(line))
    lines[:] = shown


def _escape(line: str) -> str:
    """One line of text with its markup escaped; `code` becomes ``code``."""
    if line.startswith("* "):
        return f"* {_escape(line[2:])}"
    parts = re.split(r"(``.+?``|`[^`]+`)", line)
    for index, part in enumerate(parts):
        if part.startswith("`") and len(part) > 1:
            code = part if part.startswith("``") else f"`{part}`"
            # Markup must not touch a letter, as in `Chat`s, but for an escaped space.
            letter = parts[index + 1][:1].isalnum()
            parts[index] = code + ("\\ " if letter else "")
        else:
            part = re.sub(r"([\\|*])", r"\\\1", part)
            parts[index] = re.sub(r"_(?=\W|$)", r"\\_", part)
    return "".join(parts)


def setup(app: Sphinx) -> None:
    """Escape before Napoleon makes markup of them, at the default priority, 500."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
