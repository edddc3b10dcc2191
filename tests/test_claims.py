"""Claims: verdicts by the side of the interval, seeds together, gates beside them."""

import math

import pandas as pd
import pytest

from safeedit import claims, records
from safeedit.claims import Claim, judged, page

WHERE = dict(notebook="U2_cross_table", metric="difference", defense="A", attack="x")


def evidence(values, seeds=2, metric="difference", **more):
    """Rows of so many seeds on two models, with intervals of +-0.1."""
    rows = [
        dict(
            records.row(metric, value, 50, value - 0.1, value + 0.1, **more),
            notebook="U2_cross_table",
            model=model,
            weights="stand-in",
            seed=seed,
        )
        for model, value in values.items()
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def verdicts(frame, claim):
    return judged(frame, claim).set_index("model").verdict.to_dict()


def test_the_side_of_the_interval_decides():
    frame = evidence({"m": -0.5, "n": 0.01, "o": 0.5}, defense="A", attack="x")
    below, above = Claim("less", WHERE), Claim("more", WHERE, "above")
    assert verdicts(frame, below) == {
        "m": "holds",
        "n": "cannot be told",
        "o": "does not hold",
    }
    assert verdicts(frame, above) == {
        "m": "does not hold",
        "n": "cannot be told",
        "o": "holds",
    }


def test_a_null_value_other_than_zero():
    frame = evidence({"m": 0.8, "n": 0.2}, metric="recovery", defense="A", attack="x")
    most = Claim("most", WHERE | {"metric": "recovery"}, "above", 0.5)
    assert verdicts(frame, most) == {"m": "holds", "n": "does not hold"}


def test_seeds_count_together_and_other_rows_do_not():
    frame = evidence({"m": -0.05}, seeds=1, defense="A", attack="x")
    alone = judged(frame, Claim("less", WHERE)).iloc[0]
    assert alone.verdict == "cannot be told" and alone.n == 50
    many = evidence({"m": -0.05}, seeds=40, defense="A", attack="x")
    other = evidence({"m": 0.9}, seeds=40, defense="A", attack="y")
    together = judged(pd.concat([many, other]), Claim("less", WHERE)).iloc[0]
    assert together.verdict == "holds" and together.n == 2000
    assert math.isclose(together.value, -0.05)


def test_a_row_over_all_runs_keeps_its_own_interval():
    """It is not symmetrical, and nothing is added to it."""
    row = records.row("difference", -0.2, 360, -0.5, -0.1, defense="A", attack="x")
    own = pd.DataFrame(
        [row | {"runs": 5, "model": "m"} | {"notebook": "U2_cross_table"}]
    )
    found = judged(own, Claim("less", WHERE)).iloc[0]
    assert (found.low, found.high, found.n) == (-0.5, -0.1, 360)
    assert found.verdict == "holds"


def test_rows_over_all_runs_are_not_mixed_with_others():
    row = records.row("difference", -0.2, 360, -0.5, -0.1, defense="A", attack="x")
    own = pd.DataFrame(
        [row | {"runs": 5, "model": "m"} | {"notebook": "U2_cross_table"}]
    )
    single = evidence({"m": -0.2}, defense="A", attack="x")
    for frame in (pd.concat([own, single]), pd.concat([own, own])):
        with pytest.raises(ValueError, match="'less' has rows over all runs beside"):
            judged(frame, Claim("less", WHERE))


def test_an_attack_that_wrecks_the_model_is_marked():
    frame = evidence({"m": -0.5}, defense="A", attack="x")
    for kept, star in ((0.0, True), (1.0, False)):
        gate = evidence({"m": kept}, metric="utility_kept", defense="A", attack="x")
        table, _ = page(pd.concat([frame, gate]), [Claim("less", WHERE)])
        assert table.loc["less", "m"].endswith(" *") is star
    assert not page(frame, [Claim("less", WHERE)])[0].loc["less", "m"].endswith("*")


def test_the_page_has_a_line_and_a_row_for_each_model():
    frame = evidence({"standin-m": -0.5, "standin-n": 0.5}, defense="A", attack="x")
    table, rows = page(frame, [Claim("less", WHERE), Claim("more", WHERE, "above")])
    assert list(table.columns) == ["table", "m", "n"] and len(rows) == 4
    assert table.loc["less", "m"].startswith("holds: -0.50 [-0.")
    assert {row["verdict"] for row in rows} == {"holds", "does not hold"}
    assert {row["metric"] for row in rows} == {"claim"}


def test_wrong_claims_are_named():
    with pytest.raises(ValueError, match="side='under': one of"):
        Claim("less", WHERE, "under")
    with pytest.raises(ValueError, match="'less' names no notebook"):
        Claim("less", {"metric": "difference"})
    frame = evidence({"m": 0.1}, defense="B", attack="x")
    with pytest.raises(ValueError, match="no record has rows for the claim 'less'"):
        page(frame, [Claim("less", WHERE)])


def test_published_values_come_with_their_source():
    found = claims.published("relearning")
    assert "arXiv 2502.05374" in found["source"]
    for row in found["rows"].values():
        assert len(row) == len(found["columns"])
        assert all(0 <= value <= 1 for value in row)
    with pytest.raises(KeyError, match="figure='T9'"):
        claims.published("T9")
