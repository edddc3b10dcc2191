"""The whole book to take away: offered where it was made, never a dead link.

`make zip` and `make pdf` (`safeedit.sphinx.bundles`) leave files in `downloads` beside
the builder's folder. They are copied into the book, listed by the directive
`safeedit-downloads`, and added to the download button of every page.
"""

import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER = "downloads"
FILES = {  # name: words of the link, words of the button, icon
    "safeedit-book.pdf": ("The book as one PDF", "Book (PDF)", "fas fa-book"),
    "safeedit-notebooks.zip": (
        "All notebooks, student edition and solutions",
        "Notebooks (zip)",
        "fas fa-file-archive",
    ),
}
MAKE = {"safeedit-book.pdf": "make pdf", "safeedit-notebooks.zip": "make zip"}


class downloads(nodes.General, nodes.Element):  # noqa: N801  docutils names nodes so
    """The place of the list, filled when the page is written."""


class Downloads(SphinxDirective):
    """A list of what can be downloaded from this copy of the book."""

    def run(self) -> list[nodes.Node]:
        """Leave a place: what is there is known when the page is written."""
        self.env.note_reread()
        return [downloads()]


def made(app: Sphinx) -> dict[str, Path]:
    """The files that were made for this build, by name."""
    folder = Path(app.outdir).parent / FOLDER
    return {name: folder / name for name in FILES if (folder / name).is_file()}


def fill_list(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put links, or the command that makes a file, in place of the directive."""
    present = made(app) if app.builder.name == "html" else {}
    for place in list(doctree.findall(downloads)):
        items = nodes.bullet_list()
        for name, (words, _, _) in FILES.items():
            line = nodes.paragraph()
            if name in present:
                size = present[name].stat().st_size / 1e6
                up = "../" * page.count("/")
                link = nodes.reference("", words, refuri=f"{up}{FOLDER}/{name}")
                line += [link, nodes.Text(f" ({size:.1f} MB)")]
            else:
                command = nodes.literal(text=MAKE[name])
                line += [nodes.Text(f"{words}: "), command]
                line += nodes.Text(" in a clone makes it")
            items += nodes.list_item("", line)
        place.replace_self(items)


def add_buttons(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Offer the files behind the download button of a page, in place."""
    up = "../" * page.count("/")
    for group in context.get("header_buttons", []):
        if group.get("label") == "download-buttons":
            for name in made(app):
                words, short, icon = FILES[name]
                button = {"type": "link", "url": f"{up}{FOLDER}/{name}", "text": short}
                group["buttons"].append({**button, "tooltip": words, "icon": icon})


def _copy(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html":
        target = Path(app.outdir, FOLDER)
        shutil.rmtree(target, ignore_errors=True)
        for name, path in made(app).items():
            target.mkdir(exist_ok=True)
            shutil.copyfile(path, target / name)


def setup(app: Sphinx) -> None:
    """Register the directive and the copying."""
    app.add_node(downloads)
    app.add_directive("safeedit-downloads", Downloads)
    app.connect("doctree-resolved", fill_list)
    # After the theme has made its buttons, at 501.
    app.connect("html-page-context", add_buttons, priority=502)
    app.connect("build-finished", _copy)
