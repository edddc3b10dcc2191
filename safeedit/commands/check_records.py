"""`safeedit check-records`: whether records may be published."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..record_check import check_folder, real_records, run_of
from ..records import RESULTS, find
from .compare import plural


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `check-records` takes."""
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=RESULTS,
        help="folder of <notebook>/<model>.json; default: results",
    )
    parser.add_argument(
        "--no-history",
        action="store_true",
        help="do not ask whether commits are in the history, as in a shallow clone",
    )


def run(given: argparse.Namespace) -> int:
    """Check, print one line for each problem, and return 1 when there is any.

    Raises:
        RecordError: no such folder, or no record in it.
    """
    problems = check_folder(given.folder, commits=not given.no_history)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        files = len({problem.path for problem in problems})
        count = plural(len(problems), "problem")
        print(f"{count} in {plural(files, 'file')} of {given.folder}")
        return 1
    records = find(given.folder)
    real = real_records(records)
    count = plural(len(records), "record")
    print(f"{count}, {len(real)} of real models: no problem found")
    for record in real:
        same = run_of(record).fingerprint == record.fingerprint
        made = "the sources that are here" if same else f"those of {record.commit}"
        seed = f"seed {record.seed}"
        print(f"  {record.notebook} {record.model['name']} {seed}: made by {made}")
    return 0
