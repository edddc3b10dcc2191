"""Directives that lay out records: nobody types a time or a size.

- `safeedit-status`: what was run, when and for how long, from `results/status/`.
- `safeedit-memory`: what the real models need in memory, counted from their shapes.
"""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

COLUMNS = ("notebook", "model", "seconds", "commit", "fingerprint", "machine")


class Status(SphinxDirective):
    """A table with one line for each published run."""

    def run(self) -> list[nodes.Node]:
        """Read the runner's notes and lay them out."""
        self.env.note_reread()  # the files change without the page changing
        folder = Path(self.env.srcdir) / "results" / "status"
        runs = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob("*.json"))
        ]
        if not runs:
            return [nodes.paragraph(text="Nothing has been run yet.")]
        machines = list(dict.fromkeys(run["machine"] for run in runs))
        names = "; ".join(f"{_letter(i)}: {m}" for i, m in enumerate(machines))
        total = sum(run["seconds"] for run in runs)
        words = f"{len(runs)} runs, {total / 60:.1f} minutes in total. Machine {names}."
        return [_table(runs, machines), nodes.paragraph(text=words)]


class Memory(SphinxDirective):
    """A table of what the real models need, counted from their shapes: GB of memory."""

    def run(self) -> list[nodes.Node]:
        """Count, and lay out one line for each model."""
        from ..hub import KNOWN  # torch is loaded only where the table is wanted
        from ..memory import describe

        names = [source.name for source in KNOWN.values() if source.kind == "real"]
        rows = [describe(name) for name in names]
        group = nodes.tgroup(cols=len(rows[0]))
        group += [nodes.colspec(colwidth=1) for _ in rows[0]]
        group += nodes.thead("", _line(rows[0]))
        body = nodes.tbody()
        for row in rows:
            cells = row.values()
            body += _line(f"{c:.2f}" if isinstance(c, float) else c for c in cells)
        group += body
        return [nodes.table("", group)]


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _table(runs: list[dict[str, Any]], machines: list[str]) -> nodes.table:
    group = nodes.tgroup(cols=len(COLUMNS))
    group += [nodes.colspec(colwidth=1) for _ in COLUMNS]
    group += nodes.thead("", _line(COLUMNS))
    body = nodes.tbody()
    for run in runs:
        commit, plus, _ = run["commit"].partition("+")
        short = {
            **run,
            "commit": commit[:7] + plus,
            "fingerprint": run["fingerprint"][:8],
            "machine": _letter(machines.index(run["machine"])),
        }
        body += _line([str(short[name]) for name in COLUMNS])
    group += body
    return nodes.table("", group)


def _line(texts: Any) -> nodes.row:
    row = nodes.row()
    for text in texts:
        row += nodes.entry("", nodes.paragraph(text=text))
    return row


def setup(app: Sphinx) -> None:
    """Register the directives."""
    app.add_directive("safeedit-status", Status)
    app.add_directive("safeedit-memory", Memory)
