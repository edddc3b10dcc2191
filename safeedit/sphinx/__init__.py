"""What the book needs of Sphinx beyond Jupyter Book: offline, readable by all, honest.

- `assets`: MathJax from a wheel into the book, so that pages ask no other host; the
  handlers that the printing builder lacks.
- `figures`: pictures and tables of notebooks get captions, numbers and alt texts.
- `pages`: what a page needs for screen readers, and for readers who get lost.
- `sharing`: what a link to the book shows elsewhere.
- `tables`: directives that lay out what was run and what a model needs.
- `downloads`: the directive that offers the PDF and the notebooks (`bundles`).
- `docstrings`: docstrings are plain text in this kit.
- `explorers`: the scripts of pages that move.
- `course` and `cards`: directives whose text is counted from the sources.
"""

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, object]:
    """Register all parts with Sphinx."""
    from . import (
        assets,
        cards,
        course,
        docstrings,
        downloads,
        explorers,
        figures,
        pages,
        sharing,
        tables,
    )

    parts = (assets, docstrings, downloads, figures, pages, sharing, tables)
    for part in (*parts, explorers, course, cards):
        part.setup(app)
    # Pages are kept as they were read, with numbered figures: another version of that
    # reads them anew.
    return {"env_version": 2, "parallel_read_safe": True, "parallel_write_safe": True}
