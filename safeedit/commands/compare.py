"""`safeedit compare`: whether a rerun says what the published records say."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..comparison import (
    DIFFERS,
    KINDS,
    MISSING,
    NEW,
    SAME,
    VERDICTS,
    WITHIN,
    Comparison,
    compare,
)
from ..provenance import ROOT
from ..records import RESULTS, Record, find
from ..schema import RecordError

SHOWN = 40  # lines of the table, unless --all


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `compare` takes."""
    parser.add_argument("mine", nargs="?", help="folder of records; default: results")
    parser.add_argument("published", nargs="?", help="folder; default: results of --at")
    parser.add_argument(
        "--at",
        metavar="COMMIT",
        default="HEAD",
        help="commit or tag whose results are the published ones; default: the last "
        "commit",
    )
    parser.add_argument(
        "--json", action="store_true", help="a JSON document in place of words"
    )
    parser.add_argument(
        "--all", action="store_true", help=f"every line, not the first {SHOWN}"
    )


def run(given: argparse.Namespace) -> int:
    """Compare, print, and return 1 when a value differs.

    Raises:
        RecordError: a folder that is not there, or a record that is not valid.
    """
    for folder in filter(None, (given.mine, given.published)):
        if not Path(folder).is_dir():
            raise RecordError(f"{folder}: no such folder of records")
    mine = find(Path(given.mine or RESULTS))
    published = find(given.published) if given.published else at_commit(given.at)
    if published is None:
        print("No published records: results/ is not in a commit yet.")
        return 0
    result = compare(mine, published)
    if given.json:
        print(json.dumps(document(result), indent=1, ensure_ascii=False))
    else:
        print(words(result))
        if table := listing(result, None if given.all else SHOWN):
            print(f"\n{table}")
    return 0 if result.agrees else 1


def at_commit(commit: str) -> list[Record] | None:
    """Records of `results/` at a commit or tag; None when HEAD has none yet.

    Raises:
        RecordError: another commit than HEAD without results, or no such commit.
    """
    # The word of a user must not be read as an option of git.
    command = ["git", "-C", str(ROOT), "archive", "--end-of-options", commit, "results"]
    try:
        packed = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        if commit == "HEAD":
            return None
        raise RecordError(
            f"there are no results at {commit!r}. Next step: give a commit or tag of "
            f"this repository, such as one that `git -C {ROOT} tag` lists."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        return find(Path(folder) / "results")


def words(result: Comparison) -> str:
    """The verdict, before any table."""
    total = sum(result.count(verdict) for verdict in (SAME, WITHIN, DIFFERS))
    if not result.both:
        first = "Nothing to compare: no record has the same notebook, model and "
        first += "parameters on both sides."
    else:
        differs = result.count(DIFFERS) or "none"
        first = f"{result.count(SAME)} of {total} values are equal to the last bit, "
        first += f"{result.count(WITHIN)} within the tolerance of their kind, "
        first += f"{differs} {'differs' if differs in ('none', 1) else 'differ'}."
    lines = [first]
    if result.count(DIFFERS) and result.by_chance:
        lines.append(
            "If all unequal values that are judged by a 95 % interval had been drawn "
            f"anew, about {result.by_chance:.0f} would differ by chance."
        )
    for verdict, text in (
        (MISSING, "published and missing among mine"),
        (NEW, "new, not among the published"),
    ):
        if n := result.count(verdict):
            lines.append(f"{plural(n, 'value')} {text}, in records on both sides.")
    for names, text in (
        (result.only_published, "only published"),
        (result.only_mine, "only mine"),
    ):
        if names:
            few = "; ".join(names[:3]) + ("; ..." if len(names) > 3 else "")
            lines.append(f"{plural(len(names), 'record')} {text}: {few}")
    for name, (ours, theirs) in result.provenance.items():
        lines.append(f"{name}: mine {', '.join(ours)}; published {', '.join(theirs)}")
    return "\n".join(lines)


def plural(n: int, noun: str) -> str:
    """A number and a noun."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def listing(result: Comparison, limit: int | None = SHOWN) -> str:
    """What differs, is missing or new, as a table; empty when nothing is."""
    wanted = {DIFFERS: 0, MISSING: 1, NEW: 2}
    lines = [line for line in result.lines if line.verdict in wanted]
    lines.sort(key=lambda line: wanted[line.verdict])
    if not lines:
        return ""
    table = pd.DataFrame(
        {
            "verdict": line.verdict,
            "record": line.record,
            "value": line.what,
            "mine": _cell(line.mine),
            "published": _cell(line.published),
            "rule": KINDS[line.kind].why if line.verdict == DIFFERS else "",
        }
        for line in lines[:limit]
    )
    text = table.to_string(index=False, justify="left")
    left = len(lines) - len(table)
    return text + (f"\n... and {left} more: --all or --json" if left else "")


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    text = f"{row['value']:.4g}"
    if row["low"] is not None and row["high"] is not None:
        text += f" [{row['low']:.3g}, {row['high']:.3g}]"
    text += f" n {row['n']:g}" if row["n"] else ""
    return " ".join([text, *(str(row[k]) for k in ("verdict", "chosen") if k in row)])


def document(result: Comparison) -> dict[str, Any]:
    """Everything but what is equal, as JSON."""
    return {
        "agrees": result.agrees,
        "verdict": words(result).splitlines(),
        "counts": {verdict: result.count(verdict) for verdict in VERDICTS},
        "by_chance": result.by_chance,
        "records": {
            "both": result.both,
            "only_mine": result.only_mine,
            "only_published": result.only_published,
        },
        "provenance": {
            name: {"mine": ours, "published": theirs}
            for name, (ours, theirs) in result.provenance.items()
        },
        "values": [line.document() for line in result.lines if line.verdict != SAME],
    }
