"""Gives the book's pages with an explorer, and no others, the scripts that move it.

The scripts are in `book/_static`, which `html_static_path` copies. The page for
printing gets none: there an explorer stays the picture and the table that it is.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

MARK = "data-explorer="
SCRIPTS = ("explorer-solver.js", "explorer-geometry.js", "explorer-frames.js")
STYLES = "explorers.css"


def add_scripts(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Add scripts and styles to a page whose body holds an explorer."""
    if app.builder.name == "singlehtml" or MARK not in context.get("body", ""):
        return
    app.add_css_file(STYLES)
    for name in SCRIPTS:
        app.add_js_file(name, loading_method="defer")


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.connect("html-page-context", add_scripts)
