"""`safeedit slides` and `safeedit student`: what a teacher takes into the room."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ..provenance import ROOT


def slides_arguments(parser: argparse.ArgumentParser) -> None:
    """What `slides` takes."""
    parser.add_argument(
        "notebooks", nargs="*", help="codes or names, such as 02 T1; default: all"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "_build" / "slides",
        help="a folder; default: _build/slides",
    )


def student_arguments(parser: argparse.ArgumentParser) -> None:
    """What `student` takes."""
    parser.add_argument("out", type=Path, help="a new folder, or a name that ends .zip")
    parser.add_argument(
        "--solutions", action="store_true", help="with the complete notebooks, for you"
    )


def slides(given: argparse.Namespace) -> int:
    """Write decks and say where they are; 1 for a mistake."""
    from ..course.slides_page import write_decks

    def make() -> None:
        for path, number in write_decks(given.notebooks, given.out):
            print(f"{number:>3} slides  {path}")

    return _told(make)


def student(given: argparse.Namespace) -> int:
    """Write the student edition and say what is in it; 1 for a mistake."""
    from ..course.student import make_edition

    def make() -> None:
        names = make_edition(given.out, given.solutions)
        more = " and with solutions" if given.solutions else ""
        print(f"{given.out}: {len(names)} notebooks without solutions{more}")

    return _told(make)


def _told(make: Callable[[], None]) -> int:
    """Do it; a user's mistake becomes one line on stderr and status 1."""
    try:
        make()
    except (ValueError, OSError) as error:
        print(f"safeedit: {error}", file=sys.stderr)
        return 1
    return 0
