"""Tables: the paper's readings stay together with their doubts; cells never merge."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from safeedit import records, tables
from safeedit.metrics import paired_bootstrap, wilson_interval


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


def test_pooled_shares_are_those_of_all_prompts_together():
    counts = [("a", 3, 10), ("b", 1, 4), ("a", 5, 30)]
    frame = pd.DataFrame(
        [
            {"model": m, "value": k / n, "n": n, "low": 0, "high": 1, "unit": "share"}
            for m, k, n in counts
        ]
    )
    found = tables.pooled(frame, ["model"])
    assert list(found.model) == ["a", "b"] and list(found.n) == [40, 4]
    assert found.value[0] == pytest.approx(8 / 40)
    assert (found.low[0], found.high[0]) == pytest.approx(wilson_interval(8, 40))


def sample_row(values):
    """A run's row: mean of its values with the plain normal interval."""
    mean, half = np.mean(values), 1.96 * np.std(values) / len(values) ** 0.5
    ends = {"value": mean, "low": mean - half, "high": mean + half}
    return {"model": "a", "n": len(values), **ends}


def test_pooled_by_hand():
    """Variances of a pair 4 x 0.5² = 1 and 12 x 0.25² = 0.75, means 0.5 and -0.1.

    Inside the runs 1/4 x 1 + 3/4 x 0.75 = 0.8125, between them (mean 0.05)
    1/4 x 0.45² + 3/4 x 0.15² = 0.0675, together 0.88 for one of 16 pairs.
    """
    frame = pd.DataFrame(
        [
            {"model": "a", "n": 4, "value": 0.5, "low": -0.48, "high": 1.48},
            {"model": "a", "n": 12, "value": -0.1, "low": -0.59, "high": 0.39},
        ]
    )
    half = 1.96 * (0.88 / 16) ** 0.5
    for continuity, more in ((False, 0), (True, 1 / 16)):
        found = tables.pooled(frame, ["model"], continuity=continuity).iloc[0]
        assert (found.value, found.n) == (pytest.approx(0.05), 16)
        assert found.high - 0.05 == pytest.approx(half + more)
        assert 0.05 - found.low == pytest.approx(half + more)


@pytest.mark.parametrize("means", [(0.3, 0.3, 0.3), (-1.0, 0.5, 2.0)])
def test_pooled_means_have_the_interval_of_the_pooled_sample(means):
    """Against the normal interval of all draws at once; ratios on the log scale."""
    rng = np.random.default_rng(0)
    samples = [rng.normal(m, 1, n) for m, n in zip(means, (40, 80, 10), strict=True)]
    frame = pd.DataFrame([sample_row(values) for values in samples])
    want = sample_row(np.concatenate(samples))
    found = tables.pooled(frame, ["model"]).iloc[0]
    ratios = frame.assign(**np.exp(frame[["value", "low", "high"]]))
    again = tables.pooled(ratios, ["model"], log=True).iloc[0]
    for name in ("value", "low", "high"):
        assert found[name] == pytest.approx(want[name])
        assert np.log(again[name]) == pytest.approx(want[name])


def test_pooled_differences_agree_with_the_bootstrap_of_all_pairs():
    """Runs alike: pooling their bootstraps is as one bootstrap of the pairs of all."""
    rng = np.random.default_rng(1)
    runs = [(rng.random((2, n)) < [[0.3], [0.6]]).astype(float) for n in (60, 60, 80)]
    rows = [
        dict(zip(("value", "low", "high"), paired_bootstrap(*run), strict=True))
        | {"model": "a", "n": run.shape[1]}
        for run in runs
    ]
    found = tables.pooled(pd.DataFrame(rows), ["model"]).iloc[0]
    value, low, high = paired_bootstrap(*np.concatenate(runs, axis=1))
    assert found.value == pytest.approx(value)
    assert found.low == pytest.approx(low, abs=0.015)
    assert found.high == pytest.approx(high, abs=0.015)


def test_pooled_is_wider_than_strata_when_the_runs_disagree():
    """Strata add standard errors and know nothing of how far the runs lie apart."""
    rows = [sample_row([m - 1, m + 1] * 10) for m in (-1.0, 0.0, 1.0)]
    frame = pd.DataFrame(rows)
    strata = ((((frame.high - frame.low) / 2 / 3) ** 2).sum()) ** 0.5
    apart = tables.pooled(frame, ["model"]).iloc[0]
    assert (apart.high - apart.low) / 2 > 1.2 * strata
    gap = frame.value
    alike = frame.assign(value=0.0, low=frame.low - gap, high=frame.high - gap)
    same = tables.pooled(alike, ["model"]).iloc[0]
    assert (same.high - same.low) / 2 == pytest.approx(strata)


def test_continuity_tells_what_the_sign_test_tells():
    """k of 48 pairs differ, all one way: two-sided p = 2 / 2^k (McNemar, exact)."""
    for k in range(11):
        gaps = -1.0 * (np.arange(48) < k)
        frame = pd.DataFrame([sample_row(gaps[start::3]) for start in range(3)])
        found = tables.pooled(frame, ["model"], continuity=True)
        told = not tables.verdict(found.iloc[0]).startswith("cannot")
        assert told == (2 / 2**k < 0.05), k


def test_continuity_is_for_differences_only():
    frame = pd.DataFrame([sample_row([0.5, 1.5]), sample_row([1.0, 3.0, 2.0])])
    plain = tables.pooled(frame, ["model"]).iloc[0]
    wider = tables.pooled(frame, ["model"], continuity=True).iloc[0]
    assert wider.high - plain.high == pytest.approx(1 / 5)
    assert plain.low - wider.low == pytest.approx(1 / 5)
    with pytest.raises(ValueError, match="ratios"):
        tables.pooled(frame, ["model"], log=True, continuity=True)


def test_pooled_takes_runs_without_interval_or_n_as_points():
    """Three measurements: only how far they lie apart is in the interval."""
    rows = [records.row("ratio", v, None) | {"model": "a"} for v in (1.0, 2.0, 4.0)]
    found = tables.pooled(pd.DataFrame(rows), ["model"], log=True).iloc[0]
    half = 1.96 * np.std(np.log([1.0, 2.0, 4.0])) / 3**0.5
    assert (found.value, found.n) == (pytest.approx(2.0), 3)
    assert (found.low, found.high) == pytest.approx(
        (2 / np.exp(half), 2 * np.exp(half))
    )
    alone = tables.pooled(pd.DataFrame(rows[1:2]), ["model"]).iloc[0]
    assert alone.low == alone.value == alone.high == 2.0


def test_others_are_the_published_runs_of_the_same_scale():
    chat = SimpleNamespace(name="standin-mistral", kind="stand-in")
    rows = [records.row("success_rate", 0.5, 2, 0.1, 0.9)]
    found = tables.with_others("T1_attack_success", chat, 0, "cpu", rows)
    assert list(dict.fromkeys(found.model)) == list(tables.NAMESAKES)
    assert found[(found.model == chat.name) & (found.seed == 0)].value.tolist() == [0.5]
    alone = tables.with_others("T1_attack_success", chat, 0, "smoke", rows)
    assert len(alone[alone.weights == "stand-in"]) == 1


@pytest.mark.parametrize(
    "low, high, below, above",
    [
        (-0.4, -0.1, "yes", "no: the opposite"),
        (0.1, 0.4, "no: the opposite", "yes"),
        (-0.1, 0.1, "cannot be told", "cannot be told"),
        (0.0, 0.0, "cannot be told", "cannot be told"),
    ],
)
def test_verdict(low, high, below, above):
    row = {"value": (low + high) / 2, "low": low, "high": high}
    assert tables.verdict(row).startswith(below)
    assert tables.verdict(row, above=True).startswith(above)
    moved = {name: value + 1 for name, value in row.items()}
    assert tables.verdict(moved, null=1.0).startswith(below)
