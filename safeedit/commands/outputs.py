"""Whether what a command is to write can be written, asked before it computes."""

from __future__ import annotations

import os
from pathlib import Path

from ..edits.storage import check_new

LONGEST = 240  # bytes of a name; temporary files beside it have some more, up to 255


def check_out(path: Path) -> None:
    """Make sure that a new file or folder can be made at a path.

    Minutes or hours of a model's work are lost where this is found only at the end.

    Raises:
        ValueError: no name that a file can have.
        FileExistsError: there is something already.
        NotADirectoryError: it lies under a file.
        PermissionError: it lies in a folder that may not be written to.
    """
    if "\0" in str(path):
        raise ValueError(f"the name {str(path)!r} holds a NUL; give another")
    size = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if size > LONGEST:
        raise ValueError(
            f"the name {path.name[:40]}... has {size} bytes; give one of at most "
            f"{LONGEST}"
        )
    check_new(path)
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise NotADirectoryError(
            f"{path} cannot be written: {above} is a file; give a path in a folder"
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{path} cannot be written: {above} is closed to you; give another folder"
        )
