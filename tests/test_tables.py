"""Tables: the paper's readings stay together with their doubts; cells never merge."""

import itertools

import pandas as pd
import pytest

from safeedit import tables


@pytest.mark.parametrize("name", ["T1", "T2"])
def test_every_reading_spells_the_raw_string(name):
    """A reading is a way to cut the raw digits; joining its cells gives them back."""
    for model, row in tables.paper(name)["rows"].items():
        for reading in (row["reading"], *row["alternatives"]):
            spellings = [
                {f"{v:g}", f"{v:.1f}", f"{v:.2f}", f"{v:.3f}"} for v in reading
            ]
            joined = {"".join(cells) for cells in itertools.product(*spellings)}
            assert row["raw"] in joined, (model, reading)


def test_doubts_are_shown_in_the_cell():
    frame = tables.paper_frame("T1")
    assert frame.loc["Llama-3.1-8B-Instruct", "Self-Reminder"] == "50.8 (or 0.8)"
    assert frame.loc["Llama-3.1-8B-Instruct", "none"] == "11"


def test_unknown_table_is_named():
    with pytest.raises(KeyError, match="T9"):
        tables.paper("T9")


def test_wide_keeps_order_and_refuses_two_rows_for_a_cell():
    rows = pd.DataFrame(
        [
            {"model": m, "defense": d, "value": v, "n": 10, "low": 0.0, "high": 0.5}
            for m, d, v in [("b", "PCR", 0.1), ("b", "none", 0.4), ("a", "PCR", 0.2)]
        ]
    )
    table = tables.wide(rows, ["model"], "defense")
    assert list(table.index) == ["b", "a"] and list(table.columns) == ["PCR", "none"]
    assert (
        table.loc["b", "none"] == "40 [0, 50] (n 10)" and table.loc["a", "none"] == ""
    )
    with pytest.raises(ValueError, match="two rows"):
        tables.wide(pd.concat([rows, rows]), ["model"], "defense")


def test_namesakes_are_models_of_the_paper():
    known = set(tables.paper("T1")["rows"])
    assert set(tables.NAMESAKES.values()) == known == set(tables.REAL_MODELS.values())
