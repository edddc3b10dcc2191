"""What a run keeps of each answer, so that several runs can be put together.

A mean does not say which questions were answered rightly, and two cells can be paired
only by question. So a record holds, beside its rows, the hits of each method under each
attack as a text of 1 and 0, in the order of the run's evaluation questions.
`answer_tables` reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def said(defense: str, letters: Sequence[str]) -> dict[str, str]:
    """What a record keeps of the letters that a model says, for `over_runs.chances`."""
    return {"defense": defense, "said": "".join(letters)}


def kept(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What a record keeps of rows that have `hits`, for `answer_tables.tables_of`.

    Args:
        rows: from `Measurement.rows(with_hits=True)`; `versus` names the method that an
            attack on a reference was tuned on.
    """
    names = ("defense", "attack", "metric", "dataset", "hits")
    return [
        {name: row[name] for name in names} | {"versus": row.get("versus", "")}
        for row in rows
        if "hits" in row
    ]
