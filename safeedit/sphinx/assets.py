"""Files that pages load, all of them from the book itself.

MathJax comes from a wheel, styles and templates from `book/_static` and
`book/_templates`, wherever the configuration of Sphinx lies.
"""

import re
from importlib.metadata import distribution
from pathlib import Path
from shutil import copyfile
from typing import Any

from sphinx.application import Sphinx

MATHJAX = "mathjax-tex-svg.js"


def _copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        files = distribution("sphinx-mathjax-offline").files or []
        source = next(file for file in files if file.name == "tex-svg.js")
        copyfile(str(source.locate()), Path(app.outdir, "_static", MATHJAX))


def _use_local_files(app: Sphinx, config: Any) -> None:
    config.mathjax_path = MATHJAX
    # A page can have 200 formulas: none is a stop of the Tab key. The menu and the
    # text for screen readers stay.
    menu = {"menuOptions": {"settings": {"inTabOrder": False}}}
    config.mathjax3_config = {**(config.mathjax3_config or {}), "options": menu}
    # From the source folder: `make plain` has its configuration elsewhere.
    config.html_static_path = [str(Path(app.srcdir, "book", "_static"))]
    config.templates_path.insert(0, str(Path(app.srcdir, "book", "_templates")))


def _skip_placeholder(app: Sphinx, config: Any) -> None:
    # Until the repository has an address (`repository` in _config.yml), its pages are
    # not there to be checked.
    repository = str(config.html_theme_options.get("repository_url", ""))
    if repository.startswith("https://github.com/example/"):
        config.linkcheck_ignore = [*config.linkcheck_ignore, re.escape(repository)]


def _complete_singlehtml(app: Sphinx) -> None:
    # sphinx-exercise registers handlers for `singlehtml`, and Sphinx then no longer
    # falls back to those for `html`, which are all that sphinx-proof has.
    handlers = app.registry.translation_handlers
    handlers["singlehtml"] = {
        **handlers.get("html", {}),
        **handlers.get("singlehtml", {}),
    }


def setup(app: Sphinx) -> None:
    """Choose local files."""
    app.add_css_file("page.css")
    app.add_js_file("page.js")
    app.connect("config-inited", _use_local_files)
    app.connect("config-inited", _skip_placeholder)
    app.connect("builder-inited", _complete_singlehtml)
    app.connect("build-finished", _copy_mathjax)
