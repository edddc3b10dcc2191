"""Result records: the only thing that carries a number into the book.

A run writes one JSON document: where the numbers come from (kit version, commit,
notebook, parameters, fingerprint, model, device, versions, seconds) and tidy rows,
one number each. A record is written whole or not at all, and a reader checks every
field before it hands out a number.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from .provenance import ROOT, commit, describe, version_of
from .schema import ROW_NUMBERS, ROW_TEXT, RecordError, validate

RESULTS = ROOT / "results"  # <notebook>/<model>.json: the published records
INTERACTIVE = "interactive"  # fingerprint of a record that no runner vouches for

VERSIONED = ("python", "torch", "transformers", "peft", "datasets", "numpy")
# Units of what belongs to a machine, and is not compared between two.
TIMED_UNITS = ("s", "ms", "MB", "steps/s", "tokens/s", "times")


@dataclass(frozen=True)
class Record:
    """One run: its provenance and its rows."""

    kit_version: str
    commit: str  # of the sources; "+changes" when they differed from it
    notebook: str
    parameters: dict[str, Any]
    fingerprint: str  # of everything that the run depends on, or "interactive"
    model: dict[str, Any]  # name, id, revision, weights (one of WEIGHTS)
    device: str
    dtype: str
    seed: int
    versions: dict[str, str]
    seconds: dict[str, float]  # attack, edit, generate, total; wall clock
    peak_memory_mb: float | None
    started: str  # ISO 8601, UTC
    rows: list[dict[str, Any]] = field(default_factory=list)
    # What other notebooks read again: attacked prompts (`replay`), answers (`answers`).
    prompts: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: str | Path) -> Path:
        """Write the record, whole or not at all.

        Raises:
            RecordError: a field is not valid; nothing is written.
        """
        document = asdict(self)
        validate(document, str(path))
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        return write_atomic(path, text + "\n")


def write_atomic(path: str | Path, text: str) -> Path:
    """Write a text file by a rename, so that a kill leaves the old file or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner reads
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def read(path: str | Path) -> Record:
    """Read and validate one record.

    Raises:
        RecordError: naming the file and the field that is wrong.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(
            f"{path}: not a JSON document ({error}). Next step: delete it and run "
            "`python -m safeedit notebooks`, which writes it again."
        ) from error
    validate(document, str(path))
    return Record(**document)


def row(
    metric: str,
    value: float,
    n: int | None = None,
    low: float | None = None,
    high: float | None = None,
    *,
    dataset: str = "none",
    defense: str = "none",
    attack: str = "none",
    scope: str = "none",
    **extra: Any,
) -> dict[str, Any]:
    """One tidy row with every required field; numpy scalars become plain numbers."""
    cells = {
        "dataset": dataset,
        "defense": defense,
        "attack": attack,
        "scope": scope,
        "metric": metric,
        "value": value,
        "n": n,
        "low": low,
        "high": high,
        **extra,
    }
    return {key: _plain(cell) for key, cell in cells.items()}


def _plain(value: Any) -> Any:
    """A numpy or torch scalar as a Python number; anything else as it is."""
    return value.item() if hasattr(value, "item") else value


def build(
    notebook: str,
    parameters: Mapping[str, Any],
    chat: Any,
    rows: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    peak_memory_mb: float | None = None,
    prompts: Sequence[Mapping[str, Any]] = (),
    fingerprint: str = INTERACTIVE,
) -> Record:
    """The record of a run that ends now, not written; arguments as for `save_run`.

    It began `total` seconds ago, or as long ago as its longest part took.
    """
    total = seconds.get("total", max(seconds.values(), default=0.0))
    started = datetime.now(UTC).timestamp() - float(total)
    return Record(
        kit_version=version_of("safeedit"),
        commit=commit(),
        notebook=notebook,
        parameters=dict(parameters),
        fingerprint=fingerprint,
        model=describe(chat),
        device=str(chat.device),
        dtype=str(chat.dtype).removeprefix("torch."),
        seed=int(parameters.get("seed", 0)),
        versions={name: version_of(name) for name in VERSIONED},
        seconds={key: float(value) for key, value in seconds.items()},
        peak_memory_mb=peak_memory_mb,
        started=datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        rows=[{key: _plain(cell) for key, cell in r.items()} for r in rows],
        prompts=[dict(prompt) for prompt in prompts],
    )


def save_run(
    notebook: str,
    parameters: Mapping[str, Any],
    chat: Any,
    rows: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    peak_memory_mb: float | None = None,
    prompts: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write a notebook's record; every table notebook ends with this call.

    Under the runner (`python -m safeedit run`) the record gets the run's fingerprint
    and the place the runner chose. In an interactive session nobody can vouch for the
    order in which cells ran, so the record says "interactive" and goes to `runs/`,
    which no published table reads.

    Args:
        notebook: name without extension, such as "T1_attack_success".
        parameters: the values of all names in the parameters cell.
        chat: the model that was studied (`safeedit.models.Chat`).
        rows: tidy rows, each made by `row`.
        seconds: wall clock, split as far as known: attack, edit, generate, total.
        peak_memory_mb: peak memory of the device, MB.
        prompts: attacked prompts for other notebooks (`safeedit.replay.entries`), or
            answers question by question (`safeedit.answers.kept`).

    Returns:
        The record's path.
    """
    fingerprint = os.environ.get("SAFEEDIT_FINGERPRINT", INTERACTIVE)
    place = os.environ.get("SAFEEDIT_RECORD")
    path = Path(place or ROOT / "runs" / INTERACTIVE / notebook / f"{chat.name}.json")
    run = (notebook, parameters, chat, rows, seconds, peak_memory_mb, prompts)
    return build(*run, fingerprint).write(path)


def find(folder: str | Path = RESULTS, **where: Any) -> list[Record]:
    """All records `<folder>/<notebook>/*.json` that match, in order of path.

    Args:
        folder: where to look; a missing folder holds no records.
        where: wanted values of a record's fields or parameters; `model` means the
            model's name and `weights` the kind of its weights.

    Raises:
        RecordError: a file there is not a valid record, or `where` has an unknown name.
    """
    records = []
    for path in sorted(Path(folder).glob("*/*.json")):
        if path.parent.name == "status":  # the runner's own notes, not records
            continue
        record = read(path)
        seen = {
            **record.parameters,
            **asdict(record),
            "model": record.model["name"],
            "weights": record.model["weights"],
        }
        unknown = sorted(set(where) - set(seen))
        if unknown:
            raise RecordError(f"{path}: no field {unknown}, allowed {sorted(seen)}")
        if all(seen[key] == value for key, value in where.items()):
            records.append(record)
    return records


def rows_frame(records: Iterable[Record]) -> pd.DataFrame:
    """All rows of some records in one tidy table, each with where it comes from."""
    rows = [
        {
            "notebook": record.notebook,
            "model": record.model["name"],
            "weights": record.model["weights"],
            "scale": record.parameters.get("scale"),
            "seed": record.seed,
            **entry,
        }
        for record in records
        for entry in record.rows
    ]
    base = ["notebook", "model", "weights", "scale", "seed", *ROW_TEXT, *ROW_NUMBERS]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=base)


def compare(
    mine: Iterable[Record],
    published: Iterable[Record],
    tolerances: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Lay two sets of records side by side, row by row.

    A row agrees when its metric's tolerance covers the difference; without one, when
    the two confidence intervals overlap; without intervals, when the values differ
    by at most 5 %. Seconds and memory belong to a machine and are left out.

    Args:
        mine: records of this machine.
        published: records to compare with.
        tolerances: metric -> largest absolute difference allowed.

    Returns:
        One line per row with columns of what it measures, `mine`, `published` and
        `verdict`: "agrees", "differs", "only mine" or "only published".
    """
    ours, theirs = _keyed(mine), _keyed(published)
    lines = []
    for key in ours | theirs:
        a, b = ours.get(key), theirs.get(key)
        lines.append(
            {
                **dict(key),
                "mine": a and a["value"],
                "published": b and b["value"],
                "verdict": _verdict(a, b, tolerances or {}),
            }
        )
    columns = ["notebook", "model", *ROW_TEXT, "mine", "published", "verdict"]
    return pd.DataFrame(lines) if lines else pd.DataFrame(columns=columns)


def _keyed(records: Iterable[Record]) -> dict[tuple, dict[str, Any]]:
    """Rows by what they measure: every cell that is not part of the result."""
    table = {}
    for record in records:
        for entry in record.rows:
            if entry.get("unit") in TIMED_UNITS:
                continue
            start = {"notebook": record.notebook, "model": record.model["name"]}
            start |= {"scale": record.parameters.get("scale"), "seed": record.seed}
            what = {k: v for k, v in entry.items() if k not in ROW_NUMBERS}
            table[tuple((start | what).items())] = entry
    return table


def _verdict(a: dict | None, b: dict | None, tolerances: Mapping[str, float]) -> str:
    if a is None or b is None:
        return "only published" if a is None else "only mine"
    gap = abs(a["value"] - b["value"])
    bounds = (a["low"], a["high"], b["low"], b["high"])
    if a["metric"] in tolerances:
        agrees = gap <= tolerances[a["metric"]]
    elif None not in bounds:
        agrees = a["low"] <= b["high"] and b["low"] <= a["high"]
    else:
        agrees = gap <= 0.05 * max(abs(a["value"]), abs(b["value"]))
    return "agrees" if agrees else "differs"
