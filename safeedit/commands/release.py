"""`safeedit release`: check a release, and write its notes and records."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import release


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `release` takes."""
    parser.add_argument("tag", help="of the release, such as v0.1.0")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for the notes and the records"
    )


def run(given: argparse.Namespace) -> None:
    """Check that every place names this version, and write what a release needs.

    Raises:
        ReleaseError: a place says something else.
    """
    section = release.check(tag=given.tag)
    print(f"{given.tag}: version {section.version} of {section.date}, the same in all")
    if given.out:
        for path in release.write(given.out, given.tag):
            print(path)
