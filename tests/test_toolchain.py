"""The doors to an installation say the same, and name everything that is used."""

import ast
import re
import sys
import tomllib
from importlib.metadata import (
    distributions,
    packages_distributions,
    version,
)

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from safeedit.records import ROOT
from safeedit.sphinx import docstrings, pages

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = PROJECT["dependencies"] + EXTRAS["book"] + EXTRAS["test"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {canonical(name): pin for name, pin in (line.split("==") for line in lines)}


def pip_section() -> list[str]:
    return next(d["pip"] for d in ENVIRONMENT["dependencies"] if isinstance(d, dict))


def test_environment_yml_equals_pyproject():
    lines = pip_section()
    assert lines[-1] == "-e ."
    said = {str(Requirement(line)) for line in lines[:-1]}
    assert said == {str(Requirement(line)) for line in INSTALLED}
    assert f"python{PROJECT['requires-python']}" in ENVIRONMENT["dependencies"]


@pytest.mark.parametrize("line", INSTALLED)
def test_requirement_is_met_and_locked(line):
    requirement = Requirement(line)
    assert requirement.specifier.contains(version(requirement.name).split("+")[0])
    assert requirement.specifier.contains(constraints()[canonical(requirement.name)])


def test_lock_has_no_local_versions_or_paths():
    text = (ROOT / "constraints.txt").read_text()
    assert "+" not in text and "@" not in text and "/" not in text


def test_lock_suits_the_python_of_debian_12():
    """3.11.2 there; a lock made with a later 3.11 can ask for more."""
    asks = {d.name: d.metadata.get("Requires-Python") for d in distributions()}
    here = {canonical(name): need for name, need in asks.items()}
    needs = {name: here.get(name) or "" for name in constraints()}
    bad = [n for n, need in needs.items() if not SpecifierSet(need).contains("3.11.2")]
    assert bad == []


def test_torch_is_installed_first_and_as_locked():
    pin = constraints()["torch"]
    first = MAKEFILE.index(f'"torch=={pin}"')
    assert first < MAKEFILE.index('-e ".[book,test]"')


def third_party(folder: str) -> set[str]:
    """Top-level packages that the Python files of a folder import."""
    names, files = set(), list((ROOT / folder).rglob("*.py"))
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    local = {"safeedit", *(path.stem for path in files)}
    return names - set(sys.stdlib_module_names) - local


def test_every_import_of_the_package_is_declared():
    """But for what is imported late and only by users of the extra "book"."""
    declared = {canonical(Requirement(line).name) for line in PROJECT["dependencies"]}
    owners = packages_distributions()
    late = {"sphinx", "docutils", "cvxpy", "clarabel", "yaml", "markdown_it"}
    used = third_party("safeedit") - late
    found = {
        canonical(name) for module in used for name in owners.get(module, [module])
    }
    assert found <= declared


def test_every_import_of_the_tests_is_installed_by_make():
    locked, owners = constraints(), packages_distributions()
    used = third_party("tests")
    found = {
        canonical(name) for module in used for name in owners.get(module, [module])
    }
    assert found - set(locked) == set()


def test_conda_channels_leave_out_the_defaults():
    assert ENVIRONMENT["channels"] == ["conda-forge", "nodefaults"]


def test_ci_calls_the_two_commands():
    script = (ROOT / ".ci" / "run").read_text()
    lines = [line for line in script.splitlines() if line.startswith("make ")]
    assert lines == ["make book", "make test"]


def test_version_is_one():
    import safeedit

    said = safeedit.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert said == PROJECT["version"] == citation["version"]


def toc_files() -> list[str]:
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    parts = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *parts]


def test_every_page_is_in_the_contents():
    files = toc_files()
    pages = {f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")}
    sources = (ROOT / "notebooks" / "src").glob("*.md")
    notebooks = {f"notebooks/{path.stem}" for path in sources}
    assert sorted(files) == sorted(pages | notebooks)


def test_book_does_not_execute_and_asks_no_other_host():
    assert CONFIG["execute"]["execute_notebooks"] == "off"
    extensions = CONFIG["sphinx"]["config"]["extensions"]
    assert "sphinx_thebe" not in extensions
    assert "safeedit.sphinx" in extensions


@pytest.mark.parametrize(
    "text, shown",
    [
        ("Moves by ||u||.", r"Moves by \|\|u\|\|."),
        ("a * b and c_ too", r"a \* b and c\_ too"),
        ("see `x_` and ``y|z``", "see ``x_`` and ``y|z``"),
        ("d_model stays", "d_model stays"),
        ("some `Chat`s", r"some ``Chat``\ s"),
        ("* item with a|b", r"* item with a\|b"),
    ],
)
def test_docstring_text_is_escaped(text, shown):
    lines = [text]
    docstrings.plain_docstring(None, "function", "f", None, None, lines)
    assert lines == [shown]


def test_indented_block_of_a_docstring_is_literal():
    lines = ["Formula:", "    u = |r|", "", "Args:", "    x: the |r|"]
    docstrings.plain_docstring(None, "function", "f", None, None, lines)
    block = ["::", "", "    u = |r|", "", "", "Args:", r"    x: the \|r\|"]
    assert lines == ["Formula:", "", *block]


def test_an_interval_in_a_table_is_not_broken():
    context = {"body": "<p>1 [2, 3]</p><td>17 [9, 30] (n 48)</td>"}
    pages.unbroken_intervals(None, "page", "page.html", context, None)
    cell = "17&#160;[9,&#160;30] (n&#160;48)"
    assert context["body"] == f"<p>1 [2, 3]</p><td>{cell}</td>"
