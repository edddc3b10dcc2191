"""Makes what readers take away: `python -m safeedit.sphinx.bundles zip` or `pdf`.

The PDF is Sphinx's one-page book, printed by Chromium, which has to be installed;
without it the command says so and leaves everything as it was.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..provenance import ROOT
from .downloads import FOLDER

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PRINT = (  # Chromium waits for formulas: virtual time stands still while a script runs
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-pdf-header-footer",
    "--generate-pdf-document-outline",
    "--virtual-time-budget=120000",
)
PRINT_STYLE = """
<style>
@page { size: A4; margin: 18mm 15mm; @bottom-center { content: counter(page); } }
body { font-size: 10.5pt; }
.headerlink, .toggle-button, details.hide { display: none !important; }
figure, tr, pre { break-inside: avoid; }
figure:has(table) { break-inside: auto; } /* between rows */
h1, h2, h3 { break-after: avoid; }
/* Paper does not scroll: code wraps, and wide tables shrink. */
pre { white-space: pre-wrap !important; overflow-wrap: anywhere; }
pre, .highlight, .output, .pst-scrollable-table-container, .cell_output {
  overflow: visible !important;
}
.bd-article div.cell_output table.dataframe { font-size: 7pt; width: 100%; }
.bd-article div.cell_output table.dataframe :is(td, th) {
  overflow-wrap: anywhere; padding: 1pt 2pt; white-space: normal;
}
</style>
"""
STAMP = (1980, 1, 1, 0, 0, 0)  # equal notebooks give an equal file


class BundleError(RuntimeError):
    """A file to take away could not be made, with the next step."""


def make_zip(target: Path, root: Path = ROOT) -> int:
    """Pack the notebooks, student edition and solutions, with licence and a note.

    Args:
        target: the file to write; it appears whole or not at all.
        root: the repository.

    Returns:
        The number of notebooks.

    Raises:
        BundleError: there are no notebooks.
    """
    folder = root / "notebooks"
    notebooks = [*sorted(folder.glob("*.ipynb")), *sorted(folder.glob("*/*.ipynb"))]
    if not notebooks:
        raise BundleError(
            f"{folder} has no notebook, want NN_topic.ipynb. Next step: make notebooks."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as bundle:
        for path in [*notebooks, root / "LICENSE", root / "LICENSE-text"]:
            name = zipfile.ZipInfo(path.relative_to(root).as_posix(), STAMP)
            name.compress_type = zipfile.ZIP_DEFLATED
            bundle.writestr(name, path.read_bytes())
        note = zipfile.ZipInfo("READ-ME-FIRST.txt", STAMP)
        bundle.writestr(note, _note())
    part.replace(target)
    return len(notebooks)


def _note() -> str:
    return (
        "notebooks/            the chapters, without answers\n"
        "notebooks/solutions/  the same with the solutions of the exercises\n\n"
        "They need the package safeedit: in a clone of the repository run\n"
        "make book, or pip install -e . in an environment of your own.\n"
    )


def browser() -> str | None:
    """The path of a browser that can print, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def make_pdf(target: Path, build: Path, root: Path = ROOT) -> None:
    """Build the book as one page and print it.

    Args:
        target: the PDF to write; it appears whole or not at all.
        build: the folder `_build`, whose read sources are used again.
        root: the repository.

    Raises:
        BundleError: no browser, or a step failed.
    """
    chromium = browser()
    if chromium is None:
        raise BundleError(
            f"none of {', '.join(BROWSERS)} is installed, so no PDF. Next step on "
            "Debian: apt install chromium."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    _call(
        [
            str(Path(sys.executable).with_name("jupyter-book")),
            *("build", str(root), "--toc", str(root / "book" / "_toc.yml")),
            *("--path-output", str(build.parent), "--builder", "singlehtml", "-q"),
        ],
        root,
    )
    page = _printable(build / "singlehtml")
    part = target.with_suffix(".part")
    with tempfile.TemporaryDirectory() as profile:
        where = [f"--user-data-dir={profile}", f"--print-to-pdf={part}"]
        _call([chromium, *PRINT, *where, page.as_uri()], root)
    if not part.is_file():
        raise BundleError(
            f"{chromium} printed nothing. Next step: open {page} in it and print."
        )
    part.replace(target)


def _printable(folder: Path) -> Path:
    """The one-page book with paths that hold where it lies, styled for paper."""
    found = sorted(folder.rglob("index.html"))
    pages = [path for path in found if path.stat().st_size > 100_000]
    if len(pages) != 1:
        raise BundleError(
            f"{folder} has {len(pages)} books of one page, want 1. Next step: make "
            "clean and again."
        )
    text = pages[0].read_text(encoding="utf-8")
    # The root document lies in a folder, what it shows beside that folder.
    text = re.sub(r'"\.\./(_images|_static)/', r'"\1/', text)
    page = folder / "print.html"
    page.write_text(text.replace("</head>", f"{PRINT_STYLE}</head>"), encoding="utf-8")
    return page


def _call(words: Sequence[str], folder: Path) -> None:
    """Run a program and show what it said only if it failed."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        # Jupyter Book ends with a box that says "look above": the cause is further up.
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line]
        causes = [line for line in lines if re.search(r"(Error|Exception)\b", line)]
        said = list(dict.fromkeys([*causes, *lines[-10:]]))
        raise BundleError(
            f"{Path(words[0]).name} ended with status {done.returncode}:\n"
            + "\n".join(said)
            + "\nNext step: mend what it names and run the command again."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Make one file; see the module's text.

    Returns:
        0 when it was made, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m safeedit.sphinx.bundles")
    parser.add_argument("kind", choices=("zip", "pdf"))
    parser.add_argument("--build", type=Path, default=ROOT / "_build")
    arguments = parser.parse_args(argv)
    build = arguments.build.resolve()
    try:
        if arguments.kind == "zip":
            target = build / FOLDER / "safeedit-notebooks.zip"
            what = f"{make_zip(target)} notebooks"
        else:
            target = build / FOLDER / "safeedit-book.pdf"
            make_pdf(target, build)
            what = "the book"
    except BundleError as error:
        print(f"safeedit: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {what}, {target.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
