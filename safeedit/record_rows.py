"""What is possible in a record's rows: shares, intervals, counts, and who says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import comparison
from .hub import KNOWN
from .metrics import wilson_interval
from .records import Record
from .schema import ROW_NUMBERS, RecordError


def kind_problems(record: Record) -> Iterator[str]:
    """A record cannot go round what is asked of real models by another word."""
    name, weights = str(record.model["name"]), record.model["weights"]
    standin = name in KNOWN and KNOWN[name].kind == "stand-in"
    if standin != (weights == "stand-in"):
        yield f"model.weights is {weights!r}, which {name!r} is not"
    if weights == "random" and not record.notebook.startswith("bench_"):
        yield "model.weights is 'random', which only benchmarks may have"


def row_problems(record: Record) -> Iterator[str]:
    """What is impossible in the rows of any record."""
    if not record.rows:
        yield "rows is empty. Next step: run the notebook to its end."
    try:
        comparison.values(record)
    except RecordError as error:
        yield f"{error}. Next step: give the rows labels that differ."
    for index, row in enumerate(record.rows):
        spot = f"rows[{index}] ({row['metric']})"
        yield from (f"{spot}: {text}" for text in _row(row))


def _row(row: Mapping[str, Any]) -> Iterator[str]:
    value, n, low, high = (row[name] for name in ROW_NUMBERS)
    if n is not None and (n != int(n) or n < 1):
        yield f"n is {n!r}, want a whole number from 1 on, or null"
        return
    if (low is None) != (high is None):
        yield f"low is {low!r} and high is {high!r}, want both or neither"
        return
    slack = 1e-9 * max(1.0, abs(value))
    if low is not None and not low - slack <= value <= high + slack:
        yield f"the interval [{low!r}, {high!r}] does not hold the value {value!r}"
    if row.get("unit") == "share":
        yield from _share(value, n, low, high)
    if "perplexity" in row["metric"] and not row["metric"].endswith("_ratio"):
        if value < 1:
            yield f"value is {value!r}, a perplexity is at least 1"
    if row.get("unit") in comparison.MACHINE_UNITS and value < 0:
        yield f"value is {value!r}, want 0 or more {row['unit']}"


def _share(
    value: float, n: float | None, low: float | None, high: float | None
) -> Iterator[str]:
    if not 0 <= value <= 1:
        yield f"value is {value!r}, a share lies in [0, 1]"
        return
    if low is not None and high is not None and not (0 <= low and high <= 1):
        yield f"the interval [{low!r}, {high!r}] of a share lies in [0, 1]"
    if n is None:
        return
    hits = round(value * n)
    if abs(value * n - hits) > 1e-6 * n:
        yield f"value is {value!r}, which is no number of hits out of n = {n:g}"
    elif low is not None and high is not None:
        wanted = wilson_interval(hits, int(n))
        if max(abs(low - wanted[0]), abs(high - wanted[1])) > 1e-6:
            yield (
                f"the interval [{low:.4f}, {high:.4f}] is not Wilson's of {hits} out "
                f"of {n:g}, [{wanted[0]:.4f}, {wanted[1]:.4f}]"
            )
