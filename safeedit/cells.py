"""Parts of a long run that are kept, so that a killed run goes on where it was.

A cross table is many independent cells: one method, one attack. Under the runner
(`python -m safeedit run`) what a cell computes is written to `runs/cells/<fingerprint
of the run>` and read back when the run starts again. The fingerprint covers the code,
the parameters and the weights, so nothing outdated is ever read; a finished run
deletes its folder. In an interactive session nothing is kept.

Beside each part stand the seconds that it took, so that the time of a run that was
killed and went on is that of the whole (`seconds_before`).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safeedit.edits.weight_edit import WeightEdit
from safeedit.fingerprints import digest
from safeedit.records import write_atomic


def rows_of(key: Any, compute: Callable[[], list[dict]]) -> list[dict]:
    """The rows of one cell: from disk if this run made them before, else computed.

    Args:
        key: what tells the cell from others of the run; writable as JSON.
        compute: makes the rows, plain numbers and texts.

    Returns:
        The rows as they are after a round trip through JSON, so that a run that was
        killed and one that was not give the same.
    """
    path = _path(key, "json")
    if path is not None and path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    begin = time.perf_counter()
    text = json.dumps(compute())
    if path is not None:
        write_atomic(path, text)
        _keep_seconds(path, begin)
    return json.loads(text)


def edit_of(key: Any, compute: Callable[[], WeightEdit]) -> WeightEdit:
    """The edit of one cell: from disk if this run made it before, else computed.

    Args:
        key: as in `rows_of`.
        compute: makes the edit.

    Returns:
        The edit as it is after a round trip through a file, for the same reason: a file
        has the weights in another order, and so a norm another last digit.
    """
    path = _path(key, "safetensors")
    if path is not None and path.exists():
        return WeightEdit.load(path)
    begin = time.perf_counter()
    edit = compute()
    if path is None:
        return edit
    path.parent.mkdir(parents=True, exist_ok=True)
    edit.save(path)
    _keep_seconds(path, begin)
    return WeightEdit.load(path)


def checkpoint_of(key: Any) -> Path | None:
    """Where a training of this run may keep its checkpoint, or None."""
    path = _path(key, "checkpoint")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def seconds_before(folder: str | Path | None = None) -> float:
    """Seconds that the finished parts of this run took, 0 where none is kept.

    What a part took before its run was killed inside it is not known and not counted.

    Args:
        folder: where the parts are; default: that of the present run.
    """
    folder = folder or os.environ.get("SAFEEDIT_CELLS")
    if not folder:
        return 0.0
    kept = sorted(Path(folder).glob("*.seconds"))
    return math.fsum(float(path.read_text(encoding="utf-8")) for path in kept)


def _keep_seconds(path: Path, begin: float) -> None:
    took = time.perf_counter() - begin
    write_atomic(path.with_name(f"{path.name}.seconds"), f"{took:.3f}")


def _path(key: Any, ending: str) -> Path | None:
    folder = os.environ.get("SAFEEDIT_CELLS")
    return Path(folder) / f"{digest(key)}.{ending}" if folder else None
