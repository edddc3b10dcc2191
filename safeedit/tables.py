"""Tables of the book: records on one side, what the paper says on the other.

The paper's numbers live in `paper_tables.json` with every reading that the source
leaves open, and are shown with them. A number of ours comes from a record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import records
from .metrics import wilson_interval

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
Z = 1.96  # standard errors in half a 95 % interval


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


def with_others(
    notebook: str, chat: Any, seed: int, scale: str, rows: Sequence[Mapping]
) -> pd.DataFrame:
    """This run's rows together with the published ones of other models and seeds.

    Args:
        notebook: its name.
        chat: the model of this run.
        seed: of this run.
        scale: of this run; records of stand-ins at another one are left out.
        rows: tidy rows of this run.

    Returns:
        Tidy rows with model, weights and seed, stand-ins in their order, then others.
    """
    others = [
        record
        for record in records.find(notebook=notebook)
        if (record.model["name"], record.seed) != (chat.name, seed)
        and (record.parameters["scale"] == scale or record.model["weights"] == "real")
    ]
    own = pd.DataFrame(rows).assign(model=chat.name, weights=chat.kind, seed=seed)
    both = pd.concat([own, records.rows_frame(others)], ignore_index=True)
    order = [*NAMESAKES, *sorted(set(both.model) - set(NAMESAKES))]
    place = both.model.map(order.index)
    return both.iloc[place.argsort(kind="stable")].reset_index(drop=True)


def verdict(
    row: Mapping, null: float = 0.0, above: bool = False, form: str = "+.2f"
) -> str:
    """Whether an interval tells that a value lies below (or above) `null`, in words."""
    value, low, high = (row[name] for name in ("value", "low", "high"))
    if low <= null <= high:
        word = "cannot be told"
    else:
        word = "yes" if (low > null) == above else "no: the opposite"
    return f"{word} ({value:{form}} [{low:{form}}, {high:{form}}])"


def pooled(
    frame: pd.DataFrame, by: list[str], log: bool = False, continuity: bool = False
) -> pd.DataFrame:
    """Rows of several runs as one row for each group, in their first order.

    Shares add their counts and get Wilson's interval of the sum. Other values are taken
    as means over one sample, the N pairs or texts of all runs:

        mean ± z sqrt(s² / N),   s² = Σ w_r s_r² + Σ w_r (mean_r - mean)²

    (law of total variance) with weights w_r = n_r / N, where s_r² = n_r (half / z)² is
    read from the interval of run r. The second sum is there because each run chose its
    settings anew. That the pairs of a run share its settings is not in it: three runs
    are too few to tell.

    Args:
        frame: tidy rows. A run without an interval counts as having no spread of its
            own, one without n as a single pair.
        by: columns that name a group; of the others only the results stay.
        log: average logarithms, for ratios.
        continuity: widen the interval by 1/N on each side. For differences of rates on
            the same prompts: their sum moves in whole pairs, of which often only a few
            differ (Edwards 1948, for McNemar's test).

    Returns:
        A row for each group with the columns of `by`, value, n (the sum), low, high.

    Raises:
        ValueError: log and continuity together: 1/N is a step of a rate.
    """
    if log and continuity:
        raise ValueError(
            "log=True with continuity=True: a ratio has no step of 1/N. Give log for "
            "ratios, continuity for differences of rates, neither for other means."
        )
    rows = []
    for key, part in frame.groupby(by, sort=False, dropna=False):
        row: dict = dict(zip(by, key, strict=True))
        n = part.n.astype(float).fillna(1).to_numpy()
        row["n"] = int(n.sum())
        if "unit" in part and (part.unit == "share").all():
            hits = round(float((part.value * n).sum()))
            row["value"] = hits / row["n"]
            row["low"], row["high"] = wilson_interval(hits, row["n"])
        else:
            runs = part[["value", "low", "high"]].astype(float)
            for end in ("low", "high"):
                runs[end] = runs[end].fillna(runs.value)
            value, low, high = (np.log(runs) if log else runs).to_numpy().T
            weight = n / n.sum()
            mean = float((weight * value).sum())
            within = n * ((high - low) / 2 / Z) ** 2
            variance = float((weight * (within + (value - mean) ** 2)).sum())
            half = Z * math.sqrt(variance / n.sum())
            half += 1 / n.sum() if continuity else 0
            ends = np.array([mean, mean - half, mean + half])
            row["value"], row["low"], row["high"] = np.exp(ends) if log else ends
        rows.append(row)
    return pd.DataFrame(rows, columns=[*by, "value", "n", "low", "high"])


def attack_success(frame: pd.DataFrame, judge: str = "exact") -> pd.DataFrame:
    """Success rates of T1's rows, seeds added up, with the column each belongs to.

    Args:
        frame: tidy rows of T1 with the column model.
        judge: whose verdicts; two judges are never mixed.

    Returns:
        Pooled rows with model, defense, column, value, n, low, high; `column` is the
        attack ("GCG, static", ...), after the name of a dataset other than the
        obedience set, or "benign compliance".
    """
    rows = frame[(frame.metric == "success_rate") & (frame.judge == judge)]
    dataset = rows.dataset.replace({"obedience": ""})
    attack = rows.attack.replace({"none": "compliance"})
    named = rows.assign(column=(dataset + " " + attack).str.strip())
    return pooled(named, ["model", "defense", "column"])
