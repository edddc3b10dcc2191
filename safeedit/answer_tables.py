"""The answers in several records, as one table for each model.

A line for each question of each run, a column for each method under each attack. What
they say together is in `over_runs`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import pandas as pd

from . import records
from .knowledge import split
from .knowledge_measures import hits_of
from .world import Fact

# (measure, dataset) -> a line for each (run, question), hits in columns of
# (defense, attack, the method that the attack was tuned on or "").
Tables = dict[tuple[str, str], pd.DataFrame]


def tables_of(found: Iterable[records.Record]) -> dict[str, Tables]:
    """The answers in some records, by name of the model.

    Args:
        found: records of one notebook, of any models and seeds.

    Raises:
        ValueError: no record, two of the same model and seed, or one without answers.
    """
    frames: dict[str, dict[tuple[str, str], list[pd.DataFrame]]] = {}
    seen = set()
    for record in found:
        model = str(record.model["name"])
        if (model, record.seed) in seen:
            raise ValueError(
                f"two records of {model} with seed {record.seed}; give each once"
            )
        seen.add((model, record.seed))
        own = _run(record)
        if not own:
            raise ValueError(
                f"the record of {record.notebook} on {model} with seed {record.seed} "
                "has no answers by question; run python -m safeedit reproduce "
                f"--notebooks {record.notebook}, which keeps them"
            )
        for table, frame in own.items():
            frames.setdefault(model, {}).setdefault(table, []).append(frame)
    if not frames:
        raise ValueError("got no records; python -m safeedit reproduce makes them")
    return {
        model: {table: pd.concat(runs) for table, runs in own.items()}
        for model, own in frames.items()
    }


def _run(record: records.Record) -> Tables:
    """The answers of one run."""
    columns: dict[tuple[str, str], dict[tuple, list[float]]] = {}
    for entry in record.prompts:
        if "hits" in entry:
            own = columns.setdefault((entry["metric"], entry["dataset"]), {})
            column = (entry["defense"], entry["attack"], entry["versus"])
            own[column] = list(map(float, hits_of(entry["hits"])))
    out = {}
    for (metric, dataset), own in columns.items():
        facts = asked(record.seed, dataset, len(next(iter(own.values()))))
        lines = pd.MultiIndex.from_tuples(
            [(record.seed, name_of(fact)) for fact in facts], names=["run", "question"]
        )
        out[metric, dataset] = pd.DataFrame(own, lines)
        out[metric, dataset].columns.names = ["defense", "attack", "versus"]
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
