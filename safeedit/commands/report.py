"""What the commands say: a progress bar, tables, a record, and errors in one line."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pandas as pd
from tqdm import tqdm

from ..chat import Chat
from ..records import Record, build
from ..schema import validate
from ..tables import number, percent, wide

NAMES = {  # (dataset, attack, metric) -> what a reader is told
    ("forbidden", "direct", "refusal_rate"): "forbidden requests refused",
    ("forbidden", "direct", "success_rate"): "forbidden requests answered",
    ("forbidden", "prefill", "success_rate"): "forbidden, first word given, complied",
    ("benign", "none", "success_rate"): "benign requests answered",
    ("benign", "none", "refusal_rate"): "benign requests refused",
    ("benign", "none", "degeneration_rate"): "benign answers broken",
    ("forbidden", "none", "forbidden_perplexity"): "perplexity of forbidden words",
    ("benign", "none", "utility_perplexity"): "perplexity of benign text",
}


def told(command: Callable[[Any], None], arguments: Any) -> int:
    """Run a command; a user's mistake becomes one line on stderr and status 1.

    A termination signal ends it like an error, so that unfinished files are removed.
    """

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        command(arguments)
        return 0
    except (ValueError, OSError, MemoryError) as error:
        print(f"safeedit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("safeedit: stopped; nothing was written", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def progress(steps: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr, where that is a terminal; the body tells what it begins."""
    form = "{desc:<34} {bar} {n_fmt}/{total_fmt} [{elapsed}]"
    bar = tqdm(total=steps, file=sys.stderr, disable=None, leave=False, bar_format=form)
    first = True

    def begin(what: str) -> None:
        nonlocal first
        bar.update(0 if first else 1)
        bar.set_description_str(what)
        first = False

    try:
        yield begin
    finally:
        bar.close()


def effects(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows that `NAMES` names as text, one column for each defense."""
    frame = pd.DataFrame(
        [
            {**row, "measure": NAMES[key]}
            for row in rows
            if (key := (row["dataset"], row["attack"], row["metric"])) in NAMES
        ]
    )
    return _text(wide(frame, ["measure"], "defense", _cell))


def outcomes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rates as text: one line for each label, one column for each attack."""
    frame = pd.DataFrame(rows)
    frame["response"] = frame["metric"].str.removesuffix("_rate")
    return _text(wide(frame, ["response"], "attack", _cell))


def _text(table: pd.DataFrame) -> str:
    return table.rename_axis(index=None, columns=None).to_string(col_space=20)


def _cell(row: Mapping) -> str:
    if row["unit"] == "share":
        return percent(row)
    return f"{number(row)} (n {row['n']:.0f})"


def new_record(
    command: str,
    chat: Chat,
    parameters: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    began: float,
) -> Record:
    """A command's result record; nobody vouches for it, so it is "interactive".

    Args:
        command: its name, in the place of a notebook's.
        chat: the base model.
        parameters: what was asked for, as JSON.
        rows: tidy rows.
        seconds: wall clock of the parts.
        began: `time.time()` at its start.
    """
    seconds = {**seconds, "total": time.time() - began}
    return build(command, parameters, chat, rows, seconds)


def as_text(record: Record) -> str:
    """A record as a JSON document.

    Raises:
        RecordError: a field is not valid.
    """
    document = asdict(record)
    validate(document, "the report")
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
