"""The edition for students: whole, without solutions, and enough to work offline."""

import subprocess
import sys
import zipfile

import nbformat
import pytest

from safeedit.course.chapters import CourseError
from safeedit.course.student import FILES, make_edition
from safeedit.records import ROOT
from safeedit.workflow.notebooks import find_sources

NAMES = ("00_setup", "03_regions", "T1_attack_success")  # the second reads the third


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The repository with three notebooks."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("safeedit", "results", "_config.yml", *FILES):
        (folder / name).symlink_to(ROOT / name)
    for where in ("src", "solutions"):
        (folder / "notebooks" / where).mkdir(parents=True)
    for name in NAMES:
        for file in (f"{name}.ipynb", f"src/{name}.md", f"solutions/{name}.ipynb"):
            (folder / "notebooks" / file).symlink_to(ROOT / "notebooks" / file)
    return folder


@pytest.fixture(scope="module")
def edition(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "handout"
    assert sorted(make_edition(out, root=root)) == sorted(NAMES)
    return out


def test_no_solution_is_anywhere(edition, root):
    shown = "".join(
        cell.source
        for name in NAMES
        for cell in nbformat.read(edition / "notebooks" / f"{name}.ipynb", 4).cells
    )
    solutions = [
        cell.source
        for source in find_sources(root)
        for cell in source.code_cells
        if "solution" in cell.metadata.get("tags", [])
    ]
    assert len(solutions) >= 4
    for code in solutions:
        assert code not in shown
    files = {path.relative_to(edition).as_posix() for path in edition.rglob("*")}
    assert not any("solutions" in f or f.startswith("notebooks/src") for f in files)
    assert not any("__pycache__" in f or f.startswith((".", "tests")) for f in files)


def test_everything_to_work_offline_is_there(edition):
    assert (edition / "results/T1_attack_success/standin-llama.json").is_file()
    assert (edition / "safeedit/standins/llama/model.safetensors").is_file()
    readme = (edition / "README.md").read_text(encoding="utf-8")
    assert "pip install -e . jupyterlab -c constraints.txt" in readme
    assert "3 notebooks" in readme and "{" not in readme
    # The package of this folder is the one that is used, and finds its records here.
    code = (
        "from safeedit.records import RESULTS, read; "
        "print(read(RESULTS / 'T1_attack_success' / 'standin-llama.json').notebook, "
        "RESULTS)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=edition,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.split() == ["T1_attack_success", str(edition / "results")]


def test_teachers_archive_has_solutions_beside(root, tmp_path):
    out = tmp_path / "mine.zip"
    make_edition(out, solutions=True, root=root)
    with zipfile.ZipFile(out) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        assert "mine/notebooks/03_regions.ipynb" in names
        text = archive.read("mine/solutions/03_regions.ipynb").decode()
        assert '"solution"' in text
    assert [path.name for path in tmp_path.iterdir()] == ["mine.zip"]


def test_nothing_is_overwritten_and_nothing_half_written(root, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="give the name of a new"):
        make_edition(tmp_path / "there", root=root)
    made = root / "notebooks" / "00_setup.ipynb"
    made.unlink()
    try:
        with pytest.raises(CourseError, match="Next step: make notebooks"):
            make_edition(tmp_path / "half", root=root)
        made.symlink_to(ROOT / "notebooks" / "solutions" / "00_setup.ipynb")
        with pytest.raises(CourseError, match="holds a solution"):
            make_edition(tmp_path / "half", root=root)
    finally:
        made.unlink()
        made.symlink_to(ROOT / "notebooks" / "00_setup.ipynb")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
