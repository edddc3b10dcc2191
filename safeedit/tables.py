"""Tables of the book: records on one side, what the paper says on the other.

The paper's numbers live in `paper_tables.json` with every reading that the source
leaves open, and are shown with them. A number of ours comes from a record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

# The paper model that a stand-in shares its architecture with.
NAMESAKES = {
    "standin-llama": "Llama-3.1-8B-Instruct",
    "standin-mistral": "Mistral-7B-Instruct-v0.2",
    "standin-gemma": "Gemma-2B-it",
}
REAL_MODELS = {
    "llama-3.1-8b-instruct": "Llama-3.1-8B-Instruct",
    "mistral-7b-instruct-v0.2": "Mistral-7B-Instruct-v0.2",
    "gemma-2b-it": "Gemma-2B-it",
}


def paper(table: str) -> dict:
    """One table of the paper: title, columns, and rows with their readings.

    Args:
        table: "T1" to "T4".

    Raises:
        KeyError: no such table.
    """
    tables = json.loads(Path(__file__).with_name("paper_tables.json").read_text())
    if table not in tables:
        known = sorted(k for k in tables if k != "source")
        raise KeyError(f"table={table!r}: one of {', '.join(known)}")
    return tables[table]


def paper_frame(table: str) -> pd.DataFrame:
    """The paper's table as text, with the other possible readings of each cell.

    Args:
        table: "T1" to "T4".

    Returns:
        One row a model; a cell such as "50.8 (or 0.8)".
    """
    content = paper(table)
    rows = {}
    for model, row in content["rows"].items():
        cells = []
        for i, value in enumerate(row["reading"]):
            others = [a[i] for a in row["alternatives"] if a[i] != value]
            others = [f"{x:g}" for x in dict.fromkeys(others)]
            cells.append(
                f"{value:g}" + (f" (or {', '.join(others)})" if others else "")
            )
        rows[model] = cells
    return pd.DataFrame.from_dict(rows, orient="index", columns=content["columns"])


def percent(row: Mapping) -> str:
    """A rate with its interval and n, in percent: "12 [6, 22] (n 60)"."""
    return (
        f"{100 * row['value']:.0f} [{100 * row['low']:.0f}, "
        f"{100 * row['high']:.0f}] (n {row['n']:.0f})"
    )


def number(row: Mapping) -> str:
    """A value with its interval if it has one, three digits."""
    if pd.isna(row["low"]):
        return f"{row['value']:.3g}"
    return f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def wide(
    frame: pd.DataFrame, index: list[str], columns: str, form=percent
) -> pd.DataFrame:
    """Tidy rows as a table of text cells, rows and columns in their first order.

    Args:
        frame: tidy rows, at most one for each cell.
        index: columns that become the rows' labels.
        columns: column whose values become the columns.
        form: how a row becomes a cell.

    Raises:
        ValueError: two rows for the same cell, named.
    """
    double = frame[frame.duplicated([*index, columns], keep=False)]
    if len(double):
        raise ValueError(
            f"two rows for one cell: {double[[*index, columns]].iloc[0].to_dict()}; "
            "filter the records first"
        )
    cells = frame.assign(cell=[form(row) for _, row in frame.iterrows()])
    table = cells.pivot(index=index, columns=columns, values="cell")
    order = list(dict.fromkeys(frame[columns]))
    rows = list(dict.fromkeys(map(tuple, frame[index].to_numpy().tolist())))
    if len(index) == 1:
        rows = [row[0] for row in rows]
    return table.loc[rows, order].fillna("")
