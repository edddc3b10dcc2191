"""The student edition: notebooks without solutions, and all they need, in one folder.

    python -m safeedit student OUT          a folder
    python -m safeedit student OUT.zip      the same as an archive
    python -m safeedit student OUT --solutions    with the complete notebooks beside

The folder is a small repository: the package with the stand-ins' weights, the records
that the notebooks read, and the notebooks. `pip install -e .` in it installs the kit;
after that nothing is downloaded. Sources of notebooks, tests and book pages stay out:
some hold the solutions.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import nbformat

from ..edits.storage import check_new
from ..provenance import ROOT
from ..workflow.editions import tags
from ..workflow.notebooks import find_sources
from .chapters import CourseError

FILES = ("pyproject.toml", "constraints.txt", "LICENSE", "LICENSE-text")
SKIPPED = ("__pycache__", "*.pyc", ".*")
README = """# {title}: notebooks to work with

{count} notebooks, in `notebooks/`, with exercises and without solutions.

## Install

Python 3.11 or newer, once, in this folder:

```sh
python3 -m venv .venv
. .venv/bin/activate
pip install -e . jupyterlab -c constraints.txt
```

On Linux without an NVIDIA GPU, `pip install torch --index-url
https://download.pytorch.org/whl/cpu` first saves gigabytes. After the installation no
network is needed: the models and the records are in this folder.

## Work

```sh
jupyter lab notebooks
```

Begin with `00_setup.ipynb`. Where a cell says `None` or `...`, your answer belongs; the
cell under it checks it and says what is wrong. No cell depends on an answer. With
`scale = "smoke"` in the second cell a notebook takes seconds; figures are then rough.
{solutions}
Text CC BY 4.0, code MIT. {url}
"""


def make_edition(out: Path, solutions: bool = False, root: Path = ROOT) -> list[str]:
    """Write the student edition, whole or not at all.

    Args:
        out: a folder or, with the ending .zip, an archive; it must not exist.
        solutions: with the complete notebooks in `solutions/`, for teachers.
        root: the repository.

    Returns:
        Names of the notebooks.

    Raises:
        FileExistsError: there is something at `out`.
        CourseError: a notebook that is not executed, or one with a solution in it.
    """
    check_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=".student"))
    try:
        folder = work / (out.stem if out.suffix == ".zip" else out.name)
        names = _fill(folder, solutions, root)
        if out.suffix == ".zip":
            _zip(folder, work / "made.zip")
            os.replace(work / "made.zip", out)
        else:
            check_new(out)
            os.rename(folder, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return names


def _fill(folder: Path, solutions: bool, root: Path) -> list[str]:
    """Copy everything into a new folder."""
    ignored = shutil.ignore_patterns(*SKIPPED)
    shutil.copytree(root / "safeedit", folder / "safeedit", ignore=ignored)
    for name in FILES:
        shutil.copy(root / name, folder / name)
    (folder / "notebooks").mkdir()
    sources = find_sources(root)
    for source in sources:
        made = root / "notebooks" / f"{source.name}.ipynb"
        _check(made)
        shutil.copy(made, folder / "notebooks" / made.name)
        if solutions:
            complete = root / "notebooks" / "solutions" / made.name
            (folder / "solutions").mkdir(exist_ok=True)
            shutil.copy(complete, folder / "solutions" / made.name)
        for name in source.reads:
            if (root / "results" / name).is_dir():
                target = folder / "results" / name
                shutil.copytree(root / "results" / name, target, dirs_exist_ok=True)
    told = "\nComplete notebooks are in `solutions/`.\n" if solutions else ""
    title, url = _about(root)
    text = README.format(title=title, count=len(sources), solutions=told, url=url)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return [source.name for source in sources]


def _check(path: Path) -> None:
    """Raise CourseError unless a notebook is there and has no solution."""
    if not path.is_file():
        raise CourseError(f"{path} is not there. Next step: make notebooks")
    node = nbformat.read(path, as_version=4)
    if any("solution" in tags(cell) for cell in node.cells):
        raise CourseError(f"{path} holds a solution. Next step: make notebooks")


def _about(root: Path) -> tuple[str, str]:
    """Title and address of the book, from the one place that has them."""
    import yaml  # of the extra "book"

    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return config["title"], config["repository"]["url"]


def _zip(folder: Path, archive: Path) -> None:
    """All files of a folder, in order and with one date, so that two runs agree."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix())
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            made.writestr(info, path.read_bytes())
