"""What the answers of several runs say together, with two-way clustered intervals.

* shares of right answers;
* recovery, (accuracy - oracle) / (base - oracle) under the same attack;
* gain: right answers after an attack less those before;
* difference: what a method leaves more than another one under the same attack, and
  gain_difference, whether it gives back more;
* chance levels of the answers (`guessing`).

All are paired by question and run, see `answers` and `clustered`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from . import clustered, records
from .answers import Tables, asked, name_of, tables_of
from .guessing import chance
from .knowledge_statistics import utility_kept
from .tables import Z
from .world import Fact

REFERENCES = ("base", "oracle")
MEASURES = ("letter_accuracy", "open_accuracy")


def together(
    tables: Tables, versus: Sequence[str] = ("NPO", "DPO")
) -> list[dict[str, Any]]:
    """Rows over all runs of one model: shares, recoveries, gains and differences.

    Args:
        tables: of one model, from `tables_of`.
        versus: the methods that all others are compared with.

    Returns:
        Tidy rows with value, n (answers), low, high, and `questions` and `runs`, the
        number of different ones. "utility_kept" is the share of runs in which an
        attack leaves nine tenths of the unlearned model's general letters. Where base
        and oracle cannot be told apart there is no recovery.
    """
    rows = []
    for (measure, dataset), frame in tables.items():
        for defense, attack, tuned in frame:
            labels = {"versus": tuned} if tuned else {}
            rows.append(
                _row(
                    measure,
                    clustered.share,
                    [frame[defense, attack, tuned]],
                    defense=defense,
                    attack=attack,
                    dataset=dataset,
                    **labels,
                )
            )
    for measure in MEASURES:
        rows += _recoveries(tables[measure, "hazard"], measure)
    rows += _pairs(tables["letter_accuracy", "hazard"], versus)
    return rows + _gates(tables["letter_accuracy", "general"])


def _recoveries(frame: pd.DataFrame, measure: str) -> list[dict[str, Any]]:
    rows = []
    for defense, attack in _cells(frame):
        if defense in REFERENCES:
            continue
        base, oracle = (_reference(frame, r, attack, defense) for r in REFERENCES)
        if base is None or oracle is None:
            continue
        pair = pd.concat(
            [frame[defense, attack, ""] - oracle, base - oracle], axis=1
        ).dropna()
        gap = pair.iloc[:, 1]
        if gap.mean() <= Z * gap.sem():
            continue  # base and oracle cannot be told apart
        labels = {"defense": defense, "attack": attack, "measure": measure}
        columns = [pair.iloc[:, 0], gap]
        rows.append(_row("recovery", clustered.ratio, columns, **labels))
    return rows


def _pairs(frame: pd.DataFrame, versus: Sequence[str]) -> list[dict[str, Any]]:
    """Gains, differences and differences of gains, of hazard letters."""
    rows: list[dict[str, Any]] = []
    cells = _cells(frame)

    def add(metric: str, values: pd.Series, **labels: str) -> None:
        labels |= {"measure": "letter_accuracy"}
        rows.append(_row(metric, clustered.mean, [values], **labels))

    for defense, attack in cells:
        own, before = frame[defense, attack, ""], frame[defense, "none", ""]
        labels = {"defense": defense, "attack": attack}
        if attack != "none":
            add("gain", own - before, **labels)
        for other in versus:
            if other == defense or (other, attack) not in cells:
                continue
            theirs = frame[other, attack, ""]
            add("difference", own - theirs, **labels, versus=other)
            if attack != "none":
                gain = theirs - frame[other, "none", ""]
                change = own - before - gain
                add("gain_difference", change, **labels, versus=other)
    return rows


def _gates(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """In how many runs an attack leaves a method nine tenths of its general letters."""
    rows = []
    for defense, attack in _cells(frame):
        if defense in REFERENCES:
            continue
        both = frame[[(defense, attack, ""), (defense, "none", "")]].dropna()
        passed = [
            utility_kept(own.iloc[:, 0].tolist(), own.iloc[:, 1].tolist())
            for _, own in both.groupby(level="run")
        ]
        share = sum(passed) / len(passed)
        labels: dict[str, Any] = {"defense": defense, "attack": attack}
        labels["dataset"] = "general"
        rows.append(records.row("utility_kept", share, len(passed), **labels))
    return rows


def frame(found: Iterable[records.Record], **options: Any) -> pd.DataFrame:
    """`together` for each model of some records, as one tidy table.

    Args:
        found: records of one notebook that keep answers.
        options: of `together`.

    Raises:
        ValueError: as `answers.tables_of`.
    """
    rows = [
        {"model": model, **row}
        for model, own in tables_of(found).items()
        for row in together(own, **options)
    ]
    return pd.DataFrame(rows)


def evidence(notebook: str) -> pd.DataFrame:
    """The same of the published records of the stand-ins, for claims."""
    found = frame(records.find(notebook=notebook, weights="stand-in"))
    return found.assign(notebook=notebook, weights="stand-in")


def with_others(record: records.Record) -> list[records.Record]:
    """A run's record with the published ones of its notebook and scale.

    Args:
        record: of this run; it stands in for a published one of its model and seed.
    """
    own = (record.model["name"], record.seed)
    others = [
        other
        for other in records.find(notebook=record.notebook)
        if other.parameters["scale"] == record.parameters["scale"]
        and (other.model["name"], other.seed) != own
    ]
    return [record, *others]


def spread(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Means over runs of what is no share of answers, such as areas and norms.

    The interval is the wider one, at each end, of two: the mean of the runs' own, which
    does not narrow when each run asks the same passages, and Student's over runs.

    Args:
        rows: tidy rows of several runs.
        by: columns that name a group.

    Returns:
        A row for each group, in their first order: value, n (runs), low, high; without
        ends where there is neither interval.
    """
    out = []
    for key, part in rows.groupby(by, sort=False):
        value, n = part.value.mean(), len(part)
        ends = [part.low.mean(), part.high.mean()]
        if n > 1:
            half = stats.t.ppf(0.975, n - 1) * part.value.std() / n**0.5
            ends = [
                np.nanmin([ends[0], value - half]),
                np.nanmax([ends[1], value + half]),
            ]
        numbers = {"value": value, "n": n, "low": ends[0], "high": ends[1]}
        out.append(dict(zip(by, key, strict=True)) | numbers)
    return pd.DataFrame(out)


def by_run(frame: pd.DataFrame) -> pd.Series:
    """Mean of each run.

    Args:
        frame: values with the index of a table of `tables_of`, such as the difference
            of two of its columns.
    """
    return frame.groupby(level="run").mean()


def chances(found: Iterable[records.Record]) -> list[dict[str, Any]]:
    """Chance level of the hazard letters that each model says, over all its runs.

    Args:
        found: records that keep what was `said`.

    Returns:
        Rows "letter_chance" with the range of 95 % of the deals, see
        `guessing.chance`; n is the number of answers.
    """
    letters: dict[tuple[str, str], str] = {}
    facts: dict[tuple[str, str], list[Fact]] = {}
    for record in found:
        for entry in record.prompts:
            if "said" in entry:
                key, own = (record.model["name"], entry["defense"]), entry["said"]
                letters[key] = letters.get(key, "") + own
                facts.setdefault(key, []).extend(asked(record.seed, "hazard", len(own)))
    rows = []
    for (model, defense), own in letters.items():
        theirs = facts[model, defense]
        right, strata = [f.letter for f in theirs], [f.relation for f in theirs]
        level = chance(own, right, strata, [name_of(f) for f in theirs])
        labels: dict[str, Any] = {"dataset": "hazard", "defense": defense}
        numbers = (level[0], len(own), *level[1:])
        rows.append(records.row("letter_chance", *numbers, model=model, **labels))
    return rows


def _cells(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Methods and references under attacks that were not tuned on somebody else."""
    return [(defense, attack) for defense, attack, tuned in frame if not tuned]


def _reference(
    frame: pd.DataFrame, name: str, attack: str, defense: str
) -> pd.Series | None:
    """A reference under the attack as it was tuned on a method, or as it is."""
    for column in product([name], [attack], [defense, ""]):
        if column in frame.columns:
            return frame[column]
    return None


def _row(metric, interval, columns: Sequence[pd.Series], **labels: str) -> dict:
    """One row of what `interval` says of the questions that all columns have."""
    both = pd.concat(columns, axis=1).dropna()
    runs = both.index.get_level_values("run").to_numpy()
    questions = both.index.get_level_values("question").to_numpy()
    values = [both.iloc[:, i].to_numpy() for i in range(both.shape[1])]
    value, low, high = interval(*values, runs, questions)
    counts = {"questions": len(set(questions)), "runs": len(set(runs))}
    more: dict[str, Any] = {"dataset": "hazard", **labels, **counts}
    return records.row(metric, value, len(both), low, high, **more)
