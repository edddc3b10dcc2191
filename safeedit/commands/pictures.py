"""`safeedit picture`: the README's pictures, drawn from the records."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from ..provenance import ROOT

if TYPE_CHECKING:
    from ..records import Record

FOLDER = ROOT / "book"


def run(arguments: argparse.Namespace) -> int:
    """Write book/lineup.svg and book/frontier.svg."""
    for path, draw in pictures().items():
        print(_write(path, draw()))
    return 0


def pictures() -> dict:
    """File of each picture -> the function that gives its SVG."""
    return {FOLDER / "lineup.svg": lineup, FOLDER / "frontier.svg": frontier}


def lineup() -> str:
    """All defenses under static and adaptive attack, from the records of T1, as SVG."""
    from .. import plots, tables
    from ..records import rows_frame

    rows = rows_frame(_records("T1_attack_success"))
    plots.set_style()
    return _svg(plots.lineup(tables.attack_success(rows)))


def frontier() -> str:
    """Unlearning methods under their worst attack, from the cross table, as SVG."""
    from .. import frontier, over_runs, plots

    rows = over_runs.frame(_records("U2a_attacks"))
    plots.set_style()
    return _svg(frontier.draw(frontier.frontier(rows)))


def _records(notebook: str) -> list[Record]:
    """The stand-ins' records of one notebook.

    Raises:
        RecordError: there are no such records.
    """
    from ..records import RecordError, find

    found = find(notebook=notebook, weights="stand-in")
    if not found:
        raise RecordError(
            f"there are no records of {notebook} yet. Next step: "
            "python -m safeedit notebooks"
        )
    return found


def _svg(figure) -> str:
    """A figure as SVG text, the same bytes each time; it is closed."""
    import matplotlib.pyplot as plt

    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()


def _write(path: Path, text: str) -> Path:
    from ..records import write_atomic

    return write_atomic(path, text)
