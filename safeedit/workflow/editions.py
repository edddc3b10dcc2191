"""Executed notebooks in a normal form, and the two editions made of one run.

Two runs of the same source give the same bytes: ids, widget state, the cutting of
output streams and papermill's timings are removed or made regular. What cannot be
made regular (an error, text on stderr, a path, a memory address) is a problem that
keeps a notebook from being published.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

WIDGET = "application/vnd.jupyter.widget-view+json"


def tags(cell: NotebookNode) -> list[str]:
    """A cell's tags."""
    return list(cell.metadata.get("tags", []))


def normalise(node: NotebookNode) -> NotebookNode:
    """Remove, in place, what differs between two equal runs."""
    kept = ("kernelspec", "jupytext", "safeedit")
    node.metadata = nbformat.from_dict(
        {k: v for k, v in node.metadata.items() if k in kept}
    )
    node.metadata["language_info"] = {"name": "python"}
    node.nbformat_minor = max(5, node.nbformat_minor)  # cell ids
    for index, cell in enumerate(node.cells):
        for noise in ("papermill", "execution"):
            cell.metadata.pop(noise, None)
        cell["id"] = _cell_id(index)
        if cell.cell_type == "code":
            cell.outputs = _merge_streams(cell.outputs)
            for output in cell.outputs:
                data = output.get("data", {})
                data.pop(WIDGET, None)
                for kind in ("image/svg+xml", "text/html"):
                    if kind in data:
                        data[kind] = _stable_ids(data[kind])
    return node


def _merge_streams(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Join neighbouring pieces of one stream: how a kernel cuts it is chance."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if (
            output.output_type == "stream"
            and last is not None
            and last.output_type == "stream"
            and last.name == output.name
        ):
            last.text += output.text
        else:
            merged.append(output)
    return merged


def _stable_ids(text: str | list[str]) -> str:
    """Replace the random ids of Matplotlib's SVG and pandas' styled tables."""
    text = "".join(text)
    pattern = r'id="([A-Za-z]*[0-9a-f]{10,}|T_[0-9a-f]{5})'
    for index, name in enumerate(dict.fromkeys(re.findall(pattern, text))):
        text = text.replace(name, f"id{index:04d}")
    return text


def _cell_id(index: int) -> str:
    """The id of a cell by its place, equal in every run."""
    return f"cell-{index:03d}"


def student_edition(node: NotebookNode) -> NotebookNode:
    """The notebook without the cells tagged `solution`; code cells counted anew.

    Cells tagged `check` lose their output: what they print is about the solution, and
    a stub has not been answered yet.
    """
    student = nbformat.from_dict(
        {**node, "cells": [c for c in node.cells if "solution" not in tags(c)]}
    )
    for index, cell in enumerate(student.cells):
        cell["id"] = _cell_id(index)
    code = [cell for cell in student.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
        if "check" in tags(cell):
            cell.outputs = []
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    return student


INSTALL = """\
# On Colab or another machine without the kit: fetch and install it, some minutes.
import importlib.util
if importlib.util.find_spec("safeedit") is None:
    import os
    import subprocess
    import sys
    kit = os.path.abspath("safeedit-kit")
    for step in (["git", "clone", "-q", "--depth", "1", "-b", "{branch}",
                  "{url}", kit],
                 [sys.executable, "-m", "pip", "install", "-q", "-e", kit]):
        subprocess.run(step, check=True)
    sys.path.insert(0, kit)  # this Python started before the kit was there
"""


def install_cell(root: Path) -> str | None:
    """Source of a cell that installs the kit where it is missing.

    In the sources, which nobody runs without the kit, the cell only says so: the
    repository's address is no input of a run, and a move makes no output stale.

    Args:
        root: the repository; `repository` in its `_config.yml` is the address.

    Returns:
        None where there is no address.
    """
    import yaml

    path = root / "_config.yml"
    if not path.is_file():
        return None
    found = yaml.safe_load(path.read_text("utf-8")).get("repository")
    return INSTALL.format(**found).rstrip("\n") if found else None


def with_install(node: NotebookNode, source: str | None) -> NotebookNode:
    """The notebook with that source in its install cell, the one tagged `remove-cell`.

    Args:
        node: a notebook; it is not changed.
        source: as `install_cell` gives it; None: as it is.
    """
    node = nbformat.from_dict(node)
    for cell in node.cells if source else ():
        if cell.cell_type == "code" and "remove-cell" in tags(cell):
            cell.source = source
    return node


def problems(node: NotebookNode, root: Path) -> list[str]:
    """What keeps an executed notebook from being published, in words.

    Args:
        node: an executed notebook.
        root: the repository, whose path must not be shown.
    """
    found = []
    here = [str(root), str(Path.home())]
    for index, cell in enumerate(node.cells):
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            text = str(output.get("text", "")) + str(output.get("data", ""))
            if output.output_type == "error":
                found.append(f"cell {index} has an error output ({output.ename})")
            elif output.output_type == "stream" and output.name == "stderr":
                first = output.text.strip().splitlines()[0][:120]
                found.append(f"cell {index} writes to stderr: {first}")
            elif any(path != "/" and f"{path}/" in text for path in here):
                found.append(f"cell {index} shows a path of this machine")
            elif re.search(r"\bat 0x[0-9a-f]{6,}", text):
                found.append(f"cell {index} shows a memory address (end it with `;`)")
    return found
