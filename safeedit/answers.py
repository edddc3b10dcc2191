"""Answers question by question, as a record keeps them and as several give them.

A run of the cross table keeps, beside its rows, which evaluation questions each model
answered rightly under each attack. `tables_of` makes one table for each model of the
records of several runs: a line for each question of each run, a column for each method
under each attack. What they say together is in `over_runs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd

from . import records
from .knowledge import split
from .knowledge_measures import hits_of
from .world import Fact

# (measure, dataset) -> a line for each (run, question), hits in columns of
# (defense, attack, the method that the attack was tuned on or "").
Tables = dict[tuple[str, str], pd.DataFrame]


def said(defense: str, letters: Sequence[str]) -> dict[str, str]:
    """What a record keeps of the letters that a model says, for `chances`."""
    return {"defense": defense, "said": "".join(letters)}


def kept(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What a record keeps of rows that have `hits`, for `tables_of`.

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


def tables_of(found: Iterable[records.Record]) -> dict[str, Tables]:
    """The answers in some records, by name of the model.

    Args:
        found: records of one notebook, of any models and seeds.

    Raises:
        ValueError: two records of the same model and seed, or none has answers.
    """
    columns: dict[tuple, dict[tuple, list[pd.Series]]] = {}
    seen = set()
    for record in found:
        model, seed = str(record.model["name"]), record.seed
        if (model, seed) in seen:
            raise ValueError(f"two records of {model} with seed {seed}; give each once")
        seen.add((model, seed))
        for entry in record.prompts:
            if "hits" not in entry:
                continue
            hits = hits_of(entry["hits"])
            lines = [
                (seed, name_of(f)) for f in asked(seed, entry["dataset"], len(hits))
            ]
            column = (entry["defense"], entry["attack"], entry["versus"])
            table = (model, entry["metric"], entry["dataset"])
            columns.setdefault(table, {}).setdefault(column, []).append(
                pd.Series(hits, pd.MultiIndex.from_tuples(lines), dtype=float)
            )
    if not columns:
        raise ValueError(
            f"none of {len(seen)} records has answers by question; run "
            "python -m safeedit reproduce --notebooks U2, which keeps them"
        )
    out: dict[str, Tables] = {}
    for (model, metric, dataset), own in columns.items():
        frame = pd.DataFrame({key: pd.concat(runs) for key, runs in own.items()})
        frame.index.names = ["run", "question"]
        frame.columns = pd.MultiIndex.from_tuples(
            frame.columns, names=["defense", "attack", "versus"]
        )
        out.setdefault(model, {})[metric, dataset] = frame
    return out


@cache
def _facts(seed: int, domain: str) -> list[Fact]:
    return split(seed).facts(domain, "evaluation")


def asked(seed: int, dataset: str, n: int) -> list[Fact]:
    """The first n evaluation questions of a run with this seed.

    Args:
        seed: of the run.
        dataset: a domain; "hazard, original" has the hazard questions.
        n: how many.
    """
    return _facts(seed, dataset.partition(", ")[0])[:n]


def name_of(fact: Fact) -> str:
    """A name for a question, the same in every run that asks it."""
    return f"{fact.relation} of {fact.entity}"
