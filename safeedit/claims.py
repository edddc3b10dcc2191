"""Claims judged by records: a filter on tidy rows, a null value, and a side.

A claim holds where the whole 95 % interval of its value lies on its side of the null
value, does not hold where it lies on the other, and cannot be told where the null value
is inside. Seeds are put together first: by `over_runs` where the records hold answers
question by question, else by `tables.pooled`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from . import records, tables

SIDES = {
    "below": ("does not hold", "holds"),
    "above": ("holds", "does not hold"),
    "kept": ("holds", "does not hold"),  # can be refuted, not shown: no loss was seen
}
UNTOLD = "cannot be told"
GATED = ("notebook", "defense", "attack")  # what a utility gate is measured for


@dataclass(frozen=True)
class Claim:
    """What is said, and which rows decide it.

    Attributes:
        text: the claim in words.
        where: column -> value of the rows that count; "notebook" among them.
        side: "below", "above" or "kept", see `SIDES`.
        null: the value that lies between the two sides: 0 for differences, 1 for
            ratios, a share for a recovery.
    """

    text: str
    where: Mapping[str, Any]
    side: str = "below"
    null: float = 0.0

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ValueError(f"side={self.side!r}: one of {tuple(SIDES)}")
        if "notebook" not in self.where:
            raise ValueError(
                f"{self.text!r} names no notebook; give where={{'notebook': ...}}, "
                "the table that its record belongs to"
            )


def stand_in_evidence() -> pd.DataFrame:
    """Tidy rows of all published records of stand-ins."""
    rows = records.rows_frame(records.find())
    return rows[rows.weights == "stand-in"]


def judged(evidence: pd.DataFrame, claim: Claim) -> pd.DataFrame:
    """One verdict for each model that has rows, its seeds put together.

    Args:
        evidence: tidy rows of records.
        claim: what is judged.

    Returns:
        Columns model, value, n, low, high, verdict, and "wrecked": the share of the
        runs in which the claim's attack fails the utility gate (`utility_kept`), NaN
        where no gate was measured.

    Raises:
        ValueError: rows over all runs are mixed with rows of single runs.
    """
    hit = _matching(evidence, claim.where)
    ratio, difference = claim.null == 1, claim.null == 0
    if "runs" in hit and hit.runs.notna().any():  # of all runs already: `over_runs`
        if hit.runs.isna().any() or hit.model.duplicated().any():
            raise ValueError(
                f"{claim.text!r} has rows over all runs beside others of the same "
                f"model; say more in where={dict(claim.where)} or leave one kind out"
            )
        both = hit[["model", "value", "n", "low", "high"]].reset_index(drop=True)
    else:
        both = tables.pooled(hit, ["model"], log=ratio, continuity=difference)
    above, below = SIDES[claim.side]
    both["verdict"] = UNTOLD
    both.loc[both.low > claim.null, "verdict"] = above
    both.loc[both.high < claim.null, "verdict"] = below
    same = {k: v for k, v in claim.where.items() if k in GATED}
    gate = _matching(evidence, same | {"metric": "utility_kept"})
    kept = gate.groupby("model").value.mean() if len(same) == len(GATED) else {}
    both["wrecked"] = 1 - both.model.map(kept).astype(float)
    return both


def _matching(evidence: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    seen = evidence.reindex(columns=list(where))
    return evidence[(seen == pd.Series(where)).all(axis=1)]


def page(
    evidence: pd.DataFrame, claims: Sequence[Claim]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """A table with a line for each claim, and rows for the page's record.

    A cell such as "holds: -0.65 [-0.80, -0.49], n 144"; an asterisk behind it says that
    in at least half of the runs the attack leaves less than nine tenths of the general
    answers, so that it shows little.

    Raises:
        ValueError: no record has rows for one of the claims, which is named.
    """
    lines, rows = {}, []
    for claim in claims:
        both = judged(evidence, claim)
        if not len(both):
            raise ValueError(
                f"no record has rows for the claim {claim.text!r}, {dict(claim.where)}."
                f" Next step: python -m safeedit reproduce, which runs "
                f"{claim.where['notebook']}"
            )
        table = str(claim.where["notebook"])
        line = {"table": table.partition("_")[0]}
        for r in both.itertuples():
            star = " *" if r.wrecked >= 0.5 else ""
            line[str(r.model).removeprefix("standin-")] = (
                f"{r.verdict}: {r.value:.2f} [{r.low:.2f}, {r.high:.2f}], n {r.n}{star}"
            )
            row = dict(claim=claim.text, model=r.model, verdict=r.verdict, table=table)
            rows.append(records.row("claim", r.value, r.n, r.low, r.high, **row))
        lines[claim.text] = line
    return pd.DataFrame.from_dict(lines, orient="index").fillna("no record"), rows


def published(figure: str) -> dict[str, Any]:
    """Values of one of the papers, with where they were read.

    Args:
        figure: a key of `paper_figures.json`, such as "relearning".

    Raises:
        KeyError: no such figure.
    """
    path = Path(__file__).with_name("paper_figures.json")
    figures = json.loads(path.read_text(encoding="utf-8"))
    if figure not in figures:
        raise KeyError(f"figure={figure!r}: one of {', '.join(figures)}")
    return figures[figure]
