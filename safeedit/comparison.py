"""Does a rerun say what the published records say? Value by value, then in words.

Every value of a record gets one verdict:

* same: value, n and interval are equal, bit for bit;
* within: unequal, but no more than its kind of value allows (`KINDS`);
* differs: more than that;
* missing, new: the other side has the record, but not this value in it.

Two values with 95 % intervals are compatible when the interval of their difference

    low  = d - sqrt((a - a_low)² + (b_high - b)²)
    high = d + sqrt((a_high - a)² + (b - b_low)²),   d = a - b

holds 0: Newcombe's interval (1998) for rates, and its extension to any two estimates by
Zou and Donner (2008). Overlapping intervals would forgive more than 95 % intervals may.

Seconds, memory and other values of a machine are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .metrics import wilson_interval
from .records import TIMED_UNITS, Record
from .schema import ROW_NUMBERS, RecordError

MACHINE_UNITS = (*TIMED_UNITS, "ratio")  # "ratio": of two speeds, in benchmarks
RESULT_TEXT = ("verdict", "chosen")  # words of a row that are a result, not a label
SAME, WITHIN, DIFFERS, MISSING, NEW = "same", "within", "differs", "missing", "new"
VERDICTS = (SAME, WITHIN, DIFFERS, MISSING, NEW)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """How far two values of one kind may lie apart.

    A value without an interval passes when the gap is at most `absolute`, or at most
    `relative` times the larger of the two.
    """

    name: str
    absolute: float
    relative: float
    why: str  # for the reader


KINDS = {
    kind.name: kind
    for kind in (
        Kind("rate", 0.0, 0.0, "Newcombe's 95 % interval of the difference holds 0"),
        Kind("paired", 0.0, 0.0, "as a rate, and one of the n pairs more"),
        Kind("interval", 0.0, 0.0, "the 95 % interval of the difference holds 0"),
        Kind("setting", 0.0, 0.0, "a chosen setting is equal or it is another"),
        Kind("loss", 0.05, 0.1, "0.05 nats or 10 %: a search ends a little elsewhere"),
        Kind("rounding", 1e-4, 0.0, "0.0001: differences of float32 sums"),
        Kind("number", 1e-6, 0.05, "5 %"),
    )
}
RATES = ("argmax_survives", "share proved optimal", "predicted refusal")
ROUNDING = ("loss_gap", "loss_gap_to_reference", "smallest_margin")


def kind_of(row: Row) -> Kind:
    """Which rule a value is judged by."""
    metric, unit = str(row["metric"]), row.get("unit")
    if unit == "setting":
        return KINDS["setting"]
    if row["n"] and (unit == "share" or metric in RATES):
        return KINDS["rate"]
    bounded = row["low"] is not None and row["high"] is not None
    if bounded and row["n"] and (metric.endswith("_difference") or metric == "claim"):
        return KINDS["paired"]
    if bounded:
        return KINDS["interval"]
    if metric in ROUNDING:
        return KINDS["rounding"]
    if str(unit).startswith("nats") or "loss" in metric:
        return KINDS["loss"]
    return KINDS["number"]


def judge(mine: Row, published: Row) -> str:
    """The verdict on one value that both sides have: same, within or differs."""
    names = (*ROW_NUMBERS, *RESULT_TEXT)
    if all(mine.get(name) == published.get(name) for name in names):
        return SAME
    if any(mine.get(name) != published.get(name) for name in RESULT_TEXT):
        return DIFFERS
    kind = kind_of(published)
    a, b = float(mine["value"]), float(published["value"])
    if kind.name in ("rate", "paired", "interval"):
        ours, theirs = _bounds(mine, kind), _bounds(published, kind)
        if ours is None or theirs is None:  # one side has no interval
            kind = KINDS["number"]
        else:
            slack = 0.0
            if kind.name == "paired":
                slack = 1 / min(float(mine["n"] or 1), float(published["n"]))
            low, high = difference(a, ours, b, theirs)
            return WITHIN if low - slack <= 0 <= high + slack else DIFFERS
    gap = abs(a - b)
    allowed = max(kind.absolute, kind.relative * max(abs(a), abs(b)))
    return WITHIN if gap <= allowed else DIFFERS


def difference(
    a: float, a_bounds: tuple[float, float], b: float, b_bounds: tuple[float, float]
) -> tuple[float, float]:
    """The 95 % interval of a - b from the 95 % intervals of a and of b."""
    below = math.hypot(a - a_bounds[0], b_bounds[1] - b)
    above = math.hypot(a_bounds[1] - a, b - b_bounds[0])
    return a - b - below, a - b + above


def _bounds(row: Row, kind: Kind) -> tuple[float, float] | None:
    """The interval of a row; for a rate without one, Wilson's."""
    if row["low"] is not None and row["high"] is not None:
        return float(row["low"]), float(row["high"])
    if kind.name == "rate" and row["n"] and 0 <= row["value"] <= 1:
        return wilson_interval(round(row["value"] * row["n"]), int(row["n"]))
    return None


@dataclass(frozen=True)
class Line:
    """One value on both sides."""

    record: str  # "T1_attack_success standin-llama seed 0"
    what: str  # metric and the labels of the row
    mine: Row | None
    published: Row | None
    verdict: str  # one of VERDICTS
    kind: str

    def document(self) -> dict[str, Any]:
        """The line as JSON."""
        sides = {}
        for name, row in (("mine", self.mine), ("published", self.published)):
            keep = (*ROW_NUMBERS, *RESULT_TEXT)
            sides[name] = row and {k: row[k] for k in keep if k in row}
        head = {"record": self.record, "what": self.what, "verdict": self.verdict}
        return {**head, "rule": KINDS[self.kind].why, **sides}


@dataclass(frozen=True)
class Comparison:
    """Two sets of records side by side.

    Attributes:
        lines: every compared value.
        both: names of the records that both sides have.
        only_mine, only_published: names of the others.
        provenance: what the two sides were made with, where that is not the same:
            name -> (mine, published).
    """

    lines: list[Line]
    both: list[str]
    only_mine: list[str]
    only_published: list[str]
    provenance: dict[str, tuple[list[str], list[str]]]

    def count(self, verdict: str) -> int:
        """How many values have this verdict."""
        return sum(line.verdict == verdict for line in self.lines)

    @property
    def agrees(self) -> bool:
        """Whether no value differs."""
        return self.count(DIFFERS) == 0

    @property
    def by_chance(self) -> float:
        """Values that would differ by chance if every unequal interval were redrawn."""
        judged = [
            line
            for line in self.lines
            if line.verdict in (WITHIN, DIFFERS)
            and line.kind in ("rate", "paired", "interval")
        ]
        return 0.05 * len(judged)


def compare(mine: Iterable[Record], published: Iterable[Record]) -> Comparison:
    """Lay two sets of records side by side.

    Records belong together when notebook, model and all parameters, seed and scale
    among them, are equal.

    Raises:
        RecordError: one side has two records, or two values, of the same name.
    """
    ours, theirs = _named(mine, "mine"), _named(published, "published")
    both = [name for name in theirs if name in ours]
    lines: list[Line] = []
    for name in both:
        left, right = values(ours[name]), values(theirs[name])
        for what in dict.fromkeys([*right, *left]):
            a, b = left.get(what), right.get(what)
            if a is None or b is None:
                verdict = MISSING if a is None else NEW
            else:
                verdict = judge(a, b)
            shown = b if b is not None else a
            assert shown is not None
            label = _short(ours[name])
            lines.append(Line(label, what, a, b, verdict, kind_of(shown).name))
    return Comparison(
        lines,
        [_short(theirs[name]) for name in both],
        [_short(ours[name]) for name in ours if name not in theirs],
        [_short(theirs[name]) for name in theirs if name not in ours],
        _provenance([(ours[name], theirs[name]) for name in both]),
    )


def _named(records: Iterable[Record], side: str) -> dict[str, Record]:
    named: dict[str, Record] = {}
    for record in records:
        key = [record.notebook, record.model["name"], record.seed, record.parameters]
        name = json.dumps(key, sort_keys=True)
        if name in named:
            raise RecordError(
                f"two records of {_short(record)} with the same parameters among those "
                f"{side}. Next step: remove one of the two files."
            )
        named[name] = record
    return named


def _short(record: Record) -> str:
    scale = record.parameters.get("scale")
    words = [record.notebook, str(record.model["name"]), f"seed {record.seed}"]
    return " ".join(
        [*words, *([f"scale {scale}"] if scale not in (None, "cpu") else [])]
    )


def values(record: Record) -> dict[str, Row]:
    """Values of a record by what they measure, machine's values left out."""
    values: dict[str, Row] = {}
    for row in record.rows:
        if row.get("unit") in MACHINE_UNITS:
            continue
        labels = [
            f"{key} {cell}"
            for key, cell in sorted(row.items())
            if key not in (*ROW_NUMBERS, *RESULT_TEXT, "metric", "unit")
            and cell not in (None, "none")
        ]
        what = ", ".join([str(row["metric"]), *labels])
        if what in values:
            raise RecordError(f"{_short(record)}: two values of {what!r}")
        values[what] = row
    return values


def _provenance(
    pairs: list[tuple[Record, Record]],
) -> dict[str, tuple[list[str], list[str]]]:
    """Versions, devices and numbers of fingerprints that are not the same."""
    seen: dict[str, tuple[list[str], list[str]]] = {}
    for ours, theirs in pairs:
        sides = [
            {**r.versions, "device": r.device, "dtype": r.dtype, "kit": r.kit_version}
            for r in (ours, theirs)
        ]
        for name in dict.fromkeys([*sides[1], *sides[0]]):
            a, b = (side.get(name, "none") for side in sides)
            if a != b:
                entry = seen.setdefault(name, ([], []))
                for values, value in zip(entry, (a, b), strict=True):
                    values += [] if value in values else [value]
    return seen
