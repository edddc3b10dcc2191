"""What the book needs of Sphinx beyond Jupyter Book: offline, readable by all, honest.

The parts are modules of `safeedit.sphinx`:

- `assets`: MathJax from a wheel into the book, so that pages ask no other host; the
  handlers that the printing builder lacks.
- `figures`: pictures and tables of notebooks get captions, numbers and alt texts.
- `pages`: what a page needs for screen readers, and for readers who get lost.
- `sharing`: what a link to the book shows elsewhere.
- `tables`: directives that lay out what was run and what a model needs.
- `downloads`: the directive that offers the PDF and the notebooks.
- `docstrings`: docstrings are plain text in this kit.
"""

from sphinx.application import Sphinx

from .sphinx import assets, docstrings, downloads, figures, pages, sharing, tables


def setup(app: Sphinx) -> dict[str, object]:
    """Register all parts with Sphinx."""
    for part in (assets, docstrings, downloads, figures, pages, sharing, tables):
        part.setup(app)
    # Pages are kept as they were read, with numbered figures: another version of that
    # reads them anew.
    return {"env_version": 2, "parallel_read_safe": True, "parallel_write_safe": True}
